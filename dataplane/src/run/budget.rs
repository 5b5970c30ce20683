//! Role: how much work a worker does between two turns of the ring, and how much of it one connection may
//! cause before the others are looked at again.
//! Invariants: every read of a socket is paid for from the socket's [`Account`], and an account that is empty
//! makes the next read say `WouldBlock`, so that a loop that reads can't help taking a turn · an account is
//! filled by a real wait for the kernel, or by a turn in the queue of all that have work left · between two
//! turns a bounded amount of queued work is done · the queue goes round among shares, one place each in a round,
//! so that many connections of one user are worth no more than one · a connection that causes little work never
//! waits here.
//! See: ARCHITECTURE.md "Turns".

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use narrowlink_proto::id::Uid;
use pin_project_lite::pin_project;

use crate::run::worker;

/// Work is counted in bytes of bulk that take as long to move: about 5,000 are a microsecond. So much queued
/// work is done between two turns: about 100 µs, the longest wait of a keystroke.
const TURN: usize = 512 * 1024;
/// What one connection may cause without a turn: about 12 µs, a full small buffer and three messages.
const ALLOWANCE: i32 = 64 * 1024;

/// A system call that moves bytes.
pub(crate) const CALL: usize = 4 * 1024;
/// Of bytes that go from socket to socket uncopied, so many take as long as one that is copied.
pub(crate) const SPLICED: usize = 2;
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

/// Shares that are remembered before those are forgotten that wait for nothing.
const SHARES_MIN: usize = 64;

/// Whose share of the turns a connection takes. Those of all strangers of a kind have one place together in each round,
/// and take it in rounds of their own, in which each source has one; those from where tokens have held, each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    whose: u32,
    /// Among strangers: the number of its source, or of the token that has held there.
    within: u32,
}

impl Share {
    /// Of those who have not said yet who they are, and come from where nobody is known.
    const STRANGERS: u32 = 0;
    /// Of those who come from where tokens have held lately.
    const KNOWN: u32 = 1;
    /// Of strangers from whom nothing more is wanted: what they still send is only thrown away.
    const LEAVING: u32 = 2;
    /// How many kinds of strangers there are.
    const KINDS: usize = 3;
    /// An agent's or a client's own connections are all of this one.
    pub(crate) const OWN: Self = Self { whose: 3, within: 0 };
    const FIRST_USER: u32 = 4;

    /// A stranger's whose source has this number.
    pub(crate) fn of_stranger(source: u32) -> Self {
        Self { whose: Self::STRANGERS, within: source }
    }

    /// A stranger's from where a token with this number has held.
    pub(crate) fn of_known(token: u16) -> Self {
        Self { whose: Self::KNOWN, within: token.into() }
    }

    /// A stranger's who has had its answer.
    pub(crate) fn leaving(self) -> Self {
        Self { whose: Self::LEAVING, ..self }
    }

    /// Which kind of strangers' it is, if it is one.
    fn kind(self) -> Option<usize> {
        usize::try_from(self.whose).ok().filter(|kind| *kind < Self::KINDS)
    }

    /// A user's, with all agents and clients.
    pub(crate) fn of(uid: Uid) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *uid.as_bytes();
        let parts = [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]];
        let folded = parts.map(u32::from_ne_bytes).into_iter().fold(0, |all, part| all ^ part);
        Self { whose: folded.max(Self::FIRST_USER), within: 0 }
    }
}

/// What one connection may still cause in this turn, and who has its next one.
#[derive(Debug)]
pub(crate) struct Account {
    left: Cell<i32>,
    share: Cell<Share>,
}

impl Account {
    pub(crate) const fn new() -> Self {
        Self { left: Cell::new(ALLOWANCE), share: Cell::new(Share::OWN) }
    }

    pub(crate) fn share(&self) -> Share {
        self.share.get()
    }

    /// The connection is somebody else's from now on.
    pub(crate) fn belongs_to(&self, share: Share) {
        self.share.set(share);
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

    /// Takes the connection's turn among all that have work left, whether its share is used up or not: for work that
    /// is much in one piece.
    pub(crate) async fn turn(&self) {
        turn(self.share()).await;
        self.fill();
    }

    /// Takes a turn if the connection has used its share of the present one.
    pub(crate) async fn breathe(&self) {
        if self.is_empty() {
            // Boxed: a connection that waits for the kernel holds nothing of it.
            Box::pin(self.turn()).await;
        }
    }

    /// Waits until `ready`, which is an event of the kernel's or of memory.
    pub(crate) fn wait<F: Future<Output = io::Result<()>>>(&self, ready: F) -> Wait<'_, F> {
        Wait { account: self, turn: Turn::current(), suspended: false, ready }
    }
}

