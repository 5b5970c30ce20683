//! Role: what is measured goes before everybody else's processes, while it is measured.
//! Invariants: how it was before is restored at the end.
//! See: sched(7), "The autogroup feature".

use std::fs;

use anyhow::{Context as _, Result};

/// What urgent processes are given; only root may.
pub const URGENT_NICE: i32 = -15;
/// What goes before even those: a process that measures latency while the others load.
pub const MOST_URGENT_NICE: i32 = -19;

/// The niceness of this session among all sessions: where the kernel schedules by sessions, a process's own
/// niceness counts among those of its session alone.
const AUTOGROUP: &str = "/proc/self/autogroup";

/// This session, before the others until dropped.
pub struct Urgency {
    before: Option<i32>,
}

impl Urgency {
    /// Takes precedence.
    ///
    /// # Errors
    /// Only root may.
    pub fn take() -> Result<Self> {
        // No such file: the kernel doesn't schedule by sessions, and a process's niceness is enough.
        let Ok(text) = fs::read_to_string(AUTOGROUP) else { return Ok(Self { before: None }) };
        fs::write(AUTOGROUP, URGENT_NICE.to_string())
            .context("only root may go before everybody else's processes")?;
        Ok(Self { before: parse_autogroup(&text) })
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        if let Some(nice) = self.before {
            // Nobody can be told any more; the session's end forgets it anyway.
            let _ = fs::write(AUTOGROUP, nice.to_string());
        }
    }
}

/// `/autogroup-123 nice 0`
fn parse_autogroup(text: &str) -> Option<i32> {
    text.trim().rsplit_once(" nice ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_word_is_read() {
        assert_eq!(parse_autogroup("/autogroup-11454 nice -3\n"), Some(-3));
        assert_eq!(parse_autogroup(""), None);
    }
}
