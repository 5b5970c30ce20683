//! Role: the order in which connections ask for sessions while the gateway says that they come too fast.
//! Invariants: who came first asks first · nobody asks before the time that the gateway named · no more ask
//! at a time than the last answers bear, at least one · whoever leaves gives its turn to the next.
//! See: `dataplane::gateway::usage`, which names the time.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use async_channel::Sender;
use narrowlink_dataplane::run::{timer::sleep_until, worker::spawn};

/// A gateway that names a later time than this is asked after it all the same: no connection waits longer.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The connections of one forward that have no session yet.
#[derive(Default)]
pub(crate) struct Queue {
    next: Cell<u64>,
    /// By their order of arrival.
    waiting: RefCell<BTreeMap<u64, Sender<Turn>>>,
    /// How many have been given their turn, and no answer yet.
    asking: Cell<usize>,
    /// While the gateway limits us.
    limit: Cell<Option<Limit>>,
    /// A task waits for the time to come.
    timed: Cell<bool>,
}

#[derive(Clone, Copy)]
struct Limit {
    /// Nobody asks before.
    until: Instant,
    /// So many may ask at the same time: one more for each session, half for a refusal.
    window: usize,
    /// Which halving of the window this is: those who asked before it don't count again.
    round: u64,
}

/// A connection's place in the order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(u64);

/// The right to ask; given back when dropped.
pub(crate) struct Turn {
    queue: Rc<Queue>,
    round: u64,
}

impl Queue {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// The next place.
    pub(crate) fn enter(&self) -> Number {
        let number = self.next.get();
        self.next.set(number + 1);
        Number(number)
    }

    /// Whether nobody has to wait.
    pub(crate) fn is_open(&self) -> bool {
        self.limit.get().is_none()
    }

    /// Waits until it is this one's turn to ask.
    pub(crate) async fn turn(self: &Rc<Self>, Number(number): Number) -> Turn {
        if self.is_open() {
            return self.give();
        }
        let (give, given) = async_channel::bounded(1);
        self.waiting.borrow_mut().insert(number, give);
        let _leaves = Leaves { queue: self, number };
        self.advance();
        match given.recv().await {
            Ok(turn) => turn,
            // Its sender lives in the queue until it is used.
            Err(_) => self.give(),
        }
    }

    fn give(self: &Rc<Self>) -> Turn {
        self.asking.set(self.asking.get() + 1);
        Turn { queue: self.clone(), round: self.limit.get().map_or(0, |limit| limit.round) }
    }

    /// Gives turns to those who are first, as many as may ask now.
    fn advance(self: &Rc<Self>) {
        while let Some(limit) = self.limit.get() {
            if self.waiting.borrow().is_empty() {
                if self.asking.get() == 0 && Instant::now() >= limit.until {
                    self.limit.set(None);
                }
                return;
            }
            if Instant::now() < limit.until {
                return self.advance_at(limit.until);
            }
            if self.asking.get() >= limit.window {
                return;
            }
            let first = self.waiting.borrow_mut().pop_first();
            if let Some((_, first)) = first {
                // Dropped, if it has just left: then the turn goes on.
                let _ = first.try_send(self.give());
            }
        }
    }

    fn advance_at(self: &Rc<Self>, at: Instant) {
        if self.timed.replace(true) {
            return;
        }
        let this = self.clone();
        spawn(async move {
            sleep_until(at).await;
            this.timed.set(false);
            this.advance();
        });
    }
}

/// A connection that waits leaves the queue when it is dropped.
struct Leaves<'a> {
    queue: &'a Rc<Queue>,
    number: u64,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.queue.waiting.borrow_mut().remove(&self.number);
    }
}

impl Turn {
    /// There is a session.
    pub(crate) fn opened(self) {
        if let Some(limit) = self.queue.limit.get() {
            self.queue.limit.set(Some(Limit { window: limit.window + 1, ..limit }));
        }
    }

