//! Callbacks of the host: which threads are inside one, and whether one threw.

use crate::error::{Result, bail};
use std::cell::Cell;

// Neither has a destructor, so exit handlers can use them.
thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
    static THREW: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs a callback of the host.
pub fn in_callback() -> bool {
    IN_CALLBACK.get()
}

/// Runs a callback of the host, which returns whether it threw. Calls of the library from inside it are refused.
pub fn callback(f: impl FnOnce() -> bool) {
    let outer = IN_CALLBACK.replace(true);
    if f() {
        THREW.set(true);
    }
    IN_CALLBACK.set(outer);
}

/// Fails where a callback threw on this thread since the last check.
pub fn check_callbacks() -> Result<()> {
    if THREW.replace(false) {
        bail!(
            Callback,
            "an exception left the log callback; a callback must catch its own"
        );
    }
    Ok(())
}

/// Forgets what callbacks on this thread threw before.
pub(super) fn forget_callbacks() {
    THREW.set(false);
}
