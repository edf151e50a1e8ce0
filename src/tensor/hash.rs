//! A hash of a tensor's content, as a key.

use crate::error::Result;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

/// 128-bit XXH3 of shape, dtype and elements, which is equal for equal content on every device.
/// A CUDA tensor is copied to the host once. The hash is not cryptographic, because nobody gains by
/// forging a reference image.
pub fn content_hash(tensor: &Tensor) -> Result<u128> {
    let host = tensor
        .detach()
        .f_to_device(Device::Cpu)?
        .f_contiguous()?
        .f_view_dtype(Kind::Uint8)?;
    let mut hash = Xxh3::new();
    hash.update(format!("{:?}{:?}", tensor.size(), tensor.kind()).as_bytes());
    let length = host.numel();
    if length > 0 {
        // SAFETY: `host` is contiguous CPU memory of `length` bytes and lives until the end of the
        // block; nothing else writes it meanwhile.
        hash.update(unsafe { std::slice::from_raw_parts(host.data_ptr().cast::<u8>(), length) });
    }
    Ok(hash.digest128())
}
