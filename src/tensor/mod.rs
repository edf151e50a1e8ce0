//! Tensors that cross the boundary, and what tch lacks.

mod array;
mod autograd;
mod cuda;
mod hash;
mod view;

pub use array::from_array;
pub use autograd::{GradGuard, vjp};
pub use cuda::{Stream, StreamGuard, cuda_devices, parse_device};
pub use hash::content_hash;
pub use view::{RawTensor, Use, View, device_name};

/// The torch that this library is built for. libtorch's C++ ABI changes with every minor version,
/// so a process must have this one.
pub const TORCH_VERSION: &str = "2.11.0";
