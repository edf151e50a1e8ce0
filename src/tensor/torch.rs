//! Which torch this process has. The answers come from `libfacegrad_torch.so`, the part of the library that is
//! compiled for one minor version of torch (`docs/torch.md`).

use crate::error::{Result, bail};
use std::ffi::{CStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A host's log callback, as `facegrad_set_log_callback` takes it.
pub type LogCallback = unsafe extern "C" fn(i32, *const c_char, *mut c_void);

// torch/part.cc defines these.
unsafe extern "C" {
    safe fn facegrad_torch_compiled() -> *const c_char;
    safe fn facegrad_torch_running() -> u64;
    safe fn facegrad_torch_address() -> *const c_void;
    fn facegrad_torch_call_log(
        log: LogCallback,
        level: i32,
        message: *const c_char,
        user_data: *mut c_void,
    ) -> i32;
}

/// The torch whose headers the part was compiled with, such as `2.11.0`.
pub fn compiled_torch() -> &'static str {
    // SAFETY: a string literal of the part, which stays as long as this library: for good (`-z nodelete`).
    let text = unsafe { CStr::from_ptr(facegrad_torch_compiled()) };
    text.to_str().unwrap_or("unknown")
}

/// The torch of this process, such as `2.11.0`. Before torch 2.7, libtorch does not tell its version;
/// then this is the one that the part was compiled for.
pub fn running_torch() -> String {
    match facegrad_torch_running() {
        0 => compiled_torch().to_string(),
        version => {
            let byte = |at: u32| (version >> at) & 0xff;
            format!("{}.{}.{}", byte(56), byte(48), byte(40))
        }
    }
}

/// Fails unless the torch of this process has the minor version that the part was compiled for. libtorch's
/// C++ ABI changes with every minor version.
pub fn check_torch() -> Result<()> {
    let running = running_torch();
    let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_string());
    if minor(&running) != minor(compiled_torch()) {
        bail!(
            Torch,
            "this process has torch {running}, but the libfacegrad_torch that it loaded was compiled for torch {}; \
             load the one for torch {running} instead (docs/torch.md)",
            compiled_torch()
        );
    }
    Ok(())
}

/// The folder of the torch of this process: the one that holds `lib/libtorch_cpu.so`.
pub fn torch_folder() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: `dladdr` fills `info` where it returns non-zero, and takes any address.
    let info = unsafe {
        match libc::dladdr(facegrad_torch_address(), info.as_mut_ptr()) {
            0 => return None,
            _ => info.assume_init(),
        }
    };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: not NULL, and the loader keeps the name of a loaded library.
    let path = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()));
    Some(path.canonicalize().ok()?.parent()?.parent()?.to_path_buf())
}

/// Calls a host's log callback; true where it threw a C++ exception, which the part catches.
///
/// # Safety
/// `log` may be called on this thread with `user_data`, and `message` is a text with a NUL.
pub unsafe fn call_log(
    log: LogCallback,
    level: i32,
    message: *const c_char,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { facegrad_torch_call_log(log, level, message, user_data) != 0 }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_failing_call_with_a_scalar_is_an_error_and_no_panic() {
        let x = Tensor::f_zeros([2, 2], (Kind::Float, Device::Cpu)).unwrap();
        let int = x.f_to_kind(Kind::Int64).unwrap();
        // A wrong dimension, a wrong kind, two scalars, and no room.
        assert!(
            x.f_norm_scalaropt_dim(2.0, [9i64].as_slice(), true)
                .is_err()
        );
        assert!(
            int.f_norm_scalaropt_dim(2.0, [0i64].as_slice(), true)
                .is_err()
        );
        let vast = x
            .f_narrow(0, 0, 1)
            .unwrap()
            .f_narrow(1, 0, 1)
            .unwrap()
            .f_expand([1 << 40, 1 << 20], false)
            .unwrap();
        for error in [
            vast.f_mul_scalar(2.0).unwrap_err(),
            vast.f_clamp(0.0, 1.0).unwrap_err(),
        ] {
            assert_eq!(crate::error::Error::from(error).status(), 200);
        }
        // What comes next is right again.
        assert_eq!(
            x.f_add_scalar(1.0)
                .unwrap()
                .f_sum(Kind::Float)
                .unwrap()
                .f_double_value(&[])
                .unwrap(),
            4.0
        );
    }
}
