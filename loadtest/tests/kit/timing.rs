//! Role: judges how long something took, on a machine that may do something else meanwhile.
//! Invariants: what else the machine does only ever adds time. So a fault that is in every sample is looked for in the
//! least one, what happens once may take several times as long as is promised, and what is slowed down by something
//! is held against itself without it, in the same run.
//! See: CONTRIBUTING.md, "Tests".

use std::{ops::RangeInclusive, time::Duration};

use super::conditions;

/// How many times as long as on an idle machine something may take.
const BUSY: u32 = 5;

/// What happens once: fails when it took far longer than is promised.
pub(crate) fn assert_once_within(what: &str, promised: Duration, took: Duration) {
    println!("{what}: {took:?}, promised within {promised:?}");
    assert!(
        took < promised * BUSY,
        "{what}: {took:?}, more than {BUSY} times the promised {promised:?}{}",
        conditions::trouble()
    );
}

/// What can be done again: takes so many samples, and more until they are `good` or there are too many. Hands back all.
pub(crate) fn sample_until(
    what: &str,
    counts: RangeInclusive<usize>,
    mut sample: impl FnMut() -> Duration,
    good: impl Fn(&mut [Duration]) -> bool,
) -> Vec<Duration> {
    let mut times = Vec::new();
    while times.len() < *counts.start() || !good(&mut times) {
        assert!(times.len() < *counts.end(), "{what}: {times:.1?}{}", conditions::trouble());
        times.push(sample());
    }
    println!("{what}: median {:.1?} of {times:.1?}", percentile(&mut times, 50));
    times
}

/// What is done beside something else: fails when it takes longer than `most`, and also many times as long as alone.
pub(crate) fn assert_hardly_delayed(what: &str, beside: Duration, alone: Duration, most: Duration) {
    println!("{what}: {beside:?}, {alone:?} alone");
    assert!(
        beside < most || beside < alone * 10,
        "{what}: {beside:?}, {alone:?} alone; it should be below {most:?}, or 10 times as long at the most{}",
        conditions::trouble()
    );
}

/// The time that so many of a hundred take at the most.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}
