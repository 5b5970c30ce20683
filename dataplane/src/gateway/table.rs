//! Role: the connections of one worker: what each of them is and whose, so that they can be counted, bounded
//! and dismissed.
//! Invariants: a key names one connection for ever: a slot that serves again has another generation ·
//! an entry lives exactly as long as its [`Seat`].
//! See: `sources`, which bounds strangers; `strangers`, which says who of them leaves.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use narrowlink_proto::ended::Why;
use slab::Slab;

use crate::gateway::{
    door::{self, Door},
    principal::Principal,
};

/// What a connection has turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody knows yet: no token has been verified.
    Stranger,
    /// A control connection.
    Link,
    /// An agent's stream, parked or in a session.
    Lane,
    /// A client's stream between two sessions.
    Stream,
    /// A client's stream in a session.
    Session,
}

const KINDS: usize = 5;

/// Names one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    slot: usize,
    generation: u32,
}

#[cfg(test)]
impl Key {
    pub(crate) fn for_test(generation: u32) -> Self {
        Self { slot: 0, generation }
    }
}

/// What every connection holds: it is small.
struct Entry {
    generation: u32,
    kind: Kind,
    /// Whose; strangers are nobody's.
    who: Option<Arc<Principal>>,
    /// It is to end.
    dismissed: Option<Why>,
    /// Of the task that waits for that.
    waker: Option<Waker>,
}

impl Entry {
    /// Has it end; the first word counts.
    fn dismiss(&mut self, why: Why) {
        self.dismissed.get_or_insert(why);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// All connections of one worker.
pub struct Table {
    door: Arc<dyn Door>,
    entries: RefCell<Entries>,
}

impl Table {
    /// An empty one; `door` knows who may be here.
    pub fn new(door: Arc<dyn Door>) -> Rc<Self> {
        Rc::new(Self { door, entries: RefCell::default() })
    }

    /// How many connections are of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.entries.borrow().counts[kind as usize]
    }

    /// Ends a stranger's connection: nobody tells it why.
    pub(crate) fn dismiss_stranger(&self, key: Key) {
        self.entries.borrow_mut().dismiss_stranger(key);
    }

    /// Dismisses every connection whose bearer may not be here any more.
    pub(crate) fn judge(&self) {
        self.entries.borrow_mut().judge(|who| door::standing(&*self.door, who));
    }

    /// Dismisses every connection that somebody has.
    pub(crate) fn dismiss_all(&self, why: Why) {
        self.entries.borrow_mut().judge(|_| Err(why));
    }
}

#[derive(Default)]
struct Entries {
    slots: Slab<Entry>,
    counts: [usize; KINDS],
    generations: u32,
}

impl Entries {
    fn insert(&mut self, kind: Kind) -> Key {
        // A slot would have to serve four billion times while somebody still held its first key.
        self.generations = self.generations.wrapping_add(1);
        let generation = self.generations;
        self.counts[kind as usize] += 1;
        let entry = Entry { generation, kind, who: None, dismissed: None, waker: None };
        Key { slot: self.slots.insert(entry), generation }
    }

    fn dismiss_stranger(&mut self, key: Key) {
        let Some(entry) = self.entry(key).filter(|entry| entry.kind == Kind::Stranger) else { return };
        entry.dismiss(Why::Reset);
    }

    fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        self.slots.get_mut(key.slot).filter(|entry| entry.generation == key.generation)
    }

    fn change(&mut self, key: Key, kind: Kind) {
        let Some(entry) = self.entry(key) else { return };
        let before = std::mem::replace(&mut entry.kind, kind);
        self.counts[before as usize] -= 1;
        self.counts[kind as usize] += 1;
    }

    fn remove(&mut self, key: Key) {
        let Some(entry) = self.entry(key) else { return };
        let kind = entry.kind;
        self.counts[kind as usize] -= 1;
        self.slots.remove(key.slot);
    }

    /// Dismisses every connection whose bearer `judge` does not let stay.
    fn judge(&mut self, judge: impl Fn(&Principal) -> Result<(), Why>) {
        for (_, entry) in &mut self.slots {
            let Some(Err(why)) = entry.who.as_deref().map(&judge) else { continue };
            entry.dismiss(why);
        }
    }
}

/// A connection's place in its worker's table, until dropped.
pub struct Seat {
    table: Rc<Table>,
    key: Key,
}

impl Seat {
    /// Seats a connection that has just arrived.
    pub(crate) fn for_stranger(table: &Rc<Table>) -> Self {
        let key = table.entries.borrow_mut().insert(Kind::Stranger);
        Self { table: table.clone(), key }
    }

    /// The connection's name in the table.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// Seats a lane that came from another worker. What was decided about its agent while it was on its way
    /// is decided again.
    pub fn for_lane(table: &Rc<Table>, agent: &Arc<Principal>) -> Self {
        let key = table.entries.borrow_mut().insert(Kind::Lane);
        let seat = Self { table: table.clone(), key };
        seat.belongs_to(agent);
        seat
    }

    /// The connection's bearer has shown a token. If that doesn't hold any more, the connection is dismissed.
    pub(crate) fn belongs_to(&self, who: &Arc<Principal>) {
        let mut entries = self.table.entries.borrow_mut();
        if let Some(entry) = entries.entry(self.key) {
            entry.who = Some(who.clone());
            entry.dismissed = door::standing(&*self.table.door, who).err();
        }
    }

