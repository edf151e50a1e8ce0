//! Panics of the library: they are caught, and they go to the host's log.

use crate::log::{Level, emit};
use crate::worker::on_worker;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether this thread runs code of the library.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` and catches its panic.
pub fn catch<T>(body: impl FnOnce() -> T) -> std::thread::Result<T> {
    let outer = INSIDE.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    INSIDE.set(outer);
    outcome
}

/// Sends panics of the library to the host's log instead of standard error. All other panics of the process are handled
/// as before.
pub fn log_own() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if on_worker() || INSIDE.get() {
                emit(Level::Error, &info.to_string());
            } else {
                others(info);
            }
        }));
    });
}
