//! Role: what users see when processes die, go away, come back, or say no.
//! Invariants: an end that nobody asked for is a reset, never short and clean; what was there before a
//! fault serves again after it, with the same processes.
//! See: CONTRIBUTING.md, "Tests"; docs/errors.md.

#[path = "../kit/mod.rs"]
#[macro_use]
mod kit;

mod errors;
mod fifo;
mod forward;
mod hung;
mod kills;
mod logs;
mod mistakes;
mod pair;
mod recovery;
mod reload;
mod renewal;
mod short;
mod strangers;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by a test that needs the machine for itself: times are measured, or both cores are filled.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // Another test's failure is no reason to fail this one.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
