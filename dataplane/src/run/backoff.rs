//! Role: how long to wait before the next try of something that must come back by itself.
//! Invariants: never gives up · full jitter, so that a thousand agents do not come at once.

use std::time::Duration;

/// The cap doubles from here ..
const CAP_FIRST: Duration = Duration::from_millis(100);
/// .. to here, and stays there for the first minute of an outage, ..
const CAP_SOON: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(60);
/// .. then grows to here.
const CAP_LATE: Duration = Duration::from_secs(5);

/// The state of one outage.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
    waited: Duration,
}

impl Backoff {
    /// The next wait; `random` is uniform over all `u64`.
    pub fn next(&mut self, random: u64) -> Duration {
        let doubled = CAP_FIRST.saturating_mul(1 << self.tries.min(16));
        let cap = if self.waited < SOON {
            doubled.min(CAP_SOON)
        } else {
            (self.waited / 60).clamp(CAP_SOON, CAP_LATE)
        };
        self.tries += 1;
        #[expect(clippy::cast_precision_loss, reason = "a jitter needs no more than 52 bits")]
        let wait = cap.mul_f64(random as f64 / u64::MAX as f64);
        self.waited += wait;
        wait
    }

    /// It worked: the next outage starts anew.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Waits before the next try.
    pub async fn wait(&mut self) {
        // Without randomness all wait the full cap: no jitter, but no spinning either.
        let random = getrandom::u64().unwrap_or(u64::MAX);
        crate::run::timer::sleep(self.next(random)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_doubles_to_a_second_stays_for_a_minute_and_ends_at_five() {
        let mut backoff = Backoff::default();
        let caps: Vec<_> = (0..5).map(|_| backoff.next(u64::MAX).as_millis()).collect();
        assert_eq!(caps, [100, 200, 400, 800, 1000]);
        while backoff.waited < SOON {
            assert_eq!(backoff.next(u64::MAX), CAP_SOON);
        }
        for _ in 0..200 {
            let wait = backoff.next(u64::MAX);
            assert!((CAP_SOON..=CAP_LATE).contains(&wait), "{wait:?}");
        }
        assert_eq!(backoff.next(u64::MAX), CAP_LATE);
        assert_eq!(backoff.next(0), Duration::ZERO);
        backoff.reset();
        assert_eq!(backoff.next(u64::MAX), CAP_FIRST);
    }
}
