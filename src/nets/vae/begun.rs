//! The first blocks of a decoder, which see the whole latent for any windows. They run once per step. All windows of a
//! sample continue from their output, and the statistics of later GroupNorms are predicted from it.

use super::window_plan::Head;
use super::*;
use crate::tensor::{select_rows, to_host};

/// Added to a variance before its logarithm is taken, because a constant channel has the variance 0.
const LEAST_VARIANCE: f64 = 1e-8;

/// What a decoder's first blocks made of a batch of latents, and what their gradient needs.
#[derive(Debug)]
pub struct Begun {
    latents: Tensor,
    /// What every block [recorded](super::block::Block::record).
    recorded: Vec<Vec<Tensor>>,
    output: Tensor,
}

impl Decoder {
    /// Runs the blocks that see whole maps, without a gradient. The attention is not among them, since it computes only
    /// what a window needs.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn begin(&self, latents: &Tensor) -> Result<Begun> {
        self.check(latents)?;
        let latents = latents.f_detach()?.f_to_kind(self.kind)?;
        let mut output = latents.shallow_clone();
        let mut recorded = vec![];
        let blocks = self.chain.flat();
        for block in &blocks[..Head::of(&blocks).whole()] {
            let (y, kept) = block.record(&output)?;
            recorded.push(kept);
            output = y;
        }
        Ok(Begun {
            latents,
            recorded,
            output,
        })
    }

    /// `begun`, or where it is `None`, what [`Decoder::begin`] makes of the latents.
    pub(super) fn begun(&self, latents: &Tensor, begun: Option<&Begun>) -> Result<Begun> {
        match begun {
            None => self.begin(latents),
            Some(begun) => begun.map(|map| Ok(map.shallow_clone())),
        }
    }

    /// The gradient with respect to the latents, from that with respect to [`Begun::output`].
    pub(super) fn replay_begun(&self, begun: Begun, grad: Tensor) -> Result<Tensor> {
        let mut grad = grad;
        for (block, kept) in self.chain.flat().iter().zip(begun.recorded).rev() {
            grad = block.replay(kept, &grad)?;
        }
        Ok(grad)
    }
}

impl Begun {
    /// How many blocks have run.
    pub(super) fn blocks(&self) -> usize {
        self.recorded.len()
    }

    /// The output of the last block that has run.
    pub(super) fn output(&self) -> &Tensor {
        &self.output
    }

    /// The same for some samples of the batch.
    pub fn select(&self, rows: &[usize]) -> Result<Begun> {
        self.map(|map| select_rows(map, rows))
    }

    fn map(&self, function: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Begun> {
        let all = |maps: &Vec<Tensor>| maps.iter().map(&function).collect::<Result<Vec<_>>>();
        Ok(Begun {
            latents: function(&self.latents)?,
            recorded: self.recorded.iter().map(all).collect::<Result<_>>()?,
            output: function(&self.output)?,
        })
    }

    /// Features from which the statistics of later GroupNorms can be predicted: `[B,F]`, f64, on the CPU. They are the
    /// means and the logarithms of the standard deviations of all channels of three maps: the latents, the last block's
    /// output x, and SiLU(x / its root mean square).
    pub fn features(&self) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let mut all = Vec::from(channels(&self.latents)?);
        if self.blocks() > 0 {
            let x = self.output.f_to_kind(Kind::Float)?;
            let normed = x.f_group_norm::<Tensor>(1, None, None, LEAST_VARIANCE, true)?;
            all.extend(channels(&x)?);
            all.extend(channels(&normed.f_silu()?)?);
        }
        Ok(to_host(&Tensor::f_cat(&all, 1)?)?.f_to_kind(Kind::Double)?)
    }
}

/// Means and logarithms of standard deviations of the channels of a map: `[B,C]` each.
fn channels(map: &Tensor) -> Result<[Tensor; 2]> {
    let dims: &[i64] = &[2, 3];
    let map = map.f_to_kind(Kind::Float)?;
    let mean = map.f_mean_dim(dims, true, Kind::Float)?;
    let off = map.f_sub(&mean)?;
    let variance = off.f_mul(&off)?.f_mean_dim(dims, false, Kind::Float)?;
    let log = variance.f_add_scalar(LEAST_VARIANCE)?.f_log()?;
    Ok([mean.f_flatten(1, 3)?, log.f_mul_scalar(0.5)?])
}
