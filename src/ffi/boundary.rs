//! The boundary between the host and the library. No panic crosses it, and every error becomes a status and a
//! sentence.

use super::{life, panics};
use crate::error::{Error, Result, shorten};
use crate::worker::{check_callbacks, in_callback, panic_text};
use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::Location;
use std::sync::Mutex;

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The last error of a thread whose thread-local data is destroyed already, as in an exit handler.
static LATE_ERROR: Mutex<String> = Mutex::new(String::new());

/// Runs the body of one entry point and returns its status.
#[track_caller]
pub fn call(body: impl FnOnce() -> Result<()>) -> i32 {
    panics::log_own();
    let outcome = match life::enter() {
        Err(error) => Ok(Err(error)),
        Ok(_inside) => panics::catch(|| {
            if in_callback() {
                return Err(Error::Reentrant(
                    "a callback of facegrad must not call back into facegrad".into(),
                ));
            }
            body()?;
            check_callbacks()
        }),
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

/// Keeps the text of an error. Where it quotes a file at length, its middle is left out.
fn remember(message: &str) {
    let own = LAST_ERROR.try_with(|last| *last.borrow_mut() = shorten(message));
    if let (Err(_), Ok(mut late)) = (own, LATE_ERROR.try_lock()) {
        *late = shorten(message);
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

/// Copies `text` and a NUL to the caller's buffer, as much as fits, and writes to `needed` how many bytes the whole
/// takes.
///
/// # Safety
/// `buffer` is NULL or has `capacity` writable bytes; `needed` is NULL or writable.
pub unsafe fn copy_text(text: &str, buffer: *mut c_char, capacity: usize, needed: *mut usize) {
    // In C, a NUL inside the text would end it early.
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