    /// Returns when the connection is to end. One task may wait for it.
    pub(crate) async fn dismissed(&self) -> Why {
        poll_fn(|cx| self.poll_dismissed(cx)).await
    }

    /// As [`dismissed`](Self::dismissed).
    pub(crate) fn poll_dismissed(&self, cx: &Context<'_>) -> Poll<Why> {
        let mut entries = self.table.entries.borrow_mut();
        let Some(entry) = entries.entry(self.key) else { return Poll::Pending };
        if let Some(why) = entry.dismissed {
            return Poll::Ready(why);
        }
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The connection is this from now on.
    pub(crate) fn becomes(&self, kind: Kind) {
        self.table.entries.borrow_mut().change(self.key, kind);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.table.entries.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use futures_lite::future::{block_on, poll_once};
    use narrowlink_proto::{id::Uid, limits::Limits, message::Speaker};

    use super::*;
    use crate::gateway::kit;

    #[test]
    fn who_must_go_is_woken_by_the_first_word_and_hears_it_for_ever() {
        let worker = kit::worker(Limits::default());
        let table = &worker.local.table;
        let [home, laptop] = [&worker.home, &worker.laptop].map(|who| Seat::for_lane(table, who));
        let both =
            || block_on(async { (poll_once(home.dismissed()).await, poll_once(laptop.dismissed()).await) });
        assert_eq!(both(), (None, None));
        let (woken, news) = async_channel::bounded(1);
        let waiting = async {
            woken.try_send(home.dismissed().await).unwrap();
        };
        let judging = async {
            worker.expel("home", Why::SecretRetired);
            worker.expel("home", Why::Revoked);
            news.recv().await.unwrap()
        };
        let heard = block_on(futures_lite::future::zip(waiting, judging)).1;
        assert_eq!(heard, Why::SecretRetired);
        assert_eq!(both(), (Some(Why::SecretRetired), None));
    }

    #[test]
    fn who_lost_its_right_on_the_way_to_its_seat_is_dismissed_there() {
        let worker = kit::worker(Limits::default());
        worker.home.vanished.store(true, Ordering::Release);
        let seat = Seat::for_lane(&worker.local.table, &worker.home);
        assert_eq!(block_on(poll_once(seat.dismissed())), Some(Why::Vanished));
        drop(seat);
        // What it was told as a stranger counts no more once it is somebody.
        let seat = Seat::for_stranger(&worker.local.table);
        worker.local.table.dismiss_stranger(seat.key());
        assert_eq!(block_on(poll_once(seat.dismissed())), Some(Why::Reset));
        seat.belongs_to(&worker.laptop);
        assert_eq!(block_on(poll_once(seat.dismissed())), None);
        drop(seat);
        assert_eq!([Kind::Stranger, Kind::Lane].map(|kind| worker.count(kind)), [0, 0]);
    }

    #[test]
    fn who_may_not_stay_is_dismissed_and_nobody_else() {
        let mut table = Entries::default();
        let keys = [None, Some("a"), Some("b"), Some("a")].map(|name| {
            let key = table.insert(Kind::Session);
            table.entry(key).unwrap().who =
                name.map(|name| Arc::new(Principal::new(Speaker::Client, Uid::nil(), name)));
            key
        });
        table.judge(|who| if who.name == "a" { Err(Why::Revoked) } else { Ok(()) });
        // What was dismissed stays so, and the first word counts.
        table.judge(|who| if who.name == "a" { Err(Why::Expired) } else { Ok(()) });
        let dismissed = keys.map(|key| table.entry(key).unwrap().dismissed);
        assert_eq!(dismissed, [None, Some(Why::Revoked), None, Some(Why::Revoked)]);
    }

    #[test]
    fn a_stranger_is_dismissed_and_nobody_that_has_become_somebody() {
        let mut table = Entries::default();
        let keys: Vec<_> = (0..3).map(|_| table.insert(Kind::Stranger)).collect();
        table.change(keys[0], Kind::Session);
        table.remove(keys[1]);
        for key in &keys {
            table.dismiss_stranger(*key);
        }
        let mut dismissed = |key| table.entry(key).is_some_and(|entry| entry.dismissed.is_some());
        assert_eq!([0, 1, 2].map(|n| dismissed(keys[n])), [false, false, true]);
    }

    #[test]
    fn a_key_never_names_the_next_connection_in_its_slot() {
        let mut table = Entries::default();
        let first = table.insert(Kind::Stranger);
        table.remove(first);
        let second = table.insert(Kind::Lane);
        assert_eq!(first.slot, second.slot);
        table.change(first, Kind::Session);
        table.remove(first);
        assert_eq!((table.counts[Kind::Lane as usize], table.counts[Kind::Session as usize]), (1, 0));
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 32, "{} bytes", size_of::<Entry>());
    }

    #[test]
    fn counts_follow_what_connections_become() {
        let mut table = Entries::default();
        let key = table.insert(Kind::Stranger);
        table.change(key, Kind::Session);
        assert_eq!((table.counts[Kind::Stranger as usize], table.counts[Kind::Session as usize]), (0, 1));
        table.remove(key);
        assert_eq!(table.counts[Kind::Session as usize], 0);
    }
}
