//! Contexts.

use super::boundary::call;
use super::handle::{self, Object};
use super::read::{self, output};
use super::types::*;
use super::watch::Watch;
use crate::config::ContextConfig;
use crate::error::Result;
use crate::tensor::{Stream, check_torch, parse_device};
use crate::worker::{Owned, Worker};
use std::ffi::c_char;
use std::sync::Arc;

/// The object behind a `facegrad_context`.
pub(super) struct Context {
    /// The thread that owns all objects of the context.
    pub worker: Arc<Worker>,
}

impl Object for Context {
    const NAME: &'static str = "context";
}

/// An object of a context: its value on the worker and what it says about itself.
pub(super) struct Model<T: Send + 'static> {
    /// The value.
    pub owned: Owned<T>,
    /// Checks the range of the images that the host hands over.
    pub watch: Arc<Watch>,
    /// One line of text, or JSON.
    pub info: String,
}

impl<T: Send + 'static> Model<T> {
    /// A model of a value and its description.
    pub fn new(owned: Owned<T>, info: String) -> Self {
        let watch = Arc::new(Watch::new());
        Self { owned, watch, info }
    }
}

/// Makes a context and starts its thread.
///
/// @param[in] config JSON `{"device": "cpu" | "cuda" | "cuda:N"}`; NULL means the CPU
/// @param[out] out the new context; NULL on failure
///
/// Errors: `DEVICE` where this machine or this torch has no such device, `TORCH` where the torch of the process
/// is another version than the library was built for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_context_new(
    config: *const c_char,
    out: *mut *mut facegrad_context,
) -> facegrad_status {
    let body = || {
        // SAFETY: the host promises NULL or a string.
        let config: ContextConfig = unsafe { read::config("context config", config) }?;
        check_torch()?;
        let worker = Worker::spawn(parse_device(&config.device)?)?;
        Ok(Context { worker })
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

/// Frees a context. Objects that were made with it stay usable until they are freed themselves. NULL and a
/// handle that was freed do nothing.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_context_free(context: *mut facegrad_context) {
    call(|| {
        handle::remove::<Context, _>(context);
        Ok(())
    });
}

/// Panics on the context's thread on purpose, so that a host can test how it handles `FACEGRAD_ERR_PANIC`
/// and `FACEGRAD_ERR_POISONED`. Afterwards the context can only be freed.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_debug_panic(context: *mut facegrad_context) -> facegrad_status {
    call(|| {
        let context = handle::get::<Context, _>("context", context)?;
        context.worker.run(Stream::default(), || -> Result<()> {
            panic!("facegrad_debug_panic was called")
        })
    })
}

/// Runs a constructor: `out` gets the new handle, or NULL on failure.
///
/// # Safety
/// `out` is NULL or writable.
pub(super) unsafe fn make<T: Object, H>(
    out: *mut *mut H,
    body: impl FnOnce() -> Result<T>,
) -> facegrad_status {
    call(|| {
        let out = output("out", out)?;
        // SAFETY: not NULL, and the host promises that it is writable.
        unsafe { out.write(std::ptr::null_mut()) };
        let handle = handle::insert(body()?);
        // SAFETY: as above.
        unsafe { out.write(handle) };
        Ok(())
    })
}
