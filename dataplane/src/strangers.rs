//! Role: the strangers of one worker: which of them leaves when somebody new needs a place.
//! Invariants: an entry lives as long as its connection is a stranger, and has not been chosen to leave · a source that
//! has few leaves none to one that has more · work that is already queued for somebody is thrown away last.
//! See: `sources`, which counts them over all workers; docs/configuration.md "Who connects".

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
};

use crate::{
    sources::{Heard, Source},
    table::Key,
};

/// A source whose tokens hold has so many times the places of another before it is the one to leave some: an office
/// of many, all of whom come back at once.
const KNOWN_WEIGHS: usize = 32;

/// What a stranger waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// For what its own peer says next.
    ForPeer,
    /// For its turn here: what it wants has been said.
    ForUs,
    /// For nothing: it has had its answer.
    Answered,
}

struct Stranger {
    arrival: u64,
    key: Key,
    waits: Waits,
}

/// The strangers of one source, in the order of their arrival: never none.
struct Group {
    is_known: bool,
    strangers: VecDeque<Stranger>,
}

/// How many a source has, for what is known of it; then when its first came. The last in this order leaves first; no
/// two sources have the same.
type Rank = (usize, Reverse<u64>);

/// All strangers of one worker.
#[derive(Default)]
pub(crate) struct Strangers {
    groups: HashMap<Source, Group>,
    ranks: BTreeMap<Rank, Source>,
    /// Those that have had their answer, in the order of that; some have left.
    answered: VecDeque<(Source, Key)>,
    len: usize,
    arrivals: u64,
}

impl Group {
    fn rank(&self) -> Rank {
        let count = self.strangers.len();
        let weighed = if self.is_known { count / KNOWN_WEIGHS } else { count };
        (weighed, Reverse(self.strangers.front().map_or(u64::MAX, |first| first.arrival)))
    }
}

impl Strangers {
    /// A connection has come.
    pub(crate) fn arrive(&mut self, from: Heard, key: Key) {
        self.arrivals += 1;
        self.len += 1;
        let stranger = Stranger { arrival: self.arrivals, key, waits: Waits::ForPeer };
        self.change(from.source, |groups| {
            let empty = || Group { is_known: false, strangers: VecDeque::new() };
            let group = groups.entry(from.source).or_insert_with(empty);
            group.is_known = from.is_known;
            group.strangers.push_back(stranger);
        });
    }

    /// It is a stranger no more, or has left.
    pub(crate) fn leave(&mut self, source: Source, key: Key) {
        let Some(group) = self.groups.get(&source) else { return };
        if let Some(at) = group.strangers.iter().position(|one| one.key == key) {
            self.remove(source, at);
        }
    }

    /// What it waits for from now on.
    pub(crate) fn waits(&mut self, source: Source, key: Key, waits: Waits) {
        let group = self.groups.get_mut(&source);
        let Some(one) = group.and_then(|group| group.strangers.iter_mut().find(|one| one.key == key)) else {
            return;
        };
        one.waits = waits;
        if waits == Waits::Answered {
            // Those that have left are dropped before they are the most.
            if self.answered.len() > 2 * self.len {
                let groups = &self.groups;
                self.answered.retain(|(source, key)| position(groups, *source, *key).is_some());
            }
            self.answered.push_back((source, key));
        }
    }

    /// Chooses who leaves: the first that has had its answer; else one of the source that has the most, which is the
    /// first that waits for its own peer, or the last of all that wait for us.
    pub(crate) fn choose(&mut self) -> Option<Key> {
        while let Some((source, key)) = self.answered.pop_front() {
            if let Some(at) = position(&self.groups, source, key) {
                return Some(self.remove(source, at));
            }
        }
        let (_, &source) = self.ranks.last_key_value()?;
        let group = &self.groups[&source];
        let idle = group.strangers.iter().position(|one| one.waits != Waits::ForUs);
        let at = idle.unwrap_or(group.strangers.len() - 1);
        Some(self.remove(source, at))
    }

