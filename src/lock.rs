//! Locks that are held for a moment.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// For what a panic cannot leave half changed.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
