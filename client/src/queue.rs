//! Role: the order in which connections ask for sessions: where many come at once, and while the gateway says that they
//! come too fast.
//! Invariants: who came first asks first, on whichever worker it is, and again first if its try has failed · nobody asks before the
//! time that the gateway named · no more ask at a time than the last answers bear, at least one · whoever leaves gives its
//! turn to the next.
//! See: `dataplane::gateway::usage`, which names the time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use async_channel::Sender;
use narrowlink_dataplane::run::{lock::lock, timer::sleep_until, worker::spawn};

/// A gateway that names a later time than this is asked after it all the same: no connection waits longer.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// So many ask at a time at the most: a try that fails is not overtaken by more, and a gateway that is asked by thousands at
/// once would cut some of them off.
const ASKING_MAX: usize = 256;

/// The connections of one forward that have no session yet, on all its workers.
#[derive(Default)]
pub(crate) struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    /// By their order of arrival.
    waiting: BTreeMap<u64, Sender<Turn>>,
    /// How many have been given their turn, and no answer yet.
    asking: usize,
    /// While the gateway limits us.
    limit: Option<Limit>,
    /// A task waits for the time to come.
    timed: bool,
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

/// The right to ask; given back when dropped, which looks at the queue: never within a look.
pub(crate) struct Turn {
    queue: Arc<Queue>,
    round: u64,
}

/// What a look at the queue has come to.
enum Next {
    /// This one may ask now.
    Give(Sender<Turn>, Turn),
    /// Nobody may before.
    At(Instant),
    /// There is nothing to do before an answer, or another connection.
    Nothing,
}

impl State {
    /// How many may ask at the same time.
    fn window(&self) -> usize {
        self.limit.map_or(ASKING_MAX, |limit| limit.window.min(ASKING_MAX))
    }

    /// Whether whoever comes now may ask at once.
    fn is_free(&self) -> bool {
        self.limit.is_none() && self.waiting.is_empty() && self.asking < ASKING_MAX
    }
}

impl Queue {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn look(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Whether it is the gateway that lets connections wait.
    pub(crate) fn is_limited(&self) -> bool {
        self.look().limit.is_some()
    }

    /// The next place.
    pub(crate) fn enter(&self) -> Number {
        let mut state = self.look();
        let number = state.next;
        state.next += 1;
        Number(number)
    }

    /// A turn, if nobody has to wait.
    pub(crate) fn turn_at_once(self: &Arc<Self>) -> Option<Turn> {
        let mut state = self.look();
        state.is_free().then(|| self.give(&mut state))
    }

    /// Waits until it is this one's turn to ask.
    pub(crate) async fn turn(self: &Arc<Self>, Number(number): Number) -> Turn {
        let (give, given) = async_channel::bounded(1);
        {
            let mut state = self.look();
            if state.is_free() {
                return self.give(&mut state);
            }
            state.waiting.insert(number, give);
        }
        let _leaves = Leaves { queue: self, number };
        self.advance();
        match given.recv().await {
            Ok(turn) => turn,
            // Its sender lives in the queue until it is used.
            Err(_) => self.give(&mut self.look()),
        }
    }

    fn give(self: &Arc<Self>, state: &mut State) -> Turn {
        state.asking += 1;
        Turn { queue: self.clone(), round: state.limit.map_or(0, |limit| limit.round) }
    }

    /// Gives turns to those who are first, as many as may ask now.
    fn advance(self: &Arc<Self>) {
        loop {
            match self.next() {
                Next::Give(first, turn) => {
                    // Dropped, if it has just left: then the turn goes on.
                    let _ = first.try_send(turn);
                }
                Next::At(time) => return self.advance_at(time),
                Next::Nothing => return,
            }
        }
    }

    fn next(self: &Arc<Self>) -> Next {
        let mut state = self.look();
        if let Some(limit) = state.limit {
            let now = Instant::now();
            if state.waiting.is_empty() {
                if state.asking == 0 && now >= limit.until {
                    state.limit = None;
                }
                return Next::Nothing;
            }
            if now < limit.until {
                return if std::mem::replace(&mut state.timed, true) {
                    Next::Nothing
                } else {
                    Next::At(limit.until)
                };
            }
        }
        if state.asking >= state.window() {
            return Next::Nothing;
        }
        let first = state.waiting.pop_first();
        first.map_or(Next::Nothing, |(_, first)| Next::Give(first, self.give(&mut state)))
    }

    /// On this worker, whoever waits.
    fn advance_at(self: &Arc<Self>, time: Instant) {
        let this = self.clone();
        spawn(async move {
            sleep_until(time).await;
            this.look().timed = false;
            this.advance();
        });
    }
}

/// A connection that waits leaves the queue when it is dropped.
struct Leaves<'a> {
    queue: &'a Arc<Queue>,
    number: u64,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        let left = self.queue.look().waiting.remove(&self.number);
        drop(left);
    }
}

impl Turn {
    /// There is a session.
    pub(crate) fn opened(self) {
        let mut state = self.queue.look();
        if let Some(limit) = &mut state.limit {
            limit.window += 1;
        }
        drop(state);
    }

