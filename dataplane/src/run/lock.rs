//! Role: a look at what several threads share.
//! Invariants: held for a look only, never across an await; nothing is dropped within it that looks itself · a panic
//! within a look shuts nobody else out.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits until no other thread looks.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
