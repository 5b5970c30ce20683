//! Role: what limits a session's bytes, as the relay sees it.
//! Invariants: asked before a read, paid after it: a read may go beyond what was left.
//! See: `pump` (`wait_for`), which asks; `gateway::usage`, which answers.

use std::time::Duration;

/// How much may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// So many bytes now.
    Now(usize),
    /// Something, after this.
    Later(Duration),
    /// The month's share is used up.
    UsedUp,
}

/// Where a session's bytes count against a limit.
pub trait Meter: Send + Sync {
    /// How much may be read now.
    fn room(&self) -> Room;

    /// So many bytes have moved.
    fn spend(&self, bytes: usize);
}
