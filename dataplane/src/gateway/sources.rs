//! Role: what comes from where: the strangers of each source, how fast they come, and its failed logins.
//! Invariants: an entry is remembered as long as it limits something, and the table never grows beyond its bound · a
//! new entry takes the place of the one that would be forgotten first, so a penalty outlives any number of cheaper
//! entries · a source whose tokens hold is never held up by the failures of others behind its address alone · one
//! short lock at arrival and one at the end of it, none on the way of a byte.
//! See: docs/configuration.md "Limits"; ITU-T I.371 (GCRA).
//!
//! A source is an IPv4 address or an IPv6 /64. An office behind one address is a source, too, so a penalty is no lock:
//! a token is always verified before anything is counted (an HMAC costs less than the connection that brought it), a
//! verified one gives back what its connection took of the rate, and only failures are punished. While a penalty
//! lasts, a source gets a tenth of the new connections that it would get otherwise; the rest is reset before anything
//! is read, so that guessing costs a connection and no handshake. What gets through is answered as always, in the
//! same words for every cause. A source that has shown a good token lately gets ten times as much: its programs may
//! all come back at once.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use narrowlink_proto::{id::Uid, limits::Limits};

use crate::run::{lock::lock, source::Source};

const SHARDS: usize = 64;
/// How much more a source gets that has shown a good token, and how much less one that is punished.
const FACTOR: u64 = 10;
/// How long a good token is remembered.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// Failed logins are rated by the minute.
const MINUTE: Duration = Duration::from_secs(60);
/// So many strangers of one source find room, whoever else comes: as many as a browser opens at once, and some.
const FEW: usize = 8;
/// Strangers that are to leave for newer ones and have not yet, at the most: an eighth of all.
const SURPLUS_PART: usize = 8;
/// What makes room takes an eighth of a shard with it: each entry is looked at a few times, not at every arrival.
const ROOM_PART: usize = 8;

/// Why a connection is not even heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// Its source has as many strangers as it may.
    #[error("its source has as many connections without a token as it may")]
    Source,
    /// Its source opens connections faster than it may.
    #[error("its source opens connections faster than it may")]
    Rate,
    /// There are as many strangers as there may be, and this is the first of its source.
    #[error("there are as many connections without a token as there may be")]
    All,
}

/// All sources of this gateway.
pub struct Sources {
    start: Instant,
    keys: RandomState,
    shards: Vec<Mutex<HashMap<Source, Entry>>>,
    strangers: AtomicUsize,
    /// As many as the process has descriptors for, whatever the limits say.
    strangers_max: usize,
}

/// What is known of one source. Times are nanoseconds since the table was made.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    strangers: u32,
    /// Whose token made it known.
    known_by: Bearer,
    /// The penalties in a row.
    penalties: u8,
    /// When all its arrivals are paid for.
    arrivals_paid_at: u64,
    /// When all its failed logins are.
    failures_paid_at: u64,
    penalty_until: u64,
    known_until: u64,
}

impl Entry {
    /// From when on it limits nothing; an entry with strangers always does.
    fn forgotten_at(&self) -> u64 {
        // Who was punished has a clean minute to show before the next penalty is a first one.
        let clean = if self.penalties > 0 { self.penalty_until + nanos(MINUTE) } else { 0 };
        clean.max(self.arrivals_paid_at).max(self.failures_paid_at).max(self.known_until)
    }

    fn is_needed(&self, now: u64) -> bool {
        self.strangers > 0 || self.forgotten_at() > now
    }

    /// The ordinary limit, changed by what is known of the source.
    fn scaled(&self, limit: u64, now: u64) -> u64 {
        let more = if self.known_until > now { FACTOR } else { 1 };
        let less = if self.penalty_until > now { FACTOR } else { 1 };
        (limit.saturating_mul(more) / less).max(1)
    }
}

/// A source, and what was known of it when somebody came from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Where the connection comes from.
    pub source: Source,
    /// Whose token has held there lately.
    pub known_by: Option<Bearer>,
}

/// A number of a token's: hardly any two have the same, and nobody can choose it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Bearer(pub u16);

/// A stranger's place, until it is dropped.
pub struct Place {
    /// Whose.
    pub heard: Heard,
    /// A number of its source's: hardly any two have the same, and nobody can choose it.
    pub number: u32,
    /// What its arrival cost, to be given back.
    price: u64,
}

