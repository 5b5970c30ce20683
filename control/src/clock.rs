//! Role: what time it is by the wall clock.
//! Invariants: whoever decides gets the time as a parameter; this is where it comes from · a clock that is set before
//! 1970 is taken for 1970.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A wall clock: the time since 1970.
pub type Clock = fn() -> Duration;

/// What a wall clock may go ahead of the running one, or fall behind, without having been set.
const SLACK: Duration = Duration::from_millis(500);

/// Since 1970.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// In seconds since 1970, as tokens and months are.
pub fn seconds_since_1970() -> u64 {
    since_1970().as_secs()
}

/// Notices that the wall clock was set, or that the machine slept (the running clock stands still then). Deadlines are
/// counted by the running clock: what they were made from has to be looked at again.
pub(crate) struct Leaps {
    /// A moment by both clocks.
    wall: Duration,
    running: Instant,
}

impl Leaps {
    pub(crate) const fn new(wall: Duration, running: Instant) -> Self {
        Self { wall, running }
    }

    /// Whether the two clocks have gone apart since they were last set against each other.
    pub(crate) fn handle_tick(&mut self, wall: Duration, running: Instant) -> bool {
        let due = self.wall + running.saturating_duration_since(self.running);
        let leapt = wall.abs_diff(due) > SLACK;
        if leapt {
            *self = Self::new(wall, running);
        }
        leapt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_either_way_is_noticed_once_and_one_that_runs_is_not() {
        let (wall, start) = (Duration::from_secs(1_700_000_000), Instant::now());
        let s = Duration::from_secs;
        let mut leaps = Leaps::new(wall, start);
        assert!(!leaps.handle_tick(wall + s(1), start + s(1)));
        assert!(
            !leaps.handle_tick(wall + s(3600) + SLACK, start + s(3600)),
            "a clock that runs a little fast"
        );
        assert!(leaps.handle_tick(wall + s(7201), start + s(3601)));
        assert!(!leaps.handle_tick(wall + s(7202), start + s(3602)));
        assert!(leaps.handle_tick(wall, start + s(3603)), "set back");
        assert!(!leaps.handle_tick(wall + s(1), start + s(3604)));
    }

    #[test]
    fn what_a_clock_gains_bit_by_bit_is_noticed_too() {
        let (wall, start) = (Duration::from_secs(1_700_000_000), Instant::now());
        let mut leaps = Leaps::new(wall, start);
        let gained = (1..=100u32).filter(|n| {
            let second = Duration::from_secs((*n).into());
            leaps.handle_tick(wall + second + SLACK / 10 * *n, start + second)
        });
        assert_eq!(gained.count(), 9);
    }
}
