//! Values that several objects of one context use.

use std::sync::{Arc, Mutex, MutexGuard};

/// A value that several objects of one context use. Only the context's thread locks it.
pub type Shared<T> = Arc<Mutex<T>>;

/// Locks a shared value. A panic inside has already poisoned the context, so the mutex's own
/// poison tells nothing new.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(|e| e.into_inner())
}
