//! The TAESD family (diffusers `autoencoders/vae.py` class DecoderTiny): `tanh(x/3)·3`, then convolutions and ReLU. The
//! image is in [0, 1]. TAEF2 adds a GroupNorm branch to its first blocks.

use super::block::{Block, Chain, ReceptiveField};
use super::layers::{Conv, Upsample};
use super::source::Source;
use super::statistics::Norms;
use crate::error::{Result, bail};
use tch::Tensor;

/// Groups of TAEF2's GroupNorm; torch's default eps.
const POOL_GROUPS: i64 = 4;
const POOL_EPS: f64 = 1e-5;

/// Builds the chain; returns it with the latent's channels and the image pixels per latent pixel.
/// `layers` are the numbers N of `decoder.layers.N.…` that hold weights.
pub(super) fn build(source: &mut Source, layers: &[u32]) -> Result<(Chain, i64, i64)> {
    let (Some(&first), Some(&last)) = (layers.first(), layers.last()) else {
        bail!(Weights, "missing tensor decoder.layers.0.weight");
    };
    let name = format!("decoder.layers.{first}.weight");
    let Some(&[_, channels, ..]) = source.shape(&name).as_deref() else {
        bail!(Weights, "{name}: expected the first convolution");
    };
    let mut width = channels;
    let mut blocks: Vec<Box<dyn Block>> = vec![];
    for &layer in layers {
        let name = format!("decoder.layers.{layer}");
        if source.has(&format!("{name}.conv.0.weight")) {
            blocks.push(Box::new(TinyBlock::take(source, &name, &mut width)?));
            continue;
        }
        let conv = Conv::take(source, &name, width)?;
        width = conv.outputs();
        if layer == first {
            blocks.push(Box::new(Stem(conv)));
        } else if layer == last {
            blocks.push(Box::new(conv));
        } else {
            blocks.push(Box::new(Upsample(conv)));
            source.enlarge()?;
        }
    }
    if width != 3 {
        bail!(
            Weights,
            "decoder.layers.{last}: expected a convolution to an RGB image, got {width} channels; an encoder's file cannot decode"
        );
    }
    Ok((Chain(blocks), channels, source.scale()))
}

/// Soft clamp of the latent, convolution, ReLU.
struct Stem(Conv);

impl Block for Stem {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let clamped = x.f_div_scalar(3.0)?.f_tanh()?.f_mul_scalar(3.0)?;
        Ok(self.0.forward(&clamped, norms)?.f_relu()?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        self.0.receptive_field()
    }
}

struct TinyBlock {
    convs: [Conv; 3],
    skip: Option<Conv>,
    pool: Option<Pool>,
}

struct Pool {
    widen: Conv,
    weight: Tensor,
    bias: Tensor,
    narrow: Conv,
}

impl TinyBlock {
    fn take(source: &mut Source, name: &str, width: &mut i64) -> Result<TinyBlock> {
        let inputs = *width;
        let conv0 = Conv::take(source, &format!("{name}.conv.0"), inputs)?;
        let outputs = conv0.outputs();
        let conv2 = Conv::take(source, &format!("{name}.conv.2"), outputs)?;
        let conv4 = Conv::take(source, &format!("{name}.conv.4"), conv2.outputs())?;
        let skip = if inputs == outputs {
            None
        } else {
            Some(Conv::take(source, &format!("{name}.skip"), inputs)?)
        };
        let pool = if source.has(&format!("{name}.pool.0.weight")) {
            let widen = Conv::take(source, &format!("{name}.pool.0"), inputs)?;
            let wide = widen.outputs();
            if wide % POOL_GROUPS != 0 {
                bail!(
                    Weights,
                    "{name}.pool: {wide} channels are not a multiple of {POOL_GROUPS}"
                );
            }
            Some(Pool {
                weight: source.take_shape(&format!("{name}.pool.1.weight"), &[wide])?,
                bias: source.take_shape(&format!("{name}.pool.1.bias"), &[wide])?,
                narrow: Conv::take(source, &format!("{name}.pool.3"), wide)?,
                widen,
            })
        } else {
            None
        };
        if pool.as_ref().is_some_and(|p| p.narrow.outputs() != inputs)
            || skip.as_ref().is_some_and(|s| s.outputs() != outputs)
            || conv4.outputs() != outputs
        {
            bail!(Weights, "{name}: its convolutions do not fit together");
        }
        *width = outputs;
        Ok(TinyBlock {
            convs: [conv0, conv2, conv4],
            skip,
            pool,
        })
    }
}

impl Block for TinyBlock {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let x = match &self.pool {
            Some(pool) => {
                let wide = pool.widen.forward(x, norms)?.f_group_norm(
                    POOL_GROUPS,
                    Some(&pool.weight),
                    Some(&pool.bias),
                    POOL_EPS,
                    true,
                )?;
                x.f_add(&pool.narrow.forward(&wide.f_relu()?, norms)?)?
            }
            None => x.shallow_clone(),
        };
        let [conv0, conv2, conv4] = &self.convs;
        let h = conv0.forward(&x, norms)?.f_relu()?;
        let h = conv4.forward(&conv2.forward(&h, norms)?.f_relu()?, norms)?;
        let sum = match &self.skip {
            Some(skip) => h.f_add(&skip.forward(&x, norms)?)?,
            None => h.f_add(&x)?,
        };
        Ok(sum.f_relu()?)
    }

    /// TAEF2's GroupNorm is in blocks of the latent's resolution. Computing these for the whole map costs little.
    fn receptive_field(&self) -> ReceptiveField {
        let margins = self.convs.iter().map(Conv::padding);
        match self.pool {
            Some(_) => ReceptiveField::Whole,
            None => ReceptiveField::Near {
                margin: margins.sum(),
                scale: 1,
            },
        }
    }
}