impl Sources {
    /// No source is known. `strangers_max` is what there are descriptors for.
    pub fn new(strangers_max: usize, now: Instant) -> Self {
        Self {
            start: now,
            keys: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            strangers: AtomicUsize::new(0),
            strangers_max,
        }
    }

    /// How many strangers there are.
    pub fn strangers(&self) -> usize {
        self.strangers.load(Ordering::Relaxed)
    }

    fn since_start(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }

    fn number(&self, source: Source) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let number = self.keys.hash_one(source) as u32;
        number
    }

    /// That of the sources with this number.
    fn shard(&self, number: u32) -> MutexGuard<'_, HashMap<Source, Entry>> {
        let index = number as usize % SHARDS;
        lock(&self.shards[index])
    }

    /// Whether somebody new may come before the older stranger that is to leave for it has done so.
    pub(crate) fn may_replace(&self, limits: &Limits) -> bool {
        let max = limits.strangers_max.min(self.strangers_max);
        self.strangers() <= max + max / SURPLUS_PART
    }

    /// A connection has come. `instead` says whether an older stranger left for it.
    ///
    /// # Errors
    /// See [`Unheard`]: it is to be cut off.
    pub fn arrive(
        &self,
        source: Source,
        limits: &Limits,
        now: Instant,
        instead: bool,
    ) -> Result<Place, Unheard> {
        let now = self.since_start(now);
        let number = self.number(source);
        let mut shard = self.shard(number);
        let entry = shard.get(&source).copied().unwrap_or_default();
        let max = limits.strangers_max.min(self.strangers_max);
        let free = max.saturating_sub(self.strangers());
        let mine = entry.strangers as usize;
        let mine_max = entry.scaled(limits.strangers_per_source_max as u64, now);
        // Nobody has more than are free: so there is always one for the next. But a few are nobody's fault, and neither are
        // those of an office whose tokens hold: the oldest of all leaves for them.
        let few = if entry.known_until > now { max / SURPLUS_PART } else { FEW.min(max / SURPLUS_PART) };
        if mine as u64 >= mine_max || (mine >= few.max(1) && mine >= free) {
            return Err(Unheard::Source);
        }
        let second = nanos(Duration::from_secs(1));
        let price = second / entry.scaled(limits.strangers_per_source_per_s.get().into(), now);
        let burst = entry.scaled(limits.strangers_per_source_burst.get().into(), now);
        let paid_at = entry.arrivals_paid_at.max(now).saturating_add(price);
        if paid_at - now > price.saturating_mul(burst) {
            return Err(Unheard::Rate);
        }
        // Last: whoever hears this makes an older one leave, and is heard then.
        if free == 0 && !instead {
            return Err(Unheard::All);
        }
        if !shard.contains_key(&source) {
            make_room(&mut shard, limits.login_sources_max.div_ceil(SHARDS), now).ok_or(Unheard::All)?;
        }
        shard.insert(source, Entry { strangers: entry.strangers + 1, arrivals_paid_at: paid_at, ..entry });
        self.strangers.fetch_add(1, Ordering::Relaxed);
        let known_by = (entry.known_until > now).then_some(entry.known_by);
        let heard = Heard { source, known_by };
        Ok(Place { heard, number, price })
    }

    /// The stranger has shown a good token: what it took of the rate is given back.
    pub fn verified(&self, place: &mut Place, uid: Uid, token_id: &str, now: Instant) {
        let now = self.since_start(now);
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let bearer = Bearer(self.keys.hash_one((uid, token_id)) as u16);
        let price = std::mem::take(&mut place.price);
        if let Some(entry) = self.shard(place.number).get_mut(&place.heard.source) {
            entry.arrivals_paid_at = entry.arrivals_paid_at.saturating_sub(price);
            entry.known_until = now.saturating_add(nanos(KNOWN_FOR));
            entry.known_by = bearer;
        }
    }

    /// The stranger visits a published host, where others bound how many come: what it took of the rate is given back.
    pub fn routed(&self, place: &mut Place) {
        let price = std::mem::take(&mut place.price);
        if let Some(entry) = self.shard(place.number).get_mut(&place.heard.source) {
            entry.arrivals_paid_at = entry.arrivals_paid_at.saturating_sub(price);
        }
    }

    /// The stranger has shown a bad token; how long its source is punished from now on, if this was one too many.
    pub fn failed(&self, place: &Place, limits: &Limits, now: Instant) -> Option<Duration> {
        let now = self.since_start(now);
        let mut shard = self.shard(place.number);
        let entry = shard.get_mut(&place.heard.source)?;
        if entry.penalties > 0 && now >= entry.penalty_until.saturating_add(nanos(MINUTE)) {
            entry.penalties = 0;
        }
        let price = nanos(MINUTE) / u64::from(limits.failed_logins_per_min.get());
        let paid_at = entry.failures_paid_at.max(now).saturating_add(price);
        if paid_at - now <= nanos(MINUTE) {
            entry.failures_paid_at = paid_at;
            return None;
        }
        let doubled = 1u32.checked_shl(entry.penalties.into()).unwrap_or(u32::MAX);
        let penalty = limits.login_penalty_min.saturating_mul(doubled).min(limits.login_penalty_max);
        entry.penalties = entry.penalties.saturating_add(1);
        entry.penalty_until = entry.penalty_until.max(now.saturating_add(nanos(penalty)));
        Some(penalty)
    }

    /// The stranger has become somebody, or left.
    pub fn leave(&self, place: &Place, now: Instant) {
        let now = self.since_start(now);
        self.strangers.fetch_sub(1, Ordering::Relaxed);
        let mut shard = self.shard(place.number);
        let Some(entry) = shard.get_mut(&place.heard.source) else { return };
        entry.strangers -= 1;
        if !entry.is_needed(now) {
            shard.remove(&place.heard.source);
        }
    }

    /// Forgets what limits nothing any more, and gives its memory back. To be called now and then, on no worker.
    pub fn sweep(&self, now: Instant) {
        let now = self.since_start(now);
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, entry| entry.is_needed(now));
            if shard.capacity() > 4 * shard.len() {
                shard.shrink_to_fit();
            }
        }
    }

    /// How many sources are remembered.
    pub fn len(&self) -> usize {
        let len = |shard: &Mutex<HashMap<_, _>>| lock(shard).len();
        self.shards.iter().map(len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Makes room for one more entry; `None` when every one has strangers.
fn make_room(shard: &mut HashMap<Source, Entry>, max: usize, now: u64) -> Option<()> {
    if shard.len() < max {
        return Some(());
    }
    shard.retain(|_, entry| entry.is_needed(now));
    if shard.len() < max {
        return Some(());
    }
    // Those that would be forgotten first. What is cheap to make is forgotten soon: an arrival in 20 ms, a failed
    // login in 6 s; a penalty only after a minute without another.
    let idle = shard.values().filter(|entry| entry.strangers == 0);
    let mut ends: Vec<_> = idle.map(Entry::forgotten_at).collect();
    if ends.is_empty() {
        return None;
    }
    let last = (ends.len() / ROOM_PART).min(ends.len() - 1);
    let (_, &mut until, _) = ends.select_nth_unstable(last);
    shard.retain(|_, entry| entry.strangers > 0 || entry.forgotten_at() > until);
    (shard.len() < max).then_some(())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Source = Source::V4(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn sources() -> (Sources, Limits, Instant) {
        let now = Instant::now();
        (Sources::new(usize::MAX, now), Limits::default(), now)
    }

    /// Comes, and leaves at once.
    fn come(sources: &Sources, source: Source, limits: &Limits, now: Instant) -> Result<(), Unheard> {
        let place = sources.arrive(source, limits, now, false)?;
        sources.leave(&place, now);
        Ok(())
    }

    fn fail(sources: &Sources, source: Source, limits: &Limits, now: Instant) -> Option<Duration> {
        let place = sources.arrive(source, limits, now, false).unwrap();
        let penalty = sources.failed(&place, limits, now);
        sources.leave(&place, now);
        penalty
    }

    /// How many of a thousand that come at once are heard.
    fn heard(sources: &Sources, source: Source, limits: &Limits, now: Instant) -> usize {
        (0..1_000).filter(|_| come(sources, source, limits, now).is_ok()).count()
    }

    #[test]
    fn a_source_is_an_address_or_a_64() {
        let source = |text: &str| Source::from(text.parse::<std::net::SocketAddr>().unwrap());
        assert_eq!(source("[::ffff:192.0.2.1]:1"), source("192.0.2.1:2"));
        assert_ne!(source("192.0.2.1:1"), source("192.0.2.2:1"));
        assert_eq!(source("[2001:db8:0:1::1]:1"), source("[2001:db8:0:1:ffff::]:1"));
        assert_ne!(source("[2001:db8:0:1::1]:1"), source("[2001:db8:0:2::1]:1"));
    }

    #[test]
    fn silent_connections_of_one_source_leave_room_for_every_other() {
        let (sources, limits, now) = sources();
        let mut held = Vec::new();
        let unheard = loop {
            match sources.arrive(A, &limits, now, false) {
                Ok(place) => held.push(place),
                Err(unheard) => break unheard,
            }
        };
        assert_eq!((unheard, held.len()), (Unheard::Source, limits.strangers_per_source_max));
        assert!((2..2_000).all(|n| come(&sources, Source::V4(n), &limits, now).is_ok()));
        held.iter().for_each(|place| sources.leave(place, now));
        assert_eq!(sources.strangers(), 0);
        assert!(come(&sources, A, &limits, now + SECOND).is_ok());
    }

    #[test]
    fn nobody_has_more_places_than_are_free_but_a_few_find_room_whoever_else_comes() {
        let (sources, limits, now) = sources();
        let limits = Limits { strangers_max: 128, strangers_per_source_max: 99, ..limits };
        let take = |n| std::iter::from_fn(|| sources.arrive(Source::V4(n), &limits, now, false).ok()).count();
        assert_eq!((1..7).map(take).collect::<Vec<_>>(), [64, 32, 16, 8, 8, 0]);
        assert_eq!(sources.arrive(A, &limits, now, true).err(), Some(Unheard::Source));
        let few = Source::V4(9);
        for _ in 0..FEW {
            assert_eq!(sources.arrive(few, &limits, now, false).err(), Some(Unheard::All));
            assert!(sources.arrive(few, &limits, now, true).is_ok(), "an older one has left for it");
        }
        assert_eq!(sources.arrive(few, &limits, now, true).err(), Some(Unheard::Source));
        let surplus = (10..99).take_while(|n| {
            sources.may_replace(&limits) && sources.arrive(Source::V4(*n), &limits, now, true).is_ok()
        });
        assert_eq!(surplus.count(), 128 / SURPLUS_PART + 1 - FEW, "older ones have to leave first");
    }

    #[test]
    fn who_comes_too_often_makes_nobody_leave() {
        let (sources, limits, now) = sources();
        let limits = Limits { strangers_max: 16, ..limits };
        while come(&sources, A, &limits, now).is_ok() {}
        let others = (2..99)
            .filter_map(|n| sources.arrive(Source::V4(n), &limits, now, false).ok())
            .collect::<Vec<_>>();
        assert_eq!(others.len(), 16);
        assert_eq!(come(&sources, A, &limits, now), Err(Unheard::Rate));
        assert_eq!(come(&sources, Source::V4(99), &limits, now), Err(Unheard::All));
    }

    #[test]
    fn a_source_whose_tokens_hold_finds_room_for_many_at_once() {
        let (sources, limits, now) = sources();
        let limits = Limits { strangers_max: 1_024, ..limits };
        let mut place = sources.arrive(A, &limits, now, false).unwrap();
        sources.verified(&mut place, Uid::nil(), "t", now);
        let strangers =
            (2..2_000).take_while(|n| sources.arrive(Source::V4(*n), &limits, now, false).is_ok());
        assert_eq!(strangers.count(), 1_023);
        let found = std::iter::from_fn(|| sources.arrive(A, &limits, now, true).ok()).count();
        assert_eq!(found, 1_024 / SURPLUS_PART - 1, "with the one that was there");
    }

    #[test]
    fn new_ones_are_rated_and_a_good_token_gives_back() {
        let (sources, limits, now) = sources();
        assert_eq!(heard(&sources, A, &limits, now), 200);
        assert_eq!(heard(&sources, A, &limits, now + SECOND), 50);
        for _ in 0..1_000 {
            let mut place = sources.arrive(Source::V4(2), &limits, now, false).unwrap();
            sources.verified(&mut place, Uid::nil(), "t", now);
            sources.verified(&mut place, Uid::nil(), "t", now);
            sources.leave(&place, now);
        }
        // Its programs may all come back at once.
        let (office, mut held) = (Source::V4(2), Vec::new());
        while let Ok(place) = sources.arrive(office, &limits, now, false) {
            held.push(place);
        }
        assert_eq!(held.len(), 640);
        held.iter().for_each(|place| sources.leave(place, now));
        let later = now + KNOWN_FOR + SECOND;
        assert_eq!(heard(&sources, office, &limits, later), 200, "the good token was long ago");
    }

    #[test]
    fn failures_are_punished_for_twice_as_long_each_time_and_forgiven_after_a_clean_minute() {
        let (sources, limits, now) = sources();
        // Slowly, so that only failures count.
        for n in 0..10 {
            assert_eq!(fail(&sources, A, &limits, now), None, "{n}");
        }
        let seconds: Vec<_> = (0..12)
            .map(|n| fail(&sources, A, &limits, now + Duration::from_millis(n * 400)).unwrap().as_secs())
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        // A tenth of the rate: it is heard, and no more than that.
        assert_eq!(heard(&sources, A, &limits, now + 60 * SECOND), 20);
        assert_eq!(heard(&sources, Source::V4(2), &limits, now + 60 * SECOND), 200);
        let clean = now + Duration::from_secs(700);
        sources.sweep(clean);
        assert!(sources.is_empty());
        assert_eq!(fail(&sources, A, &limits, clean), None);
    }

    #[test]
    fn an_agent_that_tries_a_bad_token_as_slowly_as_ours_do_is_never_punished() {
        let (sources, limits, now) = sources();
        assert!((0..1_000).all(|n| fail(&sources, A, &limits, now + n * Duration::from_secs(6)).is_none()));
    }

    #[test]
    fn a_good_token_is_heard_beside_failures_from_the_same_address() {
        let (sources, limits, now) = sources();
        let mut at = now;
        for n in 0..600 {
            // Somebody fails three times a second; somebody else behind the same address comes once.
            at += Duration::from_millis(333);
            let _ = sources.arrive(A, &limits, at, false).map(|place| {
                sources.failed(&place, &limits, at);
                sources.leave(&place, at);
            });
            if n % 3 == 0 {
                let mut place = sources.arrive(A, &limits, at, false).unwrap();
                sources.verified(&mut place, Uid::nil(), "t", at);
                sources.leave(&place, at);
            }
        }
    }

    #[test]
    fn the_table_is_bounded_and_cheap_entries_never_push_a_penalty_out() {
        let (sources, limits, now) = sources();
        let limits = Limits { login_sources_max: 1_024, strangers_max: 1 << 20, ..limits };
        for _ in 0..14 {
            fail(&sources, A, &limits, now);
        }
        // Each of these has one failed login, a hundred times as many as the table holds.
        for n in 2..100_000 {
            fail(&sources, Source::V6(n), &limits, now);
        }
        assert!(sources.len() <= 1_024, "{}", sources.len());
        assert!(heard(&sources, A, &limits, now) <= 20, "the penalty was forgotten");
        sources.sweep(now + Duration::from_secs(200));
        assert!(sources.is_empty());
        let room: usize = sources.shards.iter().map(|shard| shard.lock().unwrap().capacity()).sum();
        assert_eq!(room, 0, "the memory is given back");
    }

    #[test]
    fn a_full_table_of_strangers_hears_nobody_new_and_loses_none() {
        let (sources, limits, now) = sources();
        let limits = Limits { login_sources_max: 64, strangers_max: 1 << 20, ..limits };
        let held: Vec<_> =
            (0..1_000).filter_map(|n| sources.arrive(Source::V4(n), &limits, now, false).ok()).collect();
        assert!(held.len() <= 64);
        held.iter().for_each(|place| sources.leave(place, now));
        assert_eq!(sources.strangers(), 0);
    }

    #[test]
    fn an_entry_is_small() {
        let bytes = size_of::<(Source, Entry)>();
        assert!(bytes <= 56, "{bytes} bytes: 65,536 of them, and a byte each for the table, are 4 MB");
    }
}
