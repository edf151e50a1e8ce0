//! What CUDA needs and tch lacks: libtorch's CUDA half loaded at run time, and the host's stream.
//!
//! The library links only the CPU half, so one binary serves CPU and CUDA builds of torch. The CUDA
//! half is already in a process that imported torch; elsewhere it is opened here.

use crate::error::{Result, bail};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use once_cell::sync::Lazy;
use std::ffi::c_void;
use std::path::PathBuf;
use tch::Device;

const LIBRARY: &str = "libtorch_cuda.so";
const RTLD_NOLOAD: i32 = 4;

type CreateGuard = unsafe extern "C" fn(*mut c_void, i32, *mut *mut c_void) -> i32;
type DeleteGuard = unsafe extern "C" fn(*mut c_void) -> i32;

struct Shim {
    create: CreateGuard,
    delete: DeleteGuard,
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
        }
    };
    std::mem::forget(library);
    Some(shim)
});

/// Opens the library beside the libtorch of this process, or finds the one that is loaded already.
fn open(flags: i32) -> Option<Library> {
    let beside = super::torch_folder().map(|torch| torch.join("lib").join(LIBRARY));
    let names = [Some(LIBRARY.into()), beside];
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
            "device {text}: {LIBRARY} cannot be loaded; install a CUDA build of torch {} or use \"cpu\"",
            super::running_torch()
        );
    }
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    if !tch::Cuda::is_available() || ordinal >= count {
        bail!(
            Device,
            "device {text}: torch sees {count} CUDA device(s); check the driver and CUDA_VISIBLE_DEVICES"
        );
    }
    Ok(Device::Cuda(ordinal))
}

/// Whether libtorch's CUDA half is loaded and sees a device.
pub fn cuda_devices() -> i64 {
    if open(RTLD_NOLOAD | RTLD_LAZY).is_some() && tch::Cuda::is_available() {
        tch::Cuda::device_count()
    } else {
        0
    }
}

/// A host's `cudaStream_t` by address; 0 is CUDA's default stream and the only one on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stream(usize);

impl Stream {
    /// Wraps the pointer that a host gave.
    pub fn new(pointer: *mut c_void) -> Self {
        Stream(pointer.addr())
    }

    /// Makes the stream current on this thread until the guard is dropped.
    pub fn enter(self, device: Device) -> Result<StreamGuard> {
        let index = match device {
            Device::Cuda(index) => index as i32,
            _ if self.0 == 0 => return Ok(StreamGuard(None)),
            _ => bail!(
                Device,
                "stream: expected NULL for a CPU context, got a CUDA stream"
            ),
        };
        let Some(shim) = SHIM.as_ref() else {
            bail!(Device, "stream: {LIBRARY} is not loaded");
        };
        let mut guard = std::ptr::null_mut();
        // SAFETY: the host vouches for the stream; `guard` receives an owned pointer.
        let status = unsafe {
            (shim.create)(
                std::ptr::with_exposed_provenance_mut(self.0),
                index,
                &mut guard,
            )
        };
        if status != 0 || guard.is_null() {
            bail!(
                Device,
                "stream: libtorch refused the CUDA stream on cuda:{index}"
            );
        }
        Ok(StreamGuard(Some(guard)))
    }
}

/// Restores the thread's stream and device when dropped. It stays on the thread that made it.
pub struct StreamGuard(Option<*mut c_void>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if let (Some(guard), Some(shim)) = (self.0, SHIM.as_ref()) {
            // SAFETY: `guard` came from `create` and is deleted once, on the same thread.
            unsafe { (shim.delete)(guard) };
        }
    }
}
