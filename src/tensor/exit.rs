//! The end of the process. libtorch's static objects are destroyed by `exit`, and a thread that is still computing with
//! them would crash: `exit` waits for the jobs that run, and no other starts.

use crate::shared::{Shared, lock};
use once_cell::sync::Lazy;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ThreadId;

/// Held by a thread while a job runs on it.
pub type Gate = Shared<()>;

struct Entry {
    pid: u32,
    thread: ThreadId,
    gate: Gate,
}

static ENDING: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);
static GATES: Lazy<Shared<Vec<Entry>>> = Lazy::new(Default::default);

unsafe extern "C" {
    /// stdlib.h
    safe fn atexit(handler: extern "C" fn()) -> i32;
}

/// Makes `exit` wait for what holds `gate`, unless it is called on `thread` itself, from inside the job.
pub fn enrol(thread: ThreadId, gate: &Gate) {
    let (pid, gate) = (std::process::id(), gate.clone());
    lock(&GATES).push(Entry { pid, thread, gate });
}

/// The reverse of [`enrol`].
pub fn withdraw(gate: &Gate) {
    lock(&GATES).retain(|entry| !Arc::ptr_eq(gate, &entry.gate));
}

/// Whether `exit` was called: the threads take no work any longer.
pub fn ending() -> bool {
    ENDING.load(Ordering::Acquire)
}

/// Sees to it that `exit` comes here before it destroys anything. What libtorch makes on first use registers its own
/// destructor, and the last to register goes first, so this is done again: at the first, second, fourth, … call.
pub fn watch() {
    if (CALLS.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two() {
        atexit(wait);
    }
}

extern "C" fn wait() {
    if ENDING.swap(true, Ordering::AcqRel) {
        return;
    }
    let (pid, thread) = (std::process::id(), std::thread::current().id());
    // In a forked child the parent's threads are not there to open their gates.
    let others = |entry: &&Entry| entry.pid == pid && entry.thread != thread;
    for entry in lock(&GATES).iter().filter(others) {
        std::mem::forget(lock(&entry.gate));
    }
}
