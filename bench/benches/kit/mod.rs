//! Role: how long benchmarks measure.
//! Invariants: all of them together take less than two minutes; the command line may say otherwise.
//! See: CONTRIBUTING.md, "Measuring".

use std::time::Duration;

use criterion::Criterion;

/// About 1.5 s a benchmark: enough to see 5 % on a quiet machine.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1200))
        .sample_size(50)
}
