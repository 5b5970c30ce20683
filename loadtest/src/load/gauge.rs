//! Role: what a load process counts while it runs.
//! Invariants: the thread that counts never waits for the one that reads.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use hdrhistogram::Histogram;
use narrowlink_dataplane::run::lock::lock;

/// Longer than any round trip that is worth measuring.
const LONGEST_NS: u64 = 60_000_000_000;

/// Counters of one load process; all relaxed, since each is a number of its own.
pub struct Gauge {
    bytes: AtomicU64,
    events: AtomicU64,
    measuring: AtomicBool,
    /// Taken by the one thread that moves bytes, and once at the end.
    times: Mutex<Histogram<u64>>,
}

impl Gauge {
    /// All zero.
    ///
    /// # Panics
    /// Never: the histogram's bounds are constants that it takes.
    #[expect(clippy::expect_used, reason = "constants")]
    pub fn new() -> Self {
        let times = Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("bounds in order, three digits");
        Self {
            bytes: AtomicU64::new(0),
            events: AtomicU64::new(0),
            measuring: AtomicBool::new(false),
            times: Mutex::new(times),
        }
    }

    /// So many bytes have arrived.
    pub fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A message or session was completed, and took so long.
    pub fn add_event(&self, took_ns: u64) {
        self.events.fetch_add(1, Ordering::Relaxed);
        if self.measuring.load(Ordering::Relaxed) {
            lock(&self.times).saturating_record(took_ns);
        }
    }

    /// Whether times count from now on.
    pub fn measure(&self, measuring: bool) {
        self.measuring.store(measuring, Ordering::Relaxed);
    }

    /// Bytes and events so far.
    pub fn read(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.events.load(Ordering::Relaxed))
    }

    /// The times that were recorded: nanoseconds, and how often.
    pub fn times(&self) -> Vec<(u64, u64)> {
        let times = lock(&self.times);
        times.iter_recorded().map(|v| (v.value_iterated_to(), v.count_since_last_iteration())).collect()
    }
}

impl Default for Gauge {
    fn default() -> Self {
        Self::new()
    }
}

/// Times of several load processes together.
pub fn merge(times: &[Vec<(u64, u64)>]) -> Histogram<u64> {
    let Gauge { times: all, .. } = Gauge::new();
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    for &(ns, count) in times.iter().flatten() {
        all.saturating_record_n(ns, count);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_within_the_window_only_and_add_up_over_processes() {
        let gauge = Gauge::new();
        gauge.add_event(5_000);
        gauge.measure(true);
        gauge.add_event(1_000_000);
        gauge.add_event(3_000_000);
        gauge.measure(false);
        gauge.add_event(7);
        gauge.add_bytes(10);
        assert_eq!(gauge.read(), (10, 4));
        let all = merge(&[gauge.times(), gauge.times()]);
        assert_eq!(all.len(), 4);
        assert!(all.value_at_quantile(0.25).abs_diff(1_000_000) < 1_000);
        assert!(all.max().abs_diff(3_000_000) < 3_000);
    }
}
