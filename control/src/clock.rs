//! Role: what time it is by the wall clock.
//! Invariants: whoever decides gets the time as a parameter; this is where it comes from · a clock that is set before
//! 1970 is taken for 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since 1970.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// In seconds since 1970, as tokens and months are.
pub fn seconds_since_1970() -> u64 {
    since_1970().as_secs()
}