    fn remove(&mut self, source: Source, at: usize) -> Key {
        self.len -= 1;
        self.change(source, |groups| {
            let group = groups.get_mut(&source).expect("it was found there");
            let gone = group.strangers.remove(at).expect("it was found there");
            if group.strangers.is_empty() {
                groups.remove(&source);
            }
            gone.key
        })
    }

    /// Changes a source's group, and its rank with it.
    fn change<R>(&mut self, source: Source, change: impl FnOnce(&mut HashMap<Source, Group>) -> R) -> R {
        if let Some(group) = self.groups.get(&source) {
            self.ranks.remove(&group.rank());
        }
        let changed = change(&mut self.groups);
        if let Some(group) = self.groups.get(&source) {
            self.ranks.insert(group.rank(), source);
        }
        changed
    }
}

fn position(groups: &HashMap<Source, Group>, source: Source, key: Key) -> Option<usize> {
    groups.get(&source)?.strangers.iter().position(|one| one.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOUD: u32 = 1;
    const QUIET: u32 = 2;
    const OFFICE: u32 = 3;

    fn key(n: u32) -> Key {
        Key::for_test(n)
    }

    fn source(n: u32) -> Source {
        Source::V4(n)
    }

    /// Strangers that have come in this order; each has its place in the order as its key.
    fn strangers(from: &[u32]) -> Strangers {
        let mut strangers = Strangers::default();
        for (n, from) in (0..).zip(from) {
            let heard = Heard { source: source(*from), is_known: *from == OFFICE };
            strangers.arrive(heard, key(n));
        }
        strangers
    }

    fn leave_all(mut strangers: Strangers) -> Vec<Key> {
        let all: Vec<_> = std::iter::from_fn(|| strangers.choose()).collect();
        assert!(strangers.groups.is_empty() && strangers.ranks.is_empty() && strangers.len == 0);
        all
    }

    #[test]
    fn the_source_that_has_the_most_leaves_first_and_of_it_whoever_came_first() {
        let strangers = strangers(&[QUIET, LOUD, LOUD, QUIET, LOUD]);
        // Where two have as many, the one whose first came first.
        assert_eq!(leave_all(strangers), [1, 0, 2, 3, 4].map(key));
    }

    #[test]
    fn an_office_whose_tokens_hold_has_many_more_before_one_leaves() {
        let from: Vec<_> = [OFFICE; 40].into_iter().chain([LOUD, LOUD]).collect();
        let mut strangers = strangers(&from);
        assert_eq!([(); 2].map(|()| strangers.choose()), [Some(key(40)), Some(key(0))]);
    }

    #[test]
    fn who_waits_for_us_stays_and_of_those_the_last_goes_first() {
        let mut strangers = strangers(&[LOUD; 4]);
        for n in [0, 2, 3] {
            strangers.waits(source(LOUD), key(n), Waits::ForUs);
        }
        strangers.waits(source(LOUD), key(2), Waits::ForPeer);
        assert_eq!(leave_all(strangers), [1, 2, 3, 0].map(key));
    }

    #[test]
    fn who_has_had_its_answer_goes_before_everybody_else() {
        let mut strangers = strangers(&[LOUD, LOUD, LOUD, QUIET, OFFICE]);
        for (from, n) in [(OFFICE, 4), (LOUD, 1), (QUIET, 3)] {
            strangers.waits(source(from), key(n), Waits::Answered);
        }
        strangers.leave(source(LOUD), key(1));
        assert_eq!(leave_all(strangers), [4, 3, 0, 2].map(key));
    }

    #[test]
    fn those_that_have_left_are_not_remembered_and_may_leave_twice() {
        let mut strangers = Strangers::default();
        for n in 0..10_000 {
            strangers.arrive(Heard { source: source(n % 7), is_known: false }, key(n));
            strangers.waits(source(n % 7), key(n), Waits::Answered);
            strangers.leave(source(n % 7), key(n));
            strangers.leave(source(n % 7), key(n));
            strangers.waits(source(n % 7), key(n), Waits::ForPeer);
        }
        assert!(strangers.answered.len() < 10, "{}", strangers.answered.len());
        assert_eq!(strangers.choose(), None);
    }
}
