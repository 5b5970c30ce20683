//! Role: how much work a worker does between two turns of the ring, and how much of it one connection may
//! cause before the others are looked at again.
//! Invariants: every read of a socket is paid for from the socket's [`Account`], and an account that is empty
//! makes the next read say `WouldBlock`, so that a loop that reads can't help taking a turn · an account is
//! filled by a real wait for the kernel, or by a turn in the queue of all that have work left · between two
//! turns a bounded amount of queued work is done, and the queue is served in order · a connection that causes
//! little work never waits here.
//! See: ARCHITECTURE.md "Turns".

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    task::{Poll, Waker},
};

use crate::worker;

/// Work is counted in bytes of bulk that take as long to move: about 5,000 are a microsecond. So much queued
/// work is done between two turns: about 100 µs, the longest wait of a keystroke.
const TURN: usize = 512 * 1024;
/// What one connection may cause without a turn: about 12 µs, a full small buffer and three messages.
const ALLOWANCE: i32 = 64 * 1024;

/// A system call that moves bytes.
pub(crate) const CALL: usize = 4 * 1024;
/// A frame: its header, and its place in the list of what leaves.
pub(crate) const FRAME: usize = 256;
/// A TLS record: its key stream is set up and its tag compared, however short it is.
pub(crate) const RECORD: usize = 512;
/// A message: parsed, and answered.
pub(crate) const MESSAGE: usize = 8 * 1024;
/// A key derived, and an answer sealed.
pub(crate) const NEW_KEY: usize = 16 * 1024;
/// An Open refused, and said in the log.
pub(crate) const DECISION: usize = 64 * 1024;
/// A TLS handshake: a signature and a key exchange.
pub(crate) const HANDSHAKE: usize = 512 * 1024;

/// What one connection may still cause in this turn.
#[derive(Debug)]
pub(crate) struct Account {
    left: Cell<i32>,
}

impl Account {
    pub(crate) const fn new() -> Self {
        Self { left: Cell::new(ALLOWANCE) }
    }

    /// Whether nothing is left: the connection waits for its turn before it causes more.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.get() <= 0
    }

    /// Takes `work` from what is left. One read or message may overdraw it.
    pub(crate) fn spend(&self, work: usize) {
        let less = i32::try_from(work).unwrap_or(i32::MAX);
        self.left.set(self.left.get().saturating_sub(less));
        TURNS.with(|turns| turns.spend(work));
    }

    /// The connection has waited for the kernel, or for its turn.
    pub(crate) fn fill(&self) {
        self.left.set(ALLOWANCE);
    }
}

struct Turns {
    /// Which turn of the ring this is, as far as anybody noticed.
    count: Cell<u64>,
    /// Work done in it.
    spent: Cell<usize>,
    /// The connections that wait, by ticket; the first sees to the next turn.
    queue: RefCell<VecDeque<(u64, Option<Waker>)>>,
    next_ticket: Cell<u64>,
}

thread_local! {
    static TURNS: Turns = const {
        Turns {
            count: Cell::new(0),
            spent: Cell::new(0),
            queue: RefCell::new(VecDeque::new()),
            next_ticket: Cell::new(0),
        }
    };
}

/// The turn in which a wait for the ring begins.
#[derive(Clone, Copy)]
pub(crate) struct Turn(u64);

impl Turn {
    pub(crate) fn current() -> Self {
        Self(TURNS.with(|turns| turns.count.get()))
    }

    /// The wait is over: so is that turn.
    pub(crate) fn is_over(&self) {
        TURNS.with(|turns| turns.passed(self.0));
    }
}

/// Waits until queued work may be done, behind all that wait already.
pub(crate) async fn turn() {
    if TURNS.with(Turns::is_free) {
        return;
    }
    let ticket = Ticket::take();
    ticket.is_first().await;
    while TURNS.with(Turns::is_used_up) {
        let turn = Turn::current();
        worker::turn().await;
        turn.is_over();
    }
}

impl Turns {
    fn spend(&self, work: usize) {
        self.spent.set(self.spent.get().saturating_add(work));
    }

    fn is_used_up(&self) -> bool {
        self.spent.get() >= TURN
    }

    fn is_free(&self) -> bool {
        !self.is_used_up() && self.queue.borrow().is_empty()
    }

    /// A task that began to wait in the current turn and is back ends it.
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
    fn the_first_in_the_queue_moves_first_and_one_that_leaves_lets_the_next_move() {
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
    fn a_turn_ends_when_a_wait_that_began_in_it_ends_and_only_once() {
        TURNS.with(|turns| {
            let before = turns.count.get();
            turns.spend(TURN);
            assert!(!turns.is_free());
            turns.passed(before);
            assert!(turns.is_free());
            turns.spend(TURN);
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
                        turn().await;
                        TURNS.with(|turns| turns.spend(TURN));
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
