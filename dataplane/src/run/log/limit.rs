//! Role: which lines of the log are written, when one source brings about many of one kind.
//! Invariants: what is left out is counted, and said once a second · a source has an entry only while lines of it were
//! written lately, so there are no more entries than lines · time is passed in.
//! See: `gate`, which asks; ITU-T I.371 (GCRA).

use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

use tracing::{Level, callsite::Identifier};

use super::source::Source;

/// Of so many sources of one kind it is said each by itself how many lines are left out.
const SOURCES_SAID_MAX: usize = 5;

/// How many lines of one kind may be written.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// One line of a source in this time, ..
    every: Duration,
    /// .. and so many of them at once after a pause.
    burst: u32,
    /// As `burst`, of lines about nobody that say the same: the operator brings these about, no peer.
    burst_of_words: u32,
    /// Of all sources in one second.
    in_all: u32,
}

/// What warns of something says it as well once a second. What people ask for with -v may be more.
const fn pace(level: Level) -> Pace {
    let (every_ms, burst, burst_of_words, in_all) = match level {
        Level::ERROR | Level::WARN => (1000, 5, 10, 100),
        Level::INFO => (100, 20, 100, 200),
        _ => (10, 200, 500, 2000),
    };
    Pace { every: Duration::from_millis(every_ms), burst, burst_of_words, in_all }
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Written,
    LeftOut,
    /// As [`Verdict::LeftOut`], and the first in this second: [`Limit::liken`] is to be told what it says.
    FirstLeftOut,
}

/// Lines that were left out in the last second.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Omission {
    pub(super) level: Level,
    /// `None`: several sources.
    pub(super) source: Option<Source>,
    pub(super) lines: u64,
    /// The words of one of them.
    pub(super) like: String,
}

/// What was written and left out lately.
#[derive(Default)]
pub(super) struct Limit {
    kinds: HashMap<Identifier, Kind>,
}

struct Kind {
    level: Level,
    pace: Pace,
    sources: HashMap<Source, Spent>,
    /// In this second.
    written: u32,
    /// Left out in this second, of sources that had no entry.
    others: LeftOut,
}

/// What a source has used up.
struct Spent {
    /// The time at which all its lines are paid for.
    until: Instant,
    left_out: LeftOut,
}

impl Spent {
    fn pay(&mut self, every: Duration, now: Instant) {
        self.until = self.until.max(now) + every;
    }
}

#[derive(Default)]
struct LeftOut {
    lines: u64,
    like: String,
}

impl LeftOut {
    fn count(&mut self) -> Verdict {
        self.lines += 1;
        if self.lines == 1 { Verdict::FirstLeftOut } else { Verdict::LeftOut }
    }
}

impl Limit {
    /// Whether a line of this kind and source is written now.
    pub(super) fn admit(&mut self, kind: Identifier, level: Level, source: Source, now: Instant) -> Verdict {
        let kind = self.kinds.entry(kind).or_insert_with(|| Kind::new(level));
        let full = kind.written >= kind.pace.in_all;
        let spent = match kind.sources.entry(source) {
            Entry::Occupied(spent) => spent.into_mut(),
            Entry::Vacant(_) if full => return kind.others.count(),
            Entry::Vacant(none) => none.insert(Spent { until: now, left_out: LeftOut::default() }),
        };
        let Pace { every, burst, burst_of_words, .. } = kind.pace;
        let burst = if matches!(source, Source::Words(_)) { burst_of_words } else { burst };
        if full || spent.until.saturating_duration_since(now) > every * (burst - 1) {
            return spent.left_out.count();
        }
        spent.pay(every, now);
        kind.written += 1;
        Verdict::Written
    }

    /// What the first line that was left out says.
    pub(super) fn liken(&mut self, kind: &Identifier, source: &Source, words: String) {
        let Some(kind) = self.kinds.get_mut(kind) else { return };
        kind.sources.get_mut(source).map_or(&mut kind.others, |spent| &mut spent.left_out).like = words;
    }

    /// What was left out since the last second; to be called once a second.
    pub(super) fn handle_tick(&mut self, now: Instant) -> Vec<Omission> {
        let said = self.kinds.values_mut().flat_map(|kind| kind.say(now)).collect();
        self.kinds.retain(|_, kind| {
            kind.written = 0;
            kind.sources.retain(|_, spent| spent.until > now);
            !kind.sources.is_empty()
        });
        said
    }
}

impl Kind {
    fn new(level: Level) -> Self {
        let (sources, others) = Default::default();
        Self { level, pace: pace(level), sources, written: 0, others }
    }

