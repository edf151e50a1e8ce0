//! Statistics of GroupNorms. Mean and deviation are those of the whole map, so a norm that sees only a window of the
//! map must be given them.

use crate::error::{Result, bail};
use crate::tensor::{in_use, upload};
use std::cell::RefCell;
use tch::{Kind, Tensor};

/// Statistics of every GroupNorm of a decoder for a batch: `[norms,2,B,groups]`, f32, mean and reciprocal
/// deviation. They count as constants in the backward pass.
#[derive(Debug)]
pub struct Statistics(Tensor);

impl Statistics {
    /// The statistics of one sample of the batch.
    pub fn sample(&self, at: i64) -> Result<Statistics> {
        Ok(Statistics(self.0.f_narrow_copy(2, at, 1)?))
    }

    /// The statistics of several batches, joined along the batch.
    pub fn join(parts: &[Statistics]) -> Result<Statistics> {
        let parts: Vec<&Tensor> = parts.iter().map(|part| &part.0).collect();
        Ok(Statistics(Tensor::f_cat(&parts, 2)?))
    }

    /// `Σ weight·statistics` of at least one part. The parts may have been made by calls on another stream.
    pub fn blend(parts: &[(&Statistics, f64)]) -> Result<Statistics> {
        for (part, _) in parts {
            in_use(&part.0)?;
        }
        let rows: Vec<&Tensor> = parts.iter().map(|(part, _)| &part.0).collect();
        let weights: Vec<f32> = parts.iter().map(|(_, weight)| *weight as f32).collect();
        let all = Tensor::f_stack(&rows, -1)?;
        let weights = upload(&weights, all.device())?;
        Ok(Statistics(all.f_matmul(&weights)?))
    }

    /// Statistics from a tensor `[norms,2,B,groups]`, f32.
    pub fn from_tensor(tensor: Tensor) -> Statistics {
        Statistics(tensor)
    }

    /// `[norms,2,B,groups]`.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// The same tensor, not a copy.
    pub fn share(&self) -> Statistics {
        Statistics(self.0.shallow_clone())
    }

    /// Mean and reciprocal deviation `[B,groups]` of norm `id`.
    fn norm(&self, id: i64) -> Result<(Tensor, Tensor)> {
        let one = self.0.f_select(0, id)?;
        Ok((one.f_select(0, 0)?, one.f_select(0, 1)?))
    }
}

/// The statistics that the GroupNorms of a chain use.
pub(super) enum Norms<'a> {
    /// Those of the map that they see.
    Own,
    /// Those of the map that they see, which are also recorded.
    Recorded(&'a Recorder),
    /// Given statistics of the whole map, of which they see a part.
    Given(&'a Statistics),
}

/// Collects statistics while a chain runs.
#[derive(Default)]
pub(super) struct Recorder(RefCell<Vec<(i64, Tensor)>>);

impl Recorder {
    /// The recorded statistics of all norms; `None` where the chain has no GroupNorm.
    pub(super) fn finish(self) -> Result<Option<Statistics>> {
        let mut seen = self.0.into_inner();
        seen.sort_by_key(|(id, _)| *id);
        if seen.is_empty() {
            return Ok(None);
        }
        let rows: Vec<Tensor> = seen.into_iter().map(|(_, row)| row).collect();
        Ok(Some(Statistics(Tensor::f_stack(&rows, 0)?)))
    }
}

/// GroupNorm with weight and bias.
pub(super) struct GroupNorm {
    /// Counts the decoder's recorded norms from 0, in the order of the chain.
    pub id: i64,
    pub groups: i64,
    pub weight: Tensor,
    pub bias: Tensor,
    pub eps: f64,
}

impl GroupNorm {
    pub(super) fn apply(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        match norms {
            Norms::Own => Ok(x.f_group_norm(self.groups, weight, bias, self.eps, true)?),
            Norms::Recorded(recorder) => {
                let size = x.size();
                let &[b, c, h, w] = size.as_slice() else {
                    bail!(Internal, "GroupNorm of a map of shape {size:?}");
                };
                let x = x.f_contiguous()?;
                let (y, mean, rstd) =
                    x.f_native_group_norm(weight, bias, b, c, h * w, self.groups, self.eps)?;
                let row = Tensor::f_stack(&[mean, rstd], 0)?.f_to_kind(Kind::Float)?;
                recorder.0.borrow_mut().push((self.id, row));
                Ok(y)
            }
            Norms::Given(statistics) => {
                let (mean, rstd) = statistics.norm(self.id)?;
                let samples = mean.size()[0];
                if x.size()[0] != samples {
                    bail!(
                        Internal,
                        "statistics of {samples} samples for a map of shape {:?}",
                        x.size()
                    );
                }
                // (x − mean)·rstd·weight + bias, as one multiplication and one addition per channel.
                let channels = self.weight.size()[0];
                let wide =
                    |t: &Tensor| t.f_repeat_interleave_self_int(channels / self.groups, 1, None);
                let scale = wide(&rstd)?.f_mul(&self.weight)?;
                let shift = self.bias.f_sub(&wide(&mean)?.f_mul(&scale)?)?;
                let like = |t: Tensor| t.f_to_kind(x.kind())?.f_view([samples, channels, 1, 1]);
                Ok(like(shift)?.f_addcmul(x, &like(scale)?)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::IN_USE;
    use tch::Device;

    #[test]
    fn statistics_of_earlier_calls_are_marked_as_in_use() {
        let one = |value: f64| {
            let all = Tensor::f_full([2, 2, 1, 4], value, (Kind::Float, Device::Cpu)).unwrap();
            Statistics(all)
        };
        let (a, b) = (one(1.0), one(3.0));
        IN_USE.with_borrow_mut(Vec::clear);
        let mean = Statistics::blend(&[(&a, 0.5), (&b, 0.5)]).unwrap();
        assert_eq!(mean.0.f_double_value(&[1, 1, 0, 3]).unwrap(), 2.0);
        let marked = [&a, &b].map(|part| part.0.data_ptr().addr());
        assert_eq!(IN_USE.take(), marked);
    }
}
