//! Tensors that cross the boundary, and what tch lacks.

mod array;
mod autograd;
mod cuda;
mod hash;
mod pixels;
mod rows;
mod view;

pub use array::{from_array, to_array};
pub use autograd::{GradGuard, vjp};
pub use cuda::{Stream, StreamGuard, cuda_devices, parse_device};
pub use hash::content_hash;
pub use pixels::{Pixels, finite, pixels, quantised};
pub use rows::{finite_rows, flags, place_rows, select_rows};
pub use view::{RawTensor, Use, View, device_name, lent};

/// The torch that this library is built for. libtorch's C++ ABI changes with every minor version,
/// so a process must have this one.
pub const TORCH_VERSION: &str = "2.11.0";

unsafe extern "C" {
    /// libtorch's version: 0xMMmmpp… in the high bytes (torch/csrc/inductor/aoti_torch/c/shim.h).
    safe fn aoti_torch_abi_version() -> u64;
}

/// Fails unless the libtorch of this process is the one that the library was built for.
pub fn check_torch() -> crate::error::Result<()> {
    let version = aoti_torch_abi_version();
    let (major, minor) = (version >> 56, (version >> 48) & 0xff);
    if (major, minor) != (2, 11) {
        crate::error::bail!(
            Torch,
            "this process has torch {major}.{minor}, but facegrad was built for torch {TORCH_VERSION}; \
             install that version"
        );
    }
    Ok(())
}
