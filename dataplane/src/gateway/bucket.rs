//! Role: a rate without a lock: how far ahead of it somebody is.
//! Invariants: never more than a burst ahead, but for what is paid for afterwards · nothing is saved up beyond a burst.
//! See: ITU-T I.371 (GCRA).

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A limit that isn't there.
pub(crate) const NONE: u64 = 0;

/// A rate, and how far ahead of it somebody is: the time at which all that was taken is paid for.
#[derive(Default)]
pub(crate) struct Bucket {
    per_s: AtomicU64,
    paid_at_ns: AtomicU64,
}

impl Bucket {
    /// From now on so much a second; [`NONE`] for as much as is asked for.
    pub(crate) fn set(&self, per_s: u64) {
        self.per_s.store(per_s, Ordering::Relaxed);
    }

    /// How much a second, if there is a limit.
    pub(crate) fn limit(&self) -> Option<u64> {
        Some(self.per_s.load(Ordering::Relaxed)).filter(|per_s| *per_s != NONE)
    }

    /// Whether there is a limit.
    pub(crate) fn has_limit(&self) -> bool {
        self.limit().is_some()
    }

    /// Whether more was taken than is paid for at this time.
    pub(crate) fn is_ahead(&self, now_ns: u64) -> bool {
        self.paid_at_ns.load(Ordering::Relaxed) > now_ns
    }

    /// What `amount` costs in time.
    fn price_ns(&self, amount: u64) -> Option<u64> {
        let per_s = self.per_s.load(Ordering::Relaxed);
        (per_s != NONE).then(|| {
            let ns = u128::from(amount) * 1_000_000_000 / u128::from(per_s);
            u64::try_from(ns).unwrap_or(u64::MAX)
        })
    }

    /// Takes `amount`; else says when it can be had.
    pub(crate) fn take(&self, now_ns: u64, amount: u64, burst: Duration) -> Result<(), Duration> {
        let Some(price) = self.price_ns(amount) else { return Ok(()) };
        let burst = nanos(burst);
        let taken = self.paid_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            let paid_at = paid_at.max(now_ns).saturating_add(price);
            (paid_at - now_ns <= burst.max(price)).then_some(paid_at)
        });
        taken.map(drop).map_err(|paid_at| {
            Duration::from_nanos(paid_at.saturating_add(price).saturating_sub(now_ns).saturating_sub(burst))
        })
    }

    /// Takes `amount`, be there as much or not.
    pub(crate) fn spend(&self, now_ns: u64, amount: u64) {
        let Some(price) = self.price_ns(amount) else { return };
        let _ = self.paid_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            Some(paid_at.max(now_ns).saturating_add(price))
        });
    }

    /// How much there is now; else when there is something.
    pub(crate) fn left(&self, now_ns: u64, burst: Duration) -> Result<u64, Duration> {
        let per_s = self.per_s.load(Ordering::Relaxed);
        if per_s == NONE {
            return Ok(u64::MAX);
        }
        let ahead = self.paid_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns);
        match nanos(burst).checked_sub(ahead) {
            Some(left) if left > 0 => {
                Ok(u64::try_from(u128::from(left) * u128::from(per_s) / 1_000_000_000).unwrap_or(u64::MAX))
            }
            _ => Err(Duration::from_nanos(ahead.saturating_sub(nanos(burst)).max(1))),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A clock that never goes back, the same for all workers.
pub(crate) fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    nanos(START.get_or_init(Instant::now).elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const DIALS_BURST: Duration = Duration::from_secs(10);
    const BYTES_BURST: Duration = Duration::from_millis(100);

    #[test]
    fn a_bucket_gives_its_rate_and_a_burst() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(0, 1_000_000, DIALS_BURST), Ok(()), "no limit");
        bucket.set(10);
        let taken = (0..1_000).filter(|_| bucket.take(5 * SECOND, 1, DIALS_BURST).is_ok()).count();
        assert_eq!(taken, 100);
        assert_eq!(bucket.take(5 * SECOND, 1, DIALS_BURST), Err(Duration::from_millis(100)));
        let taken = (0..1_000).filter(|_| bucket.take(6 * SECOND, 1, DIALS_BURST).is_ok()).count();
        assert_eq!(taken, 10);
        // Over ten times as long.
        let taken = (0..10_000u64)
            .filter(|n| bucket.take(16 * SECOND + n * 10_000_000, 1, DIALS_BURST).is_ok())
            .count();
        assert_eq!(taken, 100 + 999);
    }

    #[test]
    fn bytes_are_paid_for_afterwards() {
        let bucket = Bucket::default();
        bucket.set(1_000_000);
        assert_eq!(bucket.left(SECOND, BYTES_BURST), Ok(100_000));
        bucket.spend(SECOND, 60_000);
        assert_eq!(bucket.left(SECOND, BYTES_BURST), Ok(40_000));
        bucket.spend(SECOND, 240_000);
        assert_eq!(bucket.left(SECOND, BYTES_BURST), Err(Duration::from_millis(200)));
        assert_eq!(bucket.left(SECOND + SECOND / 5 + 1_000_000, BYTES_BURST), Ok(1_000));
        assert_eq!(bucket.left(99 * SECOND, BYTES_BURST), Ok(100_000), "nothing is saved up");
    }
}
