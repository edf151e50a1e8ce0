//! A tensor's content as a key.

use crate::error::Result;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

/// SHA-256 of shape, dtype and elements: equal for equal content wherever the tensor lies.
/// A CUDA tensor is copied to the host once.
pub fn content_hash(tensor: &Tensor) -> Result<[u8; 32]> {
    let host = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut hash = Sha256::new();
    hash.update(format!("{:?}{:?}", host.size(), host.kind()));
    let bytes = host.f_view_dtype(Kind::Uint8)?;
    let mut data = vec![0u8; bytes.numel()];
    bytes.f_copy_data_u8(&mut data, bytes.numel())?;
    hash.update(&data);
    Ok(hash.finalize().into())
}
