//! What CUDA needs and tch lacks: libtorch's CUDA half loaded at run time, and what its C functions do with a stream.
//!
//! The library links only the CPU half, so one binary serves CPU and CUDA builds of torch. The CUDA
//! half is already in a process that imported torch; elsewhere it is opened here.

use crate::error::{Result, bail};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use once_cell::sync::Lazy;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::c_void;
use std::path::PathBuf;
use tch::Device;

/// libtorch's CUDA half, as this platform names it.
static LIBRARY: Lazy<String> = Lazy::new(|| format!("{DLL_PREFIX}torch_cuda{DLL_SUFFIX}"));
const RTLD_NOLOAD: i32 = 4;

type CreateGuard = unsafe extern "C" fn(*mut c_void, i32, *mut *mut c_void) -> i32;
type DeleteGuard = unsafe extern "C" fn(*mut c_void) -> i32;

/// `cudaStreamIsCapturing` and `cudaGetDeviceCount` of CUDA's runtime.
type IsCapturing = unsafe extern "C" fn(*mut c_void, *mut i32) -> i32;
type CountDevices = unsafe extern "C" fn(*mut i32) -> i32;
/// `cudaGetLastError`.
type Forget = unsafe extern "C" fn() -> i32;
/// `cudaErrorStreamCaptureImplicit`.
const CAPTURE_IMPLICIT: i32 = 906;

struct Shim {
    create: CreateGuard,
    delete: DeleteGuard,
    /// The runtime is among libtorch_cuda's dependencies, unless that was linked with a static one.
    captures: Option<IsCapturing>,
    devices: Option<CountDevices>,
    forget: Option<Forget>,
}

/// The stream functions of libtorch's C shim, which torch promises to keep.
static SHIM: Lazy<Option<Shim>> = Lazy::new(|| {
    let library = open(RTLD_NOLOAD | RTLD_LAZY).or_else(|| open(RTLD_LAZY | RTLD_GLOBAL))?;
    // SAFETY: the names and signatures are those of every torch since 2.6 in
    // torch/csrc/inductor/aoti_torch/c/shim.h; the library is never closed (below).
    let shim = unsafe {
        Shim {
            create: *library
                .get::<CreateGuard>(b"aoti_torch_create_cuda_stream_guard\0")
                .ok()?,
            delete: *library
                .get::<DeleteGuard>(b"aoti_torch_delete_cuda_stream_guard\0")
                .ok()?,
            captures: library
                .get::<IsCapturing>(b"cudaStreamIsCapturing\0")
                .ok()
                .map(|function| *function),
            forget: library
                .get::<Forget>(b"cudaGetLastError\0")
                .ok()
                .map(|function| *function),
            devices: library
                .get::<CountDevices>(b"cudaGetDeviceCount\0")
                .ok()
                .map(|function| *function),
        }
    };
    std::mem::forget(library);
    Some(shim)
});

/// Opens the library beside the libtorch of this process, or finds the one that is loaded already.
fn open(flags: i32) -> Option<Library> {
    let beside = super::torch_folder().map(|torch| torch.join("lib").join(&*LIBRARY));
    let names = [beside, Some(LIBRARY.as_str().into())];
    names.into_iter().flatten().find_map(|name: PathBuf| {
        // SAFETY: libtorch's initialisers have no preconditions; with RTLD_NOLOAD none runs.
        unsafe { Library::open(Some(name), flags) }.ok()
    })
}

/// The device of a configuration: `cpu`, `cuda` or `cuda:N`. Loads libtorch's CUDA half when asked
/// for; an absent GPU is an error that says what was missing.
pub fn parse_device(text: &str) -> Result<Device> {
    let ordinal = match text {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        other => other
            .strip_prefix("cuda:")
            .and_then(|n| n.parse::<usize>().ok()),
    };
    let Some(ordinal) = ordinal else {
        bail!(
            Config,
            "device: expected \"cpu\", \"cuda\" or \"cuda:N\", got \"{text}\""
        );
    };
    if SHIM.is_none() {
        bail!(
            Device,
            "device {text}: {} cannot be loaded; install a CUDA build of torch {} or use \"cpu\"",
            *LIBRARY,
            super::running_torch()
        );
    }
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    if !tch::Cuda::is_available() && devices_of_the_driver() > 0 {
        // libtorch decides once whether it has a CUDA half.
        bail!(
            Device,
            "device {text}: the driver has {} CUDA device(s), but libtorch was asked for CUDA before {library} was loaded \
             (a seed does that too) and will not look again; load or link {library} where the program begins, or make the \
             first facegrad context before anything else of libtorch",
            devices_of_the_driver(),
            library = *LIBRARY
        );
    }
    if !tch::Cuda::is_available() || ordinal >= count {
        bail!(
            Device,
            "device {text}: torch sees {count} CUDA device(s); check the driver and CUDA_VISIBLE_DEVICES"
        );
    }
    Ok(Device::Cuda(ordinal))
}

/// The devices that CUDA's runtime sees, whatever libtorch says.
fn devices_of_the_driver() -> i32 {
    let Some(devices) = SHIM.as_ref().and_then(|shim| shim.devices) else {
        return 0;
    };
    let mut count = 0;
    // SAFETY: the function writes one number.
    match unsafe { devices(&mut count) } {
        0 => count,
        _ => 0,
    }
}

/// Whether libtorch's CUDA half is loaded and sees a device.
pub fn cuda_devices() -> i64 {
    if open(RTLD_NOLOAD | RTLD_LAZY).is_some() && tch::Cuda::is_available() {
        tch::Cuda::device_count()
    } else {
        0
    }
}

/// Makes a host's stream current on this thread. Returns what [`leave_stream`] needs.
pub(super) fn enter_stream(stream: *mut c_void, index: i32) -> Result<usize> {
    let Some(shim) = SHIM.as_ref() else {
        bail!(Device, "stream: {} is not loaded", *LIBRARY);
    };
    let mut guard = std::ptr::null_mut();
    // SAFETY: the host vouches for the stream; `guard` receives an owned pointer.
    let status = unsafe { (shim.create)(stream, index, &mut guard) };
    if status != 0 || guard.is_null() {
        bail!(
            Device,
            "stream: libtorch refused the CUDA stream on cuda:{index}"
        );
    }
    Ok(guard.expose_provenance())
}

/// Restores the thread's stream and device; on the thread that called [`enter_stream`].
pub(super) fn leave_stream(guard: usize) {
    if let Some(shim) = SHIM.as_ref() {
        // SAFETY: the guard came from `create` and is deleted once, on the same thread.
        unsafe { (shim.delete)(std::ptr::with_exposed_provenance_mut(guard)) };
    }
}

/// Whether a CUDA graph is captured on the stream; false where CUDA's runtime cannot be asked.
pub(super) fn stream_captures(stream: *mut c_void) -> bool {
    let Some(captures) = SHIM.as_ref().and_then(|shim| shim.captures) else {
        return false;
    };
    let mut status = 0;
    // SAFETY: the host vouches for the stream.
    match unsafe { captures(stream, &mut status) } {
        // Anything but "none": active, or invalidated by an error.
        0 => status != 0,
        error => {
            if let Some(forget) = SHIM.as_ref().and_then(|shim| shim.forget) {
                // SAFETY: the function has no arguments. Else torch would take the error for that of its next kernel.
                unsafe { forget() };
            }
            // The default stream, while a stream is captured that waits for it.
            error == CAPTURE_IMPLICIT
        }
    }
}