pin_project! {
    /// A wait for an event. One that suspends lets all others have their turn; on epoll, a wait for what is ready
    /// already does not.
    pub(crate) struct Wait<'a, F> {
        account: &'a Account,
        turn: Turn,
        suspended: bool,
        #[pin]
        ready: F,
    }
}

impl<F: Future<Output = io::Result<()>>> Future for Wait<'_, F> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = this.ready.poll(cx);
        if polled.is_pending() {
            *this.suspended = true;
        } else if *this.suspended {
            this.turn.is_over();
            this.account.fill();
        }
        polled
    }
}

struct Turns {
    /// Which turn of the ring this is, as far as anybody noticed.
    count: Cell<u64>,
    /// Work done in it.
    spent: Cell<usize>,
    /// All that wait, but for strangers: of each kind of them, the first.
    queue: RefCell<Queue>,
    /// The strangers that wait, by kind.
    strangers: [RefCell<Queue>; Share::KINDS],
}

/// Those that wait, in rounds among those whose they are.
struct Queue {
    /// In their order; the first moves.
    waiting: VecDeque<(Number, Option<Waker>)>,
    /// The round that is served.
    round: u64,
    /// The last round in which anybody has a place.
    last: BTreeMap<u32, u64>,
    next_ticket: u64,
}

/// A place in the queue: by round, and within it by arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Number {
    round: u64,
    ticket: u64,
}

impl Queue {
    const fn new() -> Self {
        Self { waiting: VecDeque::new(), round: 0, last: BTreeMap::new(), next_ticket: 0 }
    }

    /// Adds one more of `whose`: in the first round in which that has no place yet.
    fn enter(&mut self, whose: u32) -> Number {
        let last = self.last.get(&whose).filter(|last| **last >= self.round);
        let number = Number { round: last.map_or(self.round, |last| last + 1), ticket: self.next_ticket };
        self.next_ticket += 1;
        if self.last.len() > SHARES_MIN.max(2 * self.waiting.len()) {
            let round = self.round;
            self.last.retain(|_, last| *last >= round);
        }
        self.last.insert(whose, number.round);
        let at = self.waiting.partition_point(|(other, _)| *other < number);
        self.waiting.insert(at, (number, None));
        number
    }

    fn position(&self, number: Number) -> Option<usize> {
        self.waiting.binary_search_by_key(&number, |(number, _)| *number).ok()
    }
}

