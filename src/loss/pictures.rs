//! The generated pictures as the loss sees them.

use super::Candidate;
use crate::align::Frame;
use crate::error::Result;
use tch::{Device, Tensor};

/// Generated pictures, as far as finding their faces needs them.
pub(super) trait Pictures {
    /// Height and width in pixels.
    fn size(&self) -> (i64, i64);

    /// Which of them are finite.
    fn finite(&self) -> Result<Vec<bool>>;

    /// Some of them, `[rows,3,H,W]` in [0, 1], without a graph.
    fn show(&mut self, rows: &[i64]) -> Result<Tensor>;
}

/// `[N,3,H,W]`, without a graph.
impl Pictures for Tensor {
    fn size(&self) -> (i64, i64) {
        let size = Tensor::size(self);
        (size[2], size[3])
    }

    fn finite(&self) -> Result<Vec<bool>> {
        finite(self)
    }

    fn show(&mut self, rows: &[i64]) -> Result<Tensor> {
        select_rows(self, rows)
    }
}

/// What is decoded of pictures with a face each.
pub(super) struct Shown {
    /// `[n,3,height,width]` in [0, 1].
    pub images: Tensor,
    /// Where each lies in its picture; empty where they are whole.
    pub frames: Vec<Frame>,
    /// The face in each, in the same order.
    pub candidates: Vec<Candidate>,
}

/// Whether all numbers of each row are finite.
pub(super) fn finite(rows: &Tensor) -> Result<Vec<bool>> {
    let finite = rows.f_isfinite()?.f_flatten(1, -1)?.f_all_dim(1, false)?;
    Ok(Vec::try_from(finite.f_to_device(Device::Cpu)?)?)
}

/// Rows of a batch; the batch itself where all are asked for in order.
pub(super) fn select_rows(images: &Tensor, rows: &[i64]) -> Result<Tensor> {
    if rows.len() as i64 == images.size()[0] && rows.is_sorted() {
        return Ok(images.shallow_clone());
    }
    let index = Tensor::f_from_slice(rows)?.f_to_device(images.device())?;
    Ok(images.f_index_select(0, &index)?)
}
