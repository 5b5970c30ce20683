//! What the benchmarks in benches/ and the tests beside them share.

pub mod path;
pub mod programs;