thread_local! {
    static TURNS: Turns = const {
        Turns {
            count: Cell::new(0),
            spent: Cell::new(0),
            queue: RefCell::new(Queue::new()),
            strangers: [const { RefCell::new(Queue::new()) }; Share::KINDS],
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

/// Waits until queued work may be done, when it is this share's turn.
pub(crate) async fn turn(share: Share) {
    if TURNS.with(Turns::is_free) {
        return;
    }
    let _first_of_its_kind = match share.kind() {
        Some(kind) => Some(Ticket::first(Which::Strangers(kind), share.within).await),
        None => None,
    };
    let _first = Ticket::first(Which::All, share.whose).await;
    while TURNS.with(Turns::is_used_up) {
        pass().await;
    }
}

/// Lets everything else on this worker have its turn (see [`worker::turn`]); what is done behind it is the next one's.
pub(crate) async fn pass() {
    let turn = Turn::current();
    worker::turn().await;
    turn.is_over();
}

impl Turns {
    fn queue(&self, which: Which) -> &RefCell<Queue> {
        match which {
            Which::All => &self.queue,
            Which::Strangers(kind) => &self.strangers[kind],
        }
    }

    fn spend(&self, work: usize) {
        self.spent.set(self.spent.get().saturating_add(work));
    }

    fn is_used_up(&self) -> bool {
        self.spent.get() >= TURN
    }

    fn is_free(&self) -> bool {
        !self.is_used_up() && self.queue.borrow().waiting.is_empty()
    }

    /// A task that began to wait in the current turn and is back ends it.
    fn passed(&self, since: u64) {
        if self.count.get() == since {
            self.count.set(since + 1);
            self.spent.set(0);
        }
    }
}

#[derive(Clone, Copy)]
enum Which {
    /// The one whose first moves.
    All,
    /// That of a kind of strangers: its first goes into the other.
    Strangers(usize),
}

/// A place in a queue, given up when dropped.
struct Ticket {
    which: Which,
    number: Number,
}

impl Ticket {
    fn take(which: Which, whose: u32) -> Self {
        Self { which, number: TURNS.with(|turns| turns.queue(which).borrow_mut().enter(whose)) }
    }

    /// A place of `whose`, when it is the first.
    async fn first(which: Which, whose: u32) -> Self {
        let ticket = Self::take(which, whose);
        ticket.is_first().await;
        ticket
    }

    async fn is_first(&self) {
        poll_fn(|cx| {
            TURNS.with(|turns| {
                let mut queue = turns.queue(self.which).borrow_mut();
                match queue.position(self.number) {
                    Some(at) if at > 0 => {
                        queue.waiting[at].1 = Some(cx.waker().clone());
                        Poll::Pending
                    }
                    _ => {
                        // Whoever comes now comes behind it.
                        queue.round = queue.round.max(self.number.round);
                        Poll::Ready(())
                    }
                }
            })
        })
        .await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = TURNS.try_with(|turns| {
            let mut queue = turns.queue(self.which).borrow_mut();
            if let Some(at) = queue.position(self.number) {
                queue.waiting.remove(at);
            }
            if let Some((_, waker)) = queue.waiting.front_mut()
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
    use crate::{net::plain::Plain, run::worker::run_alone};

    #[test]
    fn the_first_in_the_queue_moves_first_and_one_that_leaves_lets_the_next_move() {
        let [first, second, third] = [(); 3].map(|()| Ticket::take(Which::All, 7));
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
    fn a_share_with_many_connections_has_one_place_in_each_round() {
        let mut queue = Queue::new();
        let user = |n| Share::of(Uid::from_u128(n)).whose;
        assert_eq!(Share::of(Uid::nil()).kind(), None);
        let mut names = BTreeMap::new();
        let mut enter = |queue: &mut Queue, share, name| names.insert(queue.enter(share), name);
        for name in ["many 1", "many 2", "many 3"] {
            enter(&mut queue, user(7), name);
        }
        enter(&mut queue, user(8), "one");
        enter(&mut queue, Share::LEAVING, "leaving");
        // The first of the second round is served: who comes now has a place in it, but for who had one.
        queue.round = 1;
        enter(&mut queue, user(9), "new");
        enter(&mut queue, user(8), "one again");
        let order: Vec<_> = queue.waiting.iter().map(|(number, _)| names[number]).collect();
        assert_eq!(order, ["many 1", "one", "leaving", "many 2", "new", "one again", "many 3"]);
    }

    #[test]
    fn a_source_waits_for_no_more_than_one_stranger_of_each_other() {
        const SOURCES: u32 = 20;
        const EACH: u32 = 50;
        let share = |is_known, n: u32| match is_known {
            true => Share::of_known(n.try_into().unwrap()),
            false => Share::of_stranger(n),
        };
        let moved = Rc::new(RefCell::new(Vec::new()));
        let log = moved.clone();
        run_alone(false, move |_| async move {
            let mover = |is_known, source| {
                let log = log.clone();
                async move {
                    turn(share(is_known, source)).await;
                    TURNS.with(|turns| turns.spend(TURN));
                    log.borrow_mut().push(source);
                }
            };
            TURNS.with(|turns| turns.spend(TURN));
            let flood = (0..SOURCES * EACH).map(|n| (false, n / EACH));
            let others = [(false, SOURCES), (false, SOURCES), (true, SOURCES + 1)];
            let mut waiting: Vec<_> =
                flood.chain(others).map(|(is_known, source)| Box::pin(mover(is_known, source))).collect();
            poll_fn(|cx| {
                waiting.retain_mut(|one| one.as_mut().poll(cx).is_pending());
                if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        })
        .unwrap();
        let moved = moved.borrow();
        let nth = |source, n| moved.iter().enumerate().filter(|(_, one)| **one == source).nth(n).unwrap().0;
        let (first, second, known) = (nth(SOURCES, 0), nth(SOURCES, 1), nth(SOURCES + 1, 0));
        let round = SOURCES as usize + 2;
        assert!(first <= round && second <= 2 * round, "{first}, {second}");
        assert!(known <= 3, "{known}");
    }

    #[test]
    fn shares_that_wait_for_nothing_are_forgotten() {
        let mut queue = Queue::new();
        for n in 0..10_000 {
            let number = queue.enter(n);
            queue.round = number.round + 1;
            queue.waiting.clear();
        }
        assert!(queue.last.len() <= SHARES_MIN + 1, "{}", queue.last.len());
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
            let socket = Plain::adopt(ours.into()).unwrap();
            let log = Rc::new(RefCell::new(Vec::new()));
            let mover = |who: usize| {
                let log = log.clone();
                async move {
                    for _ in 0..CHUNKS {
                        turn(Share::OWN).await;
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
