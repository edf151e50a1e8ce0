//! Values that several objects of one context share.

use std::sync::{Arc, Mutex, MutexGuard};

/// A value that several objects of one context share. Only the context's thread locks it.
pub type Shared<T> = Arc<Mutex<T>>;

/// Locks a shared value. The mutex's own poison is ignored, because a panic has already poisoned the
/// context.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(|e| e.into_inner())
}
