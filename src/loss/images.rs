//! The generated images as face detection needs them.

use crate::error::Result;
use crate::tensor::{finite_rows, select_rows};
use tch::Tensor;

/// A batch of generated images that may not be decoded yet.
pub(crate) trait GeneratedImages {
    /// Height and width in pixels.
    fn size(&self) -> (i64, i64);

    /// Per image whether all its numbers are finite: `[N]` of bool on the images' device, not read yet.
    fn finite(&self) -> Result<Tensor>;

    /// Whether something of the images is remembered for later steps. Then images that are not finite have to be known
    /// before.
    fn are_remembered(&self) -> bool;

    /// Some of the images, `[rows,3,H,W]` in [0, 1], without a graph.
    fn decoded(&mut self, rows: &[usize]) -> Result<Tensor>;
}

/// Images `[N,3,H,W]` that are decoded already, without a graph.
impl GeneratedImages for Tensor {
    fn size(&self) -> (i64, i64) {
        let size = Tensor::size(self);
        (size[2], size[3])
    }

    fn finite(&self) -> Result<Tensor> {
        finite_rows(self)
    }

    fn are_remembered(&self) -> bool {
        false
    }

    fn decoded(&mut self, rows: &[usize]) -> Result<Tensor> {
        select_rows(self, rows)
    }
}