    /// The gateway says that we come too fast, and when to come again.
    pub(crate) fn refused(self, wait: Duration) {
        let until = Instant::now() + wait.min(WAIT_MAX);
        let limit = match self.queue.limit.get() {
            None => Limit { until, window: 1, round: 1 },
            Some(limit) => {
                let until = limit.until.max(until);
                if self.round < limit.round {
                    Limit { until, ..limit }
                } else {
                    Limit { until, window: (limit.window / 2).max(1), round: limit.round + 1 }
                }
            }
        };
        self.queue.limit.set(Some(limit));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.queue.asking.set(self.queue.asking.get() - 1);
        self.queue.advance();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future;
    use narrowlink_dataplane::run::timer::sleep;

    use super::*;
    use crate::fixture::run;

    const MS: Duration = Duration::from_millis(1);

    fn test(main: impl AsyncFnOnce(Rc<Queue>)) {
        run(async || main(Queue::new()).await);
    }

    #[test]
    fn nobody_waits_while_nothing_is_limited() {
        test(async |queue| {
            let number = queue.enter();
            let turns = [queue.turn(number).await, queue.turn(queue.enter()).await];
            assert_eq!(queue.asking.get(), 2);
            drop(turns);
            assert_eq!(queue.asking.get(), 0);
        });
    }

    #[test]
    fn who_was_refused_asks_again_first_and_not_before_its_time_and_the_others_follow_in_order() {
        test(async |queue| {
            let first = queue.enter();
            let turn = queue.turn(first).await;
            let asked: Rc<RefCell<Vec<u64>>> = Rc::default();
            turn.refused(30 * MS);
            let refused_at = Instant::now();
            let others: Vec<_> = (0..20).map(|_| queue.enter()).collect();
            for number in others.into_iter().rev().chain([first]) {
                let (queue, asked) = (queue.clone(), asked.clone());
                spawn(async move {
                    let turn = queue.turn(number).await;
                    asked.borrow_mut().push(number.0);
                    sleep(MS).await;
                    turn.opened();
                });
            }
            sleep(10 * MS).await;
            assert!(asked.borrow().is_empty() || refused_at.elapsed() >= 30 * MS);
            while asked.borrow().len() < 21 {
                sleep(MS).await;
            }
            assert!(refused_at.elapsed() >= 30 * MS);
            assert_eq!(*asked.borrow(), (0..21).collect::<Vec<_>>());
            while queue.limit.get().is_some() {
                sleep(MS).await;
            }
        });
    }

    #[test]
    fn refusals_of_one_round_halve_the_window_once_and_who_leaves_is_passed_over() {
        test(async |queue| {
            queue.limit.set(Some(Limit { until: Instant::now(), window: 8, round: 1 }));
            let mut turns = Vec::new();
            for _ in 0..8 {
                turns.push(queue.turn(queue.enter()).await);
            }
            {
                let mut ninth = std::pin::pin!(queue.turn(queue.enter()));
                assert!(future::poll_once(ninth.as_mut()).await.is_none(), "eight ask already");
            }
            assert!(queue.waiting.borrow().is_empty());
            turns.drain(..4).for_each(|turn| turn.refused(MS));
            assert_eq!(queue.limit.get().unwrap().window, 4);
            drop(turns);
            queue.turn(queue.enter()).await.refused(Duration::from_secs(1000));
            let limit = queue.limit.get().unwrap();
            assert_eq!(limit.window, 2);
            assert!(limit.until <= Instant::now() + WAIT_MAX);
        });
    }

    #[test]
    fn each_session_lets_one_more_ask_and_a_late_refusal_of_an_earlier_round_takes_none_away() {
        test(async |queue| {
            queue.limit.set(Some(Limit { until: Instant::now(), window: 2, round: 1 }));
            let window = || queue.limit.get().unwrap().window;
            let (early, other) = (queue.turn(queue.enter()).await, queue.turn(queue.enter()).await);
            other.opened();
            assert_eq!(window(), 3);
            let (second, third) = (queue.turn(queue.enter()).await, queue.turn(queue.enter()).await);
            second.refused(MS);
            assert_eq!(window(), 1);
            third.opened();
            assert_eq!(window(), 2);
            early.refused(MS);
            assert_eq!(window(), 2, "it asked before the window was halved");
        });
    }

    #[test]
    fn who_leaves_the_queue_gives_its_turn_to_the_next_and_an_empty_queue_is_open_again() {
        test(async |queue| {
            queue.limit.set(Some(Limit { until: Instant::now(), window: 1, round: 1 }));
            let first = queue.turn(queue.enter()).await;
            let mut leaves = Box::pin(queue.turn(queue.enter()));
            let mut stays = Box::pin(queue.turn(queue.enter()));
            assert!(future::poll_once(&mut leaves).await.is_none());
            assert!(future::poll_once(&mut stays).await.is_none());
            drop(first);
            // It was given its turn, and leaves before it has heard of it.
            drop(leaves);
            let last = stays.await;
            assert!(!queue.is_open());
            drop(last);
            assert!(queue.is_open());
        });
    }
}
