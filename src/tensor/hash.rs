//! A hash of a tensor's content, as a key.

use super::rows::select_rows;
use super::transfer::to_host;
use crate::error::Result;
use tch::{Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

/// 128-bit XXH3 of shape, dtype and elements, which is equal for equal content on every device.
/// A CUDA tensor is copied to the host once. The hash is not cryptographic, because nobody gains by
/// forging a reference image.
pub fn content_hash(tensor: &Tensor) -> Result<u128> {
    of_host(&to_host(tensor)?)
}

/// [`content_hash`] of some rows of a batch. They are copied to the host together.
pub fn content_hashes(batch: &Tensor, rows: &[usize]) -> Result<Vec<u128>> {
    if rows.is_empty() {
        return Ok(vec![]);
    }
    let host = to_host(&select_rows(batch, rows)?)?;
    (0..rows.len() as i64)
        .map(|at| of_host(&host.f_select(0, at)?))
        .collect()
}

fn of_host(tensor: &Tensor) -> Result<u128> {
    let host = tensor.f_contiguous()?.f_view_dtype(Kind::Uint8)?;
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
