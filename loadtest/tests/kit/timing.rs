//! Role: judges how long something took, on a machine that may do something else meanwhile.
//! Invariants: what else the machine does only ever adds time. So what can be done again is done until half of it is soon
//! enough, what happens once may take several times as long as is promised, and what is slowed down by something is held
//! against itself without it · how much slower than alone we are is measured in the same run.
//! See: CONTRIBUTING.md, "Tests".

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use super::conditions;

/// How many times as long as is promised something that happens once may take.
const BUSY: u32 = 5;

/// How many times as long as its own CPU time something takes here and now: 1 on an idle machine, 5 where five want the
/// same core.
pub(crate) fn slowness() -> u32 {
    const WORK: Duration = Duration::from_millis(20);
    let cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("CPU time is not negative");
    let (since, used_before) = (Instant::now(), cpu());
    while cpu() - used_before < WORK {
        std::hint::spin_loop();
    }
    let tenths = since.elapsed().as_micros() * 10 / WORK.as_micros();
    u32::try_from(tenths.div_ceil(10).max(1)).unwrap_or(u32::MAX)
}

/// What happens once: fails when it took far longer than is promised.
pub(crate) fn assert_once_within(what: &str, promised: Duration, took: Duration) {
    println!("{what}: {took:?}, promised within {promised:?}");
    if took < promised * BUSY {
        return;
    }
    let slowness = slowness();
    assert!(
        took < promised * slowness * 2,
        "{what}: {took:?}, promised within {promised:?}; the machine is {slowness} times slower than alone{}",
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
    if beside < most || beside < alone * 10 {
        return;
    }
    let slowness = slowness();
    assert!(
        beside < most * slowness,
        "{what}: {beside:?}, {alone:?} alone; it should be below {most:?}, or 10 times as long at the most. The machine \
         is {slowness} times slower than alone{}",
        conditions::trouble()
    );
}

/// The time that so many of a hundred take at the most.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}
