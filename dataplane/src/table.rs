//! Role: the connections of one worker: what each of them is, so that they can be counted and bounded.
//! Invariants: a key names one connection for ever: a slot that serves again has another generation ·
//! an entry lives exactly as long as its [`Seat`] · strangers are bounded, whatever arrives.

use std::rc::Rc;

use slab::Slab;

use crate::handover::Local;

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
struct Key {
    slot: usize,
    generation: u64,
}

struct Entry {
    generation: u64,
    kind: Kind,
}

/// All connections of one worker.
#[derive(Default)]
pub struct Table {
    entries: Slab<Entry>,
    counts: [usize; KINDS],
    generations: u64,
}

impl Table {
    fn insert(&mut self, kind: Kind) -> Key {
        self.generations += 1;
        let generation = self.generations;
        self.counts[kind as usize] += 1;
        Key { slot: self.entries.insert(Entry { generation, kind }), generation }
    }

    fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(key.slot).filter(|entry| entry.generation == key.generation)
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
        self.entries.remove(key.slot);
    }

    /// How many connections are of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.counts[kind as usize]
    }
}

/// A connection's place in its worker's table, until dropped.
pub struct Seat {
    local: Rc<Local>,
    key: Key,
}

impl Seat {
    /// Seats a connection that has just arrived; `None` when there are too many strangers already.
    pub(crate) fn for_stranger(local: &Rc<Local>) -> Option<Self> {
        // The limit is for the whole gateway; the kernel spreads connections evenly over the workers.
        let max = local.shared.limits.strangers_max.div_ceil(local.shared.workers());
        let mut table = local.table.borrow_mut();
        (table.count(Kind::Stranger) < max).then(|| {
            let key = table.insert(Kind::Stranger);
            Self { local: local.clone(), key }
        })
    }

    /// Seats a lane that came from another worker.
    pub fn for_lane(local: &Rc<Local>) -> Self {
        let key = local.table.borrow_mut().insert(Kind::Lane);
        Self { local: local.clone(), key }
    }

    /// The connection is this from now on.
    pub(crate) fn becomes(&self, kind: Kind) {
        self.local.table.borrow_mut().change(self.key, kind);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.local.table.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_names_the_next_connection_in_its_slot() {
        let mut table = Table::default();
        let first = table.insert(Kind::Stranger);
        table.remove(first);
        let second = table.insert(Kind::Lane);
        assert_eq!(first.slot, second.slot);
        table.change(first, Kind::Session);
        table.remove(first);
        assert_eq!((table.count(Kind::Lane), table.count(Kind::Session)), (1, 0));
    }

    #[test]
    fn counts_follow_what_connections_become() {
        let mut table = Table::default();
        let key = table.insert(Kind::Stranger);
        table.change(key, Kind::Session);
        assert_eq!((table.count(Kind::Stranger), table.count(Kind::Session)), (0, 1));
        table.remove(key);
        assert_eq!(table.count(Kind::Session), 0);
    }
}
