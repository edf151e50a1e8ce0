//! Tensors that come from the host or go to it, and functions of libtorch that tch lacks.

mod array;
mod autograd;
mod cuda;
mod hash;
mod pixels;
mod rows;
mod stream;
mod torch;
mod transfer;
mod view;

pub use array::{from_array, to_array};
pub use autograd::{GradGuard, vjp};
pub use cuda::{cuda_devices, parse_device};
pub use hash::{content_hash, content_hashes};
pub use pixels::{MAX_PIXELS, Pixels, bounded, finite, pixels, quantised, unusual_range};
pub use rows::{finite_rows, flags, place_rows, select_rows};
#[cfg(test)]
pub(crate) use stream::backward_is_on_this_thread;
#[cfg(test)]
pub(crate) use stream::tests::{IN_USE, Recording};
pub use stream::{Order, Stream, backward_on_this_thread, in_use, wait_for_device};
pub use torch::{call_log, check_torch, compiled_torch, running_torch, torch_folder};
pub use transfer::{number, numbers, to_host, upload, waits};
pub use view::{RawTensor, Use, View, device_name, lent};