    fn say(&mut self, now: Instant) -> Vec<Omission> {
        let (level, every) = (self.level, self.pace.every);
        let left_out = self.sources.iter_mut().filter(|(_, spent)| spent.left_out.lines > 0);
        let left_out = left_out.map(|(source, spent)| {
            // To say so is a line of this source, too.
            spent.pay(every, now);
            (*source, std::mem::take(&mut spent.left_out))
        });
        let mut left_out: Vec<_> = left_out.collect();
        left_out.sort_unstable_by_key(|(_, left_out)| std::cmp::Reverse(left_out.lines));
        let mut others = std::mem::take(&mut self.others);
        for (_, LeftOut { lines, like }) in left_out.drain(left_out.len().min(SOURCES_SAID_MAX)..) {
            others.lines += lines;
            others.like = like;
        }
        let of = |source, LeftOut { lines, like }| Omission { level, source, lines, like };
        let mut said: Vec<_> =
            left_out.into_iter().map(|(source, left_out)| of(Some(source), left_out)).collect();
        if others.lines > 0 {
            said.push(of(None, others));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use tracing::{Callsite, Metadata, subscriber::Interest};

    const SECOND: Duration = Duration::from_secs(1);

    /// The place of a line in a source: two of them are two kinds. (Not empty: it is known by its address.)
    struct Place(#[expect(dead_code, reason = "its address counts")] u8);

    impl Callsite for Place {
        fn set_interest(&self, _: Interest) {}

        fn metadata(&self) -> &Metadata<'_> {
            unreachable!("the limit asks for none")
        }
    }

    static ONE: Place = Place(1);
    static OTHER: Place = Place(2);

    fn source(last: u16) -> Source {
        let [high, low] = last.to_be_bytes();
        Source::Peer(IpAddr::from([192, 0, high, low]).into())
    }

    /// How many of `lines` are written, all at once.
    fn written(limit: &mut Limit, kind: &Identifier, level: Level, lines: u32, now: Instant) -> u32 {
        let ask = |_: &u32| limit.admit(kind.clone(), level, source(1), now) == Verdict::Written;
        (0..lines).filter(ask).count() as u32
    }

    #[test]
    fn a_source_has_its_burst_and_then_its_pace_and_the_rest_is_said_once_a_second() {
        let (mut limit, start, kind) = (Limit::default(), Instant::now(), Identifier(&ONE));
        for (level, burst, pace) in [(Level::WARN, 5, 1), (Level::INFO, 20, 10), (Level::DEBUG, 200, 100)] {
            let mut limit = Limit::default();
            assert_eq!(written(&mut limit, &kind, level, 20_000, start), burst, "{level}");
            for second in 1..5 {
                let now = start + SECOND * second;
                let said = limit.handle_tick(now);
                assert_eq!(said.len(), 1, "{level}");
                assert_eq!((said[0].level, said[0].source), (level, Some(source(1))));
                // The line that says so is one of them.
                assert_eq!(written(&mut limit, &kind, level, 20_000, now) + 1, pace, "{level}");
            }
        }
        assert_eq!(written(&mut limit, &kind, Level::INFO, 20, start), 20);
        assert_eq!(limit.handle_tick(start + SECOND), [], "nothing was left out");
    }

    #[test]
    fn what_is_left_out_is_likened_to_its_first_line() {
        let (mut limit, start, kind) = (Limit::default(), Instant::now(), Identifier(&ONE));
        for n in 0..25 {
            if limit.admit(kind.clone(), Level::INFO, source(7), start) == Verdict::FirstLeftOut {
                limit.liken(&kind, &source(7), format!("line {n}"));
            }
        }
        let omission =
            Omission { level: Level::INFO, source: Some(source(7)), lines: 5, like: "line 20".to_owned() };
        assert_eq!(limit.handle_tick(start + SECOND), [omission]);
    }

    #[test]
    fn another_source_and_another_kind_have_their_own() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        let (one, other) = (Identifier(&ONE), Identifier(&OTHER));
        assert_eq!(written(&mut limit, &one, Level::INFO, 1000, now), 20);
        assert_eq!(limit.admit(one, Level::INFO, source(2), now), Verdict::Written);
        assert_eq!(written(&mut limit, &other, Level::INFO, 1000, now), 20);
    }

    #[test]
    fn many_sources_fill_neither_the_log_nor_the_table() {
        let (mut limit, start, kind) = (Limit::default(), Instant::now(), Identifier(&ONE));
        for second in 0..20 {
            let now = start + SECOND * second;
            let mut written = 0;
            for last in 0..=u16::MAX {
                let verdict = limit.admit(kind.clone(), Level::INFO, source(last), now);
                written += u32::from(verdict == Verdict::Written);
            }
            let entries = limit.kinds[&kind].sources.len();
            assert!(written <= 200 && entries <= 200, "{written} lines, {entries} entries");
            let said = limit.handle_tick(now + SECOND);
            assert!(said.len() <= SOURCES_SAID_MAX + 1, "{}", said.len());
            let left_out: u64 = said.iter().map(|omission| omission.lines).sum();
            assert_eq!(left_out + u64::from(written), 65_536);
        }
        limit.handle_tick(start + SECOND * 60);
        assert!(limit.kinds.is_empty(), "what is over is forgotten");
    }
}
