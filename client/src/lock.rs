//! Role: a look at what all workers of a forward share.
//! Invariants: held for a look only, never across an await; nothing is dropped within it that looks itself.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
