//! Rectangles of the maps of a batch.

use crate::config::Rect;
use crate::error::{Result, bail};
use tch::Tensor;

/// One rectangle per sample, all of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regions(pub Vec<Rect>);

impl Regions {
    /// The rectangle, where it is the same for all samples.
    fn shared_rect(&self) -> Option<Rect> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().all(|rect| rect == first).then_some(*first)
    }

    /// Cuts the rectangles out of `map` `[B,C,H,W]`: `[B,C,height,width]`.
    pub(super) fn cut(&self, map: &Tensor) -> Result<Tensor> {
        let cut =
            |map: &Tensor, r: &Rect| map.f_narrow(2, r.y, r.height)?.f_narrow(3, r.x, r.width);
        if let Some(rect) = self.shared_rect() {
            return Ok(cut(map, &rect)?);
        }
        let rects = (0..).zip(&self.0);
        let parts = rects.map(|(at, rect)| Ok(cut(&map.f_narrow(0, at, 1)?, rect)?));
        Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The adjoint of [`Regions::cut`]: a map of `size` with `part` in the rectangles and zeros around them.
    pub(super) fn adjoint(&self, part: &Tensor, size: &[i64]) -> Result<Tensor> {
        let &[_, _, height, width] = size else {
            bail!(Internal, "regions of a map of shape {size:?}");
        };
        let pad = |part: &Tensor, r: &Rect| {
            let around = [r.x, width - r.x - r.width, r.y, height - r.y - r.height];
            part.f_constant_pad_nd(around)
        };
        if let Some(rect) = self.shared_rect() {
            return Ok(pad(part, &rect)?);
        }
        let rects = (0..).zip(&self.0);
        let maps = rects.map(|(at, rect)| Ok(pad(&part.f_narrow(0, at, 1)?, rect)?));
        Ok(Tensor::f_cat(&maps.collect::<Result<Vec<_>>>()?, 0)?)
    }
}
