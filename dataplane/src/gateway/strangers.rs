//! Role: the strangers of one worker: which of them leaves when somebody new needs a place.
//! Invariants: an entry lives as long as its connection is a stranger, and has not been chosen to leave · who has few
//! leaves none to one that has more · work that is already queued for somebody is thrown away last.
//! See: `sources`, which counts them over all workers; docs/configuration.md "Who connects".

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
};

use crate::{
    gateway::{
        sources::{Bearer, Heard},
        table::Key,
    },
    run::source::Source,
};

/// So many of those from where a token has held weigh as much as one of another source: an office of many, all of whom
/// come back at once.
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
    /// Its place among those that have had their answer.
    answer: Option<u64>,
}

/// Those who are weighed together: of one source, or of all from where the same token has held. So one token with many
/// addresses is worth no more than with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Whose {
    Source(Source),
    Bearer(Bearer),
}

impl From<Heard> for Whose {
    fn from(heard: Heard) -> Self {
        heard.known_by.map_or(Self::Source(heard.source), Self::Bearer)
    }
}

/// In the order of their arrival: never none.
#[derive(Default)]
struct Group(VecDeque<Stranger>);

/// How much a group weighs; then when its first came. The last in this order leaves first; no two groups have the same.
type Rank = (usize, Reverse<u64>);

/// All strangers of one worker.
#[derive(Default)]
pub(crate) struct Strangers {
    groups: HashMap<Whose, Group>,
    ranks: BTreeMap<Rank, Whose>,
    /// Those that have had their answer, in the order of that.
    answered: BTreeMap<u64, (Whose, Key)>,
    answers: u64,
    arrivals: u64,
}

impl Group {
    fn rank(&self, whose: Whose) -> Rank {
        let weight = match whose {
            Whose::Source(_) => self.0.len(),
            Whose::Bearer(_) => self.0.len().div_ceil(KNOWN_WEIGHS),
        };
        (weight, Reverse(self.0.front().map_or(u64::MAX, |first| first.arrival)))
    }

    fn position(&self, key: Key) -> Option<usize> {
        self.0.iter().position(|one| one.key == key)
    }
}

impl Strangers {
    /// A connection has come.
    pub(crate) fn arrive(&mut self, from: Heard, key: Key) {
        self.arrivals += 1;
        let stranger = Stranger { arrival: self.arrivals, key, waits: Waits::ForPeer, answer: None };
        self.change(from.into(), |groups, whose| groups.entry(whose).or_default().0.push_back(stranger));
    }

    /// It is a stranger no more, or has left.
    pub(crate) fn leave(&mut self, from: Heard, key: Key) {
        self.leave_group(from.into(), key);
    }

    fn leave_group(&mut self, whose: Whose, key: Key) {
        if let Some(at) = self.position(whose, key) {
            self.remove(whose, at);
        }
    }

    /// What it waits for from now on.
    pub(crate) fn waits(&mut self, from: Heard, key: Key, waits: Waits) {
        let whose = from.into();
        let Some(at) = self.position(whose, key) else { return };
        let group = self.groups.get_mut(&whose).expect("it was found there");
        let one = &mut group.0[at];
        one.waits = waits;
        if waits == Waits::Answered && one.answer.is_none() {
            self.answers += 1;
            one.answer = Some(self.answers);
            self.answered.insert(self.answers, (whose, key));
        }
    }

    /// How much those weigh of whom one would be chosen to leave.
    pub(crate) fn heaviest(&self) -> usize {
        if !self.answered.is_empty() {
            return usize::MAX;
        }
        self.ranks.last_key_value().map_or(0, |(rank, _)| rank.0)
    }

    /// Chooses who leaves: the first that has had its answer; else one of the heaviest group, which is the first that waits
    /// for its own peer, or the last of all that wait for us.
    pub(crate) fn choose(&mut self) -> Option<Key> {
        if let Some((_, &(whose, key))) = self.answered.first_key_value() {
            self.leave_group(whose, key);
            return Some(key);
        }
        let (_, &whose) = self.ranks.last_key_value()?;
        let group = &self.groups[&whose].0;
        let idle = group.iter().position(|one| one.waits != Waits::ForUs);
        let at = idle.unwrap_or(group.len() - 1);
        Some(self.remove(whose, at))
    }

