//! The wall between the host and the library: no panic crosses it, every error becomes a status
//! and a sentence.

use super::life;
use crate::error::{Error, Result};
use crate::log::{Level, emit};
use crate::worker::{check_callbacks, in_callback, on_worker, panic_text};
use std::cell::{Cell, RefCell};
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::{Mutex, Once};

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The last error of a thread whose own data is gone already: in an exit handler or a key's destructor.
static LATE_ERROR: Mutex<String> = Mutex::new(String::new());

/// Runs the body of one entry point.
#[track_caller]
pub fn call(body: impl FnOnce() -> Result<()>) -> i32 {
    quiet_panics();
    let outcome = match life::enter() {
        Err(error) => Ok(Err(error)),
        Ok(_inside) => {
            let outer = INSIDE.replace(true);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                if in_callback() {
                    return Err(Error::Reentrant(
                        "a callback of facegrad must not call back into facegrad".into(),
                    ));
                }
                body()?;
                check_callbacks()
            }));
            INSIDE.set(outer);
            outcome
        }
    };
    let error = match outcome {
        Ok(Ok(())) => {
            life::worked(Location::caller());
            return 0;
        }
        Ok(Err(error)) => error,
        Err(panic) => Error::Panic(panic_text(panic.as_ref())),
    };
    let status = error.status();
    remember(error.message());
    status
}

fn remember(message: &str) {
    let own = LAST_ERROR.try_with(|last| *last.borrow_mut() = message.to_string());
    if let (Err(_), Ok(mut late)) = (own, LATE_ERROR.try_lock()) {
        *late = message.to_string();
    }
}

/// The text of this thread's last error.
pub fn last_error() -> String {
    LAST_ERROR
        .try_with(|last| last.borrow().clone())
        .unwrap_or_else(|_| {
            let late = LATE_ERROR.try_lock();
            late.map(|text| text.clone()).unwrap_or_default()
        })
}

/// Sends a panic of the library to the host's log instead of the host's standard error; panics of
/// anybody else go where they went.
pub(super) fn quiet_panics() {
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

/// Copies `text` and a NUL into the caller's buffer, as much as fits, and tells the bytes that the
/// whole needs.
///
/// # Safety
/// `buffer` is NULL or has `capacity` writable bytes; `needed` is NULL or writable.
pub unsafe fn copy_text(text: &str, buffer: *mut c_char, capacity: usize, needed: *mut usize) {
    // A NUL inside would end the text early for every C reader.
    let bytes: Vec<u8> = text
        .bytes()
        .map(|b| if b == 0 { b'?' } else { b })
        .collect();
    if !buffer.is_null() && capacity > 0 {
        let mut length = bytes.len().min(capacity - 1);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        // SAFETY: `length + 1 <= capacity`, and the caller promises that many writable bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast(), length);
            buffer.add(length).write(0);
        }
    }
    if !needed.is_null() {
        // SAFETY: not NULL, and the caller promises that it is writable.
        unsafe { needed.write(bytes.len() + 1) };
    }
}
