//! Handles are numbers that look like pointers. The library looks them up and never follows them, so a
//! handle that was freed, is of another type or never existed is an error and not a crash.

use crate::error::{Result, bail};
use once_cell::sync::Lazy;
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

/// An object that a handle can stand for.
pub trait Object: Any + Send + Sync {
    /// The handle's type in C, without the prefix.
    const NAME: &'static str;
}

/// A row of the table.
pub struct Entry {
    name: &'static str,
    object: Arc<dyn Any + Send + Sync>,
}

static LIVE: Lazy<RwLock<HashMap<usize, Entry>>> = Lazy::new(Default::default);

/// The next handle. Numbers are never reused, so a stale handle stays stale. Steps of 16 make it look like a pointer.
static NEXT: AtomicUsize = AtomicUsize::new(0x1000);

/// Makes a handle for `object`.
pub fn insert<T: Object, H>(object: T) -> *mut H {
    let token = NEXT.fetch_add(16, Ordering::Relaxed);
    let entry = Entry {
        name: T::NAME,
        object: Arc::new(object),
    };
    LIVE.write()
        .unwrap_or_else(|e| e.into_inner())
        .insert(token, entry);
    std::ptr::without_provenance_mut(token)
}

/// The object of a handle. The returned reference keeps it alive, so it is freed only after the call that uses
/// it, even if another thread frees the handle meanwhile.
pub fn get<T: Object, H>(argument: &str, handle: *const H) -> Result<Arc<T>> {
    if handle.is_null() {
        bail!(
            Null,
            "{argument}: expected a facegrad_{}, got NULL",
            T::NAME
        );
    }
    let live = LIVE.read().unwrap_or_else(|e| e.into_inner());
    let Some(entry) = live.get(&handle.addr()) else {
        bail!(
            Handle,
            "{argument}: expected a facegrad_{}, got {handle:p}, which was freed or never was a handle",
            T::NAME
        );
    };
    match entry.object.clone().downcast::<T>() {
        Ok(object) => Ok(object),
        Err(_) => bail!(
            Handle,
            "{argument}: expected a facegrad_{}, got a facegrad_{}",
            T::NAME,
            entry.name
        ),
    }
}

/// Like [`get`], but NULL is allowed.
pub fn get_optional<T: Object, H>(argument: &str, handle: *const H) -> Result<Option<Arc<T>>> {
    match handle.is_null() {
        true => Ok(None),
        false => get(argument, handle).map(Some),
    }
}

/// Removes a handle from the table. NULL, a freed handle and a handle of another type do nothing.
pub fn remove<T: Object, H>(handle: *mut H) {
    let mut live = LIVE.write().unwrap_or_else(|e| e.into_inner());
    let ours = live
        .get(&handle.addr())
        .is_some_and(|entry| entry.object.is::<T>());
    let entry = if ours {
        live.remove(&handle.addr())
    } else {
        None
    };
    // Dropping the object may wait for the worker, which may need the lock.
    drop(live);
    drop(entry);
}

/// The locked table: no other thread can look up, make or free a handle meanwhile.
#[cfg(unix)]
pub type Held = std::sync::RwLockWriteGuard<'static, HashMap<usize, Entry>>;

/// Locks the table.
#[cfg(unix)]
pub fn hold() -> Held {
    LIVE.write().unwrap_or_else(|e| e.into_inner())
}

/// How many handles of a type are alive; all of them for `None`.
pub fn live(name: Option<&str>) -> i64 {
    let live = LIVE.read().unwrap_or_else(|e| e.into_inner());
    live.values()
        .filter(|entry| name.is_none_or(|n| n == entry.name))
        .count() as i64
}