    fn position(&self, whose: Whose, key: Key) -> Option<usize> {
        self.groups.get(&whose)?.position(key)
    }

    fn remove(&mut self, whose: Whose, at: usize) -> Key {
        let gone = self.change(whose, |groups, whose| {
            let group = groups.get_mut(&whose).expect("it was found there");
            let gone = group.0.remove(at).expect("it was found there");
            if group.0.is_empty() {
                groups.remove(&whose);
            }
            gone
        });
        if let Some(answer) = gone.answer {
            self.answered.remove(&answer);
        }
        gone.key
    }

    /// Changes a group, and its rank with it.
    fn change<R>(&mut self, whose: Whose, change: impl FnOnce(&mut HashMap<Whose, Group>, Whose) -> R) -> R {
        if let Some(group) = self.groups.get(&whose) {
            self.ranks.remove(&group.rank(whose));
        }
        let changed = change(&mut self.groups, whose);
        if let Some(group) = self.groups.get(&whose) {
            self.ranks.insert(group.rank(whose), whose);
        }
        changed
    }
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

    /// Where strangers of this number come from.
    fn heard(n: u32) -> Heard {
        let known_by = (n >= OFFICE).then_some(Bearer(7));
        Heard { source: Source::V4(n), known_by }
    }

    /// Strangers that have come in this order; each has its place in the order as its key.
    fn strangers(from: &[u32]) -> Strangers {
        let mut strangers = Strangers::default();
        (0..).zip(from).for_each(|(n, from)| strangers.arrive(heard(*from), key(n)));
        strangers
    }

    fn leave_all(mut strangers: Strangers) -> Vec<Key> {
        let all: Vec<_> = std::iter::from_fn(|| strangers.choose()).collect();
        assert!(strangers.groups.is_empty() && strangers.ranks.is_empty() && strangers.answered.is_empty());
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
        let from: Vec<_> = [OFFICE; 40].into_iter().chain([LOUD, LOUD, LOUD]).collect();
        let mut strangers = strangers(&from);
        // Where both weigh as much, the one whose first came first.
        assert_eq!([(); 2].map(|()| strangers.choose()), [Some(key(40)), Some(key(0))]);
    }

    #[test]
    fn a_token_with_many_addresses_is_weighed_as_one() {
        let offices = (OFFICE..OFFICE + 70).flat_map(|office| [office; 29]);
        let mut strangers = strangers(&[QUIET].into_iter().chain(offices).collect::<Vec<_>>());
        assert_eq!(strangers.heaviest(), 64);
        let left: Vec<_> = (0..1_966).map(|_| strangers.choose().unwrap()).collect();
        assert!(!left.contains(&key(0)), "nobody else has left for them");
    }

    #[test]
    fn who_waits_for_us_stays_and_of_those_the_last_goes_first() {
        let mut strangers = strangers(&[LOUD; 4]);
        for n in [0, 2, 3] {
            strangers.waits(heard(LOUD), key(n), Waits::ForUs);
        }
        strangers.waits(heard(LOUD), key(2), Waits::ForPeer);
        assert_eq!(leave_all(strangers), [1, 2, 3, 0].map(key));
    }

    #[test]
    fn who_has_had_its_answer_goes_before_everybody_else() {
        let mut strangers = strangers(&[LOUD, LOUD, LOUD, QUIET, OFFICE]);
        for (from, n) in [(OFFICE, 4), (LOUD, 1), (QUIET, 3)] {
            strangers.waits(heard(from), key(n), Waits::Answered);
        }
        assert_eq!(strangers.heaviest(), usize::MAX, "whoever has these has the first to leave");
        strangers.leave(heard(LOUD), key(1));
        assert_eq!(leave_all(strangers), [4, 3, 0, 2].map(key));
    }

    #[test]
    fn those_that_have_left_are_not_remembered_and_may_leave_twice() {
        let mut strangers = Strangers::default();
        for n in 0..10_000 {
            let from = heard(n % 7);
            strangers.arrive(from, key(n));
            strangers.waits(from, key(n), Waits::Answered);
            strangers.leave(from, key(n));
            strangers.leave(from, key(n));
            strangers.waits(from, key(n), Waits::ForPeer);
        }
        assert!(strangers.answered.len() < 10, "{}", strangers.answered.len());
        assert_eq!((strangers.choose(), strangers.heaviest()), (None, 0));
    }
}
