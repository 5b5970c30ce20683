//! Role: who moves bulk on this worker, and how much of it before everybody else is looked at again.
//! Invariants: between two turns of the ring a bounded amount of bulk moves, however many directions have
//! some · they take turns in the order in which they asked · who moves little never waits here.
//! See: ARCHITECTURE.md "Relay".

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    task::{Poll, Waker},
};

use crate::worker;

/// Bulk that a worker moves between two turns: about 100 µs of work, so that this is what a keystroke
/// waits for at the most.
const BYTES_A_TURN: usize = 512 * 1024;

#[derive(Default)]
struct Turns {
    /// Which turn of the ring this is, as far as anybody noticed.
    count: Cell<u64>,
    /// Bulk moved in it.
    spent: Cell<usize>,
    /// Who waits, by ticket; the first sees to the next turn.
    queue: RefCell<VecDeque<(u64, Option<Waker>)>>,
    next_ticket: Cell<u64>,
}

thread_local! {
    static TURNS: Turns = Turns::default();
}

/// The turn in which somebody begins to wait for the ring.
#[derive(Clone, Copy)]
pub(super) struct Turn(u64);

impl Turn {
    pub(super) fn current() -> Self {
        Self(TURNS.with(|turns| turns.count.get()))
    }

    /// The wait is over: so is that turn.
    pub(super) fn is_over(self) {
        TURNS.with(|turns| turns.passed(self.0));
    }
}

/// So much bulk has moved.
pub(super) fn spend(bytes: usize) {
    TURNS.with(|turns| turns.spent.set(turns.spent.get().saturating_add(bytes)));
}

/// Waits until bulk may move.
pub(super) async fn bulk() {
    if TURNS.with(Turns::is_free) {
        return;
    }
    let ticket = Ticket::take();
    ticket.is_first().await;
    while TURNS.with(|turns| turns.spent.get() >= BYTES_A_TURN) {
        let turn = Turn::current();
        worker::turn().await;
        turn.is_over();
    }
}

impl Turns {
    fn is_free(&self) -> bool {
        self.spent.get() < BYTES_A_TURN && self.queue.borrow().is_empty()
    }

    /// Whoever began to wait in the current turn and is back ends it.
    fn passed(&self, since: u64) {
        if self.count.get() == since {
            self.count.set(since + 1);
            self.spent.set(0);
        }
    }
}

/// A place in the queue, given up when dropped.
struct Ticket(u64);

impl Ticket {
    fn take() -> Self {
        TURNS.with(|turns| {
            let ticket = turns.next_ticket.get();
            turns.next_ticket.set(ticket + 1);
            turns.queue.borrow_mut().push_back((ticket, None));
            Self(ticket)
        })
    }

    async fn is_first(&self) {
        poll_fn(|cx| {
            TURNS.with(|turns| {
                let mut queue = turns.queue.borrow_mut();
                match queue.iter_mut().position(|(ticket, _)| *ticket == self.0) {
                    Some(at) if at > 0 => {
                        queue[at].1 = Some(cx.waker().clone());
                        Poll::Pending
                    }
                    _ => Poll::Ready(()),
                }
            })
        })
        .await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = TURNS.try_with(|turns| {
            let mut queue = turns.queue.borrow_mut();
            queue.retain(|(ticket, _)| *ticket != self.0);
            if let Some((_, waker)) = queue.front_mut()
                && let Some(waker) = waker.take()
            {
                waker.wake();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, pin::pin, rc::Rc};

    use futures_lite::future::{block_on, poll_once, zip};

    use super::*;
    use crate::{socket::Socket, worker::run_alone};

    #[test]
    fn who_asks_first_moves_first_and_who_leaves_lets_the_next_one_move() {
        let first = Ticket::take();
        let second = Ticket::take();
        let third = Ticket::take();
        block_on(first.is_first());
        let mut waiting = pin!(third.is_first());
        assert!(block_on(poll_once(second.is_first())).is_none());
        assert!(block_on(poll_once(waiting.as_mut())).is_none());
        drop(second);
        assert!(block_on(poll_once(waiting.as_mut())).is_none());
        drop(first);
        block_on(waiting);
    }

    #[test]
    fn a_turn_ends_for_who_began_to_wait_in_it_and_only_once() {
        TURNS.with(|turns| {
            let before = turns.count.get();
            spend(BYTES_A_TURN);
            assert!(!turns.is_free());
            turns.passed(before);
            assert!(turns.is_free());
            spend(BYTES_A_TURN);
            turns.passed(before);
            assert!(!turns.is_free(), "this one waited for the turn before");
            turns.passed(before + 1);
            assert!(turns.is_free());
        });
    }

    #[test]
    fn bulk_of_many_moves_in_turns_and_an_event_is_seen_between_any_two() {
        const CHUNKS: usize = 40;
        run_alone(false, |_| async {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let socket = Socket::adopt(ours.into()).unwrap();
            let log = Rc::new(RefCell::new(Vec::new()));
            let mover = |who: usize| {
                let log = log.clone();
                async move {
                    for _ in 0..CHUNKS {
                        bulk().await;
                        spend(BYTES_A_TURN);
                        log.borrow_mut().push(who);
                    }
                }
            };
            let other = async {
                for _ in 0..CHUNKS {
                    socket.writable().await.unwrap();
                    log.borrow_mut().push(3);
                }
            };
            zip(zip(mover(0), mover(1)), zip(mover(2), other)).await;
            let log = log.borrow();
            let last = log.iter().rposition(|who| *who == 3).unwrap();
            assert!(last <= CHUNKS * 2 + 3, "an event waited for more than one chunk: {log:?}");
            // An epoll that knows of an event tells it as often as it is asked: only those who move count.
            let moves: Vec<_> = log.iter().filter(|who| **who != 3).take(CHUNKS).collect();
            for who in 0..3 {
                let among = moves.iter().filter(|one| ***one == who).count();
                assert!((CHUNKS / 6..=CHUNKS / 2).contains(&among), "{who} moved {among} times: {log:?}");
            }
        })
        .unwrap();
    }
}
