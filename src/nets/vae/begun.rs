//! The first blocks of a decoder, which see the whole latent for any windows. They run once per step. All windows of a
//! sample continue from their output, and the statistics of later GroupNorms are predicted from it.

use super::statistics::Norms;
use super::window_plan::Head;
use super::*;
use crate::tensor::select_rows;

/// Added to a variance before its logarithm is taken, because a constant channel has the variance 0.
const LEAST_VARIANCE: f64 = 1e-8;

/// The inputs of a decoder's first blocks for a batch of latents, and the output of the last of these.
#[derive(Debug)]
pub struct Begun {
    pub(super) inputs: Vec<Tensor>,
}

impl Decoder {
    /// Runs the blocks that see whole maps, without a gradient. The attention is not among them, since it computes only
    /// what a window needs.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn begin(&self, latents: &Tensor) -> Result<Begun> {
        self.check(latents)?;
        let _no_grad = tch::no_grad_guard();
        let blocks = self.chain.flat();
        let mut inputs = vec![latents.f_detach()?.f_to_kind(self.kind)?];
        for (at, block) in blocks[..Head::of(&blocks).whole()].iter().enumerate() {
            let y = block.forward(&inputs[at], &Norms::Own)?;
            inputs.push(y);
        }
        Ok(Begun { inputs })
    }

    /// `begun`, or where it is `None`, what [`Decoder::begin`] makes of the latents.
    pub(super) fn begun(&self, latents: &Tensor, begun: Option<&Begun>) -> Result<Begun> {
        match begun {
            None => self.begin(latents),
            Some(begun) => Ok(Begun {
                inputs: begun.inputs.iter().map(Tensor::shallow_clone).collect(),
            }),
        }
    }
}

impl Begun {
    /// How many blocks have run.
    pub(super) fn blocks(&self) -> usize {
        self.inputs.len() - 1
    }

    /// The output of the last block that has run.
    pub(super) fn output(&self) -> Result<&Tensor> {
        match self.inputs.last() {
            Some(output) => Ok(output),
            None => bail!(Internal, "no latents"),
        }
    }

    /// The same for some samples of the batch.
    pub fn select(&self, rows: &[usize]) -> Result<Begun> {
        let inputs = self.inputs.iter().map(|map| select_rows(map, rows));
        Ok(Begun {
            inputs: inputs.collect::<Result<_>>()?,
        })
    }

    /// Features from which the statistics of later GroupNorms can be predicted: `[B,F]`, f64, on the CPU. They are the
    /// means and the logarithms of the standard deviations of all channels of three maps: the latents, the last block's
    /// output x, and SiLU(x / its root mean square).
    pub fn features(&self) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let mut all = Vec::from(channels(&self.inputs[0])?);
        if self.blocks() > 0 {
            let x = self.output()?.f_to_kind(Kind::Float)?;
            let normed = x.f_group_norm::<Tensor>(1, None, None, LEAST_VARIANCE, true)?;
            all.extend(channels(&x)?);
            all.extend(channels(&normed.f_silu()?)?);
        }
        Ok(Tensor::f_cat(&all, 1)?
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Double)?)
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
