//! Functions that take no handle: versions, errors, messages, counters.

use super::boundary::{call, copy_text, last_error};
use super::handle;
use super::read::{optional_text, output};
use super::types::*;
use crate::config::{LossConfig, keys};
use crate::error::status_name;
use crate::log::{Level, Sink, set_sink};
use crate::tensor::{call_log, compiled_torch, cuda_devices, running_torch};
use crate::worker::callback;
use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

/// The version of this ABI. It changes when a function or a field is removed or re-typed.
pub const FACEGRAD_ABI_VERSION: u32 = 1;

/// The ABI version of the library that is loaded. A host compares it with `FACEGRAD_ABI_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_abi_version() -> u32 {
    FACEGRAD_ABI_VERSION
}

/// `facegrad/x.y.z torch/x.y.z`: the versions of this library and of the torch in this process. A static string.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_version() -> *const c_char {
    static TEXT: once_cell::sync::Lazy<CString> = once_cell::sync::Lazy::new(|| {
        let text = format!(
            "facegrad/{} torch/{}",
            env!("CARGO_PKG_VERSION"),
            running_torch()
        );
        CString::new(text).unwrap_or_default()
    });
    TEXT.as_ptr()
}

/// Describes the library and the process as a JSON object: `facegrad` (the library's version), `abi`, `torch`
/// (the version in this process), `torch_compiled` (the version that `libfacegrad_torch.so` was compiled for),
/// `onnxruntime_api` (the least API level that ONNX Runtime must support), `cuda_devices` (devices that torch
/// sees; 0 while its CUDA half is not loaded), `loss_keys` (the keys of a loss's config).
///
/// @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
/// @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_build_info(
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> facegrad_status {
    call(|| {
        let info = serde_json::json!({
            "facegrad": env!("CARGO_PKG_VERSION"),
            "abi": FACEGRAD_ABI_VERSION,
            "torch": running_torch(),
            "torch_compiled": compiled_torch(),
            "onnxruntime_api": ort::MINOR_VERSION,
            "cuda_devices": cuda_devices(),
            "loss_keys": keys::<LossConfig>(),
        });
        // SAFETY: the host's promise is `copy_text`'s.
        unsafe { copy_text(&info.to_string(), buffer, capacity, needed) };
        Ok(())
    })
}

/// The name of a status as a static string; `unknown` for a number that this library never returns.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_status_name(status: facegrad_status) -> *const c_char {
    static NAMES: once_cell::sync::Lazy<std::collections::HashMap<i32, CString>> =
        once_cell::sync::Lazy::new(|| {
            (0..1000)
                .map(|status| (status, status_name(status)))
                .filter(|(_, name)| *name != "unknown")
                .filter_map(|(status, name)| Some((status, CString::new(name).ok()?)))
                .collect()
        });
    NAMES
        .get(&status)
        .map_or(c"unknown".as_ptr(), |name| name.as_ptr())
}

/// The sentence about the last call on this thread that failed. It names the argument, what was
/// expected and what came. A call that succeeds does not change it.
///
/// @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
/// @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_last_error(
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> facegrad_status {
    // SAFETY: the host's promise is `copy_text`'s.
    unsafe { copy_text(&last_error(), buffer, capacity, needed) };
    FACEGRAD_OK
}

/// Sets the receiver of the library's messages for the whole process, until the next call of this function. The
/// library never prints; without a receiver messages are dropped. After this function has returned, the old receiver
/// is not called again. If it runs on another thread, this function waits for it, for up to 10 seconds.
///
/// @param[in] log the receiver; NULL for none
/// @param[in] user_data passed to every call of `log`; must stay valid until another receiver is set
/// @param[in] max_level the least important level to send, `FACEGRAD_LOG_*`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_set_log_callback(
    log: facegrad_log_callback,
    user_data: *mut c_void,
    max_level: i32,
) -> facegrad_status {
    struct UserData(*mut c_void);
    // SAFETY: the host promises that its callback may be called from any thread.
    unsafe impl Send for UserData {}
    // SAFETY: as above.
    unsafe impl Sync for UserData {}
    impl UserData {
        fn get(&self) -> *mut c_void {
            self.0
        }
    }

    call(|| {
        let level = match max_level {
            FACEGRAD_LOG_ERROR => Level::Error,
            FACEGRAD_LOG_WARN => Level::Warn,
            FACEGRAD_LOG_INFO => Level::Info,
            FACEGRAD_LOG_DEBUG => Level::Debug,
            other => crate::error::bail!(Argument, "max_level: expected 1 to 4, got {other}"),
        };
        let user_data = UserData(user_data);
        set_sink(log.map(|log| {
            let sink: Sink = Arc::new(move |level: Level, message: &str| {
                let message = CString::new(message.replace('\0', "?")).unwrap_or_default();
                // SAFETY: the host promises that function and data stay valid; the text is
                // NUL-terminated and lives until the callback returns.
                callback(|| unsafe {
                    call_log(log, level as i32, message.as_ptr(), user_data.get())
                });
            });
            (level, sink)
        }));
        Ok(())
    })
}

/// Counts the handles that are not freed yet, for a host's own leak tests.
///
/// @param[in] kind `context`, `detector`, `backbone`, `vae`, `loss`, `graph` or `evaluator`; NULL
/// counts all
/// @param[out] count the number of handles of that kind in the process
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_debug_live(
    kind: *const c_char,
    count: *mut i64,
) -> facegrad_status {
    call(|| {
        let count = output("count", count)?;
        // SAFETY: the host's promise is `optional_text`'s.
        let name = unsafe { optional_text("kind", kind) }?;
        const TYPES: [&str; 7] = [
            "context",
            "detector",
            "backbone",
            "vae",
            "loss",
            "graph",
            "evaluator",
        ];
        if let Some(name) = &name
            && !TYPES.contains(&name.as_str())
        {
            crate::error::bail!(Argument, "kind: expected one of {TYPES:?}, got \"{name}\"");
        }
        // SAFETY: not NULL, and the host promises that it is writable.
        unsafe { count.write(handle::live(name.as_deref())) };
        Ok(())
    })
}
