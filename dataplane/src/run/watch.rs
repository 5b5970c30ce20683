//! Role: notices that a worker of this process hangs, or that a thread has ended which never should.
//! Invariants: a worker that makes no progress is noticed within 6 s · a process that was stopped as a whole (SIGSTOP, a paused
//! machine) is not broken.
//! See: `worker`, whose workers beat once a second.

use std::time::{Duration, Instant};

/// A worker beats every second; this much silence is no delay.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How often it is to be looked at.
pub const TICK: Duration = Duration::from_millis(250);
/// A tick that comes this late shows that the whole process stood still.
const LATE: Duration = Duration::from_secs(2);

/// Our own fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A worker hangs.
    #[error("a worker has made no progress for {} s", .0.as_secs())]
    Hangs(Duration),
    /// A worker or the control thread has ended.
    #[error("a thread has ended that never should")]
    Ended,
}

/// Tells a worker that hangs from a process that was not running.
pub struct Watch {
    ticked_at: Instant,
    /// Silence from before this moment counts for nothing.
    awake_since: Instant,
}

impl Watch {
    /// Since `now`.
    pub const fn new(now: Instant) -> Self {
        Self { ticked_at: now, awake_since: now }
    }

    /// What is wrong at `now`, if the slowest worker has been silent for so long; to be asked every [`TICK`].
    pub fn handle_tick(&mut self, now: Instant, silence: Duration, lost_a_thread: bool) -> Option<Fault> {
        if now.saturating_duration_since(self.ticked_at) > LATE {
            self.awake_since = now;
        }
        self.ticked_at = now;
        if lost_a_thread {
            return Some(Fault::Ended);
        }
        let silence = silence.min(now.saturating_duration_since(self.awake_since));
        (silence > SILENCE_MAX).then_some(Fault::Hangs(silence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_hangs_is_noticed_within_six_seconds() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        // The worker's last beat is at 1 s.
        for tick in 1u32.. {
            let now = start + TICK * tick;
            let silence = now.saturating_duration_since(start + Duration::from_secs(1));
            if let Some(fault) = watch.handle_tick(now, silence, false) {
                assert_eq!(fault, Fault::Hangs(silence));
                assert!(silence > SILENCE_MAX && silence <= Duration::from_secs(6), "{silence:?}");
                return;
            }
        }
    }

    #[test]
    fn a_process_that_stood_still_is_not_broken() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let paused = Duration::from_secs(60);
        assert_eq!(watch.handle_tick(start + paused, paused, false), None);
        // The workers beat again, each when its timer comes.
        let soon = start + paused + TICK;
        assert_eq!(watch.handle_tick(soon, paused + TICK, false), None);
        assert_eq!(watch.handle_tick(soon + TICK, TICK, false), None);
    }

    #[test]
    fn a_lost_thread_is_a_fault_at_once() {
        let start = Instant::now();
        assert_eq!(Watch::new(start).handle_tick(start, Duration::ZERO, true), Some(Fault::Ended));
    }
}