    /// The gateway says that we come too fast, and when to come again.
    pub(crate) fn refused(self, wait: Duration) {
        let until = Instant::now() + wait.min(WAIT_MAX);
        let mut state = self.queue.look();
        let limit = match state.limit {
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
        state.limit = Some(limit);
        drop(state);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.queue.look().asking -= 1;
        self.queue.advance();
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use futures_lite::future;
    use narrowlink_dataplane::run::timer::sleep;

    use super::*;
    use crate::fixture::run;

    const MS: Duration = Duration::from_millis(1);

    fn test(main: impl AsyncFnOnce(Arc<Queue>)) {
        run(async || main(Queue::new()).await);
    }

    fn is_open(queue: &Queue) -> bool {
        queue.look().limit.is_none()
    }

    #[test]
    fn nobody_waits_while_nothing_is_limited() {
        test(async |queue| {
            let number = queue.enter();
            let turns = [queue.turn(number).await, queue.turn(queue.enter()).await];
            assert_eq!(queue.look().asking, 2);
            drop(turns);
            assert_eq!(queue.look().asking, 0);
        });
    }

    #[test]
    fn of_many_at_once_so_many_ask_in_their_order_and_who_has_to_try_again_is_first() {
        test(async |queue| {
            let numbers: Vec<_> = (0..ASKING_MAX + 2).map(|_| queue.enter()).collect();
            let mut turns = Vec::new();
            for number in &numbers[..ASKING_MAX] {
                turns.push(queue.turn_at_once().unwrap());
                assert!(!queue.is_limited(), "{}", number.0);
            }
            assert!(queue.turn_at_once().is_none());
            let mut last = Box::pin(queue.turn(numbers[ASKING_MAX + 1]));
            let mut next = Box::pin(queue.turn(numbers[ASKING_MAX]));
            assert!(
                future::poll_once(&mut last).await.is_none() && future::poll_once(&mut next).await.is_none()
            );
            // The first one's try has failed, and it comes again.
            let mut first = Box::pin(queue.turn(numbers[0]));
            assert!(future::poll_once(&mut first).await.is_none());
            turns.pop();
            let first = first.await;
            assert!(future::poll_once(&mut next).await.is_none());
            first.opened();
            let next = next.await;
            assert!(future::poll_once(&mut last).await.is_none());
            drop((turns, next));
            last.await.opened();
            assert_eq!(queue.look().asking, 0);
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
            while queue.look().limit.is_some() {
                sleep(MS).await;
            }
        });
    }

    #[test]
    fn who_came_first_asks_first_on_whichever_worker_it_waits() {
        let (queue, asked) = (Queue::new(), Arc::new(Mutex::new(Vec::new())));
        queue.look().limit = Some(Limit { until: Instant::now(), window: 1, round: 1 });
        let first = queue.give(&mut queue.look());
        let numbers: Vec<_> = (0..9).map(|_| queue.enter()).collect();
        let worker = |index: usize| {
            let mine: Vec<_> = numbers.iter().copied().skip(index).step_by(3).collect();
            let (queue, asked) = (queue.clone(), asked.clone());
            std::thread::spawn(move || {
                run(async || {
                    for number in mine.into_iter().rev() {
                        let (queue, asked) = (queue.clone(), asked.clone());
                        spawn(async move {
                            let turn = queue.turn(number).await;
                            lock(&asked).push(number.0);
                            drop(turn);
                        });
                    }
                    while lock(&asked).len() < 9 {
                        sleep(MS).await;
                    }
                });
            })
        };
        let workers: Vec<_> = (0..3).map(worker).collect();
        while queue.look().waiting.len() < 9 {
            std::thread::yield_now();
        }
        drop(first);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(*lock(&asked), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn refusals_of_one_round_halve_the_window_once_and_who_leaves_is_passed_over() {
        test(async |queue| {
            queue.look().limit = Some(Limit { until: Instant::now(), window: 8, round: 1 });
            let mut turns = Vec::new();
            for _ in 0..8 {
                turns.push(queue.turn(queue.enter()).await);
            }
            {
                let mut ninth = std::pin::pin!(queue.turn(queue.enter()));
                assert!(future::poll_once(ninth.as_mut()).await.is_none(), "eight ask already");
            }
            assert!(queue.look().waiting.is_empty());
            turns.drain(..4).for_each(|turn| turn.refused(MS));
            assert_eq!(queue.look().limit.unwrap().window, 4);
            drop(turns);
            queue.turn(queue.enter()).await.refused(Duration::from_secs(1000));
            let limit = queue.look().limit.unwrap();
            assert_eq!(limit.window, 2);
            assert!(limit.until <= Instant::now() + WAIT_MAX);
        });
    }

    #[test]
    fn each_session_lets_one_more_ask_and_a_late_refusal_of_an_earlier_round_takes_none_away() {
        test(async |queue| {
            queue.look().limit = Some(Limit { until: Instant::now(), window: 2, round: 1 });
            let window = || queue.look().limit.unwrap().window;
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
            queue.look().limit = Some(Limit { until: Instant::now(), window: 1, round: 1 });
            let first = queue.turn(queue.enter()).await;
            let mut leaves = Box::pin(queue.turn(queue.enter()));
            let mut stays = Box::pin(queue.turn(queue.enter()));
            assert!(future::poll_once(&mut leaves).await.is_none());
            assert!(future::poll_once(&mut stays).await.is_none());
            drop(first);
            // It was given its turn, and leaves before it has heard of it.
            drop(leaves);
            let last = stays.await;
            assert!(!is_open(&queue));
            drop(last);
            assert!(is_open(&queue));
        });
    }
}
