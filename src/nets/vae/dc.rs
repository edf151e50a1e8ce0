//! The decoder of Sana's deep compression autoencoder (diffusers `autoencoder_dc.py`). It has residual blocks, and,
//! where maps are small, blocks with linear attention over all pixels (`SanaMultiscaleLinearAttention`, `GLUMBConv`).

use super::block::{Block, Chain, ReceptiveField};
use super::layers::Conv;
use super::shuffle::{Order, Repeat, RepeatIn, ShuffleUp};
use super::source::Source;
use super::statistics::Norms;
use crate::error::{Result, bail};
use tch::{Kind, Tensor};

/// eps of every RMSNorm.
const NORM_EPS: f64 = 1e-5;
/// eps of the attention's sums.
const ATTENTION_EPS: f64 = 1e-15;
/// Channels of an attention head, in every published model.
const HEAD: i64 = 32;

/// Builds the chain; returns it with the latent's channels and the image pixels per latent pixel.
pub(super) fn build(source: &mut Source, options: Options) -> Result<(Chain, i64, i64)> {
    let shape = source.shape("decoder.conv_in.weight").unwrap_or_default();
    let &[_, channels, ..] = shape.as_slice() else {
        bail!(Weights, "missing tensor decoder.conv_in.weight");
    };
    let conv = Conv::take(source, "decoder.conv_in", channels)?;
    let mut width = conv.outputs();
    let mut blocks: Vec<Box<dyn Block>> = vec![match options.shortcut {
        true => Box::new(RepeatIn::new(conv, channels, source.device())?),
        false => Box::new(conv),
    }];
    let mut stages: Vec<Box<dyn Block>> = vec![];
    let last = (0..64).rev().find(|i| {
        let first = |leaf: &str| source.has(&format!("decoder.up_blocks.{i}.0.{leaf}.weight"));
        first("conv") || first("conv1") || first("attn.to_q")
    });
    // The names count the blocks from the image, so the last runs first.
    for i in (0..=last.unwrap_or_default()).rev() {
        for j in 0.. {
            let name = format!("decoder.up_blocks.{i}.{j}");
            if source.has(&format!("{name}.conv.weight")) {
                stages.push(Box::new(Chain(std::mem::take(&mut blocks))));
                blocks.push(Box::new(up(source, &name, &mut width, options, true)?));
                source.enlarge()?;
            } else if source.has(&format!("{name}.conv1.weight")) {
                blocks.push(Box::new(Residual {
                    first: Conv::take(source, &format!("{name}.conv1"), width)?,
                    second: Conv::take(source, &format!("{name}.conv2"), width)?,
                    norm: RmsNorm::take(source, &format!("{name}.norm"), width)?,
                    act: options.act,
                }));
            } else if source.has(&format!("{name}.attn.to_q.weight")) {
                blocks.push(Box::new(Attention::take(
                    source,
                    &format!("{name}.attn"),
                    width,
                )?));
                blocks.push(Box::new(Gated::take(
                    source,
                    &format!("{name}.conv_out"),
                    width,
                )?));
            } else {
                break;
            }
        }
    }
    let norm = RmsNorm::take(source, "decoder.conv_norm_out", width)?;
    blocks.push(Box::new(NormRelu(norm)));
    if source.has("decoder.conv_out.conv.weight") {
        blocks.push(Box::new(up(
            source,
            "decoder.conv_out",
            &mut width,
            options,
            false,
        )?));
        source.enlarge()?;
    } else {
        let conv = Conv::take(source, "decoder.conv_out", width)?;
        width = conv.outputs();
        blocks.push(Box::new(conv));
    }
    if width != 3 {
        bail!(
            Weights,
            "decoder.conv_out: expected an RGB image, got {width} channels"
        );
    }
    stages.push(Box::new(Chain(blocks)));
    Ok((Chain(stages), channels, source.scale()))
}

/// A block that enlarges the map.
fn up(
    source: &mut Source,
    name: &str,
    width: &mut i64,
    options: Options,
    shortcut: bool,
) -> Result<ShuffleUp> {
    let conv = Conv::take(source, &format!("{name}.conv"), *width)?;
    let interpolates = options.interpolates;
    let outputs = conv.outputs() / if interpolates { 1 } else { 4 };
    let order = Order::ChannelRowColumn;
    let inputs = std::mem::replace(width, outputs);
    Ok(ShuffleUp {
        conv,
        order: (!interpolates).then_some(order),
        shortcut: match shortcut {
            true => Some(Repeat::new(inputs, outputs, 1, order, source.device())?),
            false => None,
        },
    })
}

/// Whether a name occurs only in this decoder: its up blocks are plain lists.
pub(super) fn is_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("decoder.up_blocks.") else {
        return false;
    };
    let mut parts = rest.split('.');
    let mut number = || parts.next().is_some_and(|part| part.parse::<u32>().is_ok());
    number() && number()
}

/// Options that the tensors do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Options {
    /// `decoder_in_shortcut`.
    pub shortcut: bool,
    /// `upsample_block_type` is `interpolate`.
    pub interpolates: bool,
    /// `decoder_act_fns`.
    pub act: Act,
}

impl Default for Options {
    /// diffusers' own defaults.
    fn default() -> Self {
        Options {
            shortcut: true,
            interpolates: false,
            act: Act::Silu,
        }
    }
}

/// The activation inside a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Silu,
    Relu,
    Relu6,
}

/// `x / sqrt(mean(x²) + eps) · weight + bias` over the channels.
struct RmsNorm {
    weight: Tensor,
    bias: Tensor,
}

impl RmsNorm {
    fn take(source: &mut Source, name: &str, channels: i64) -> Result<RmsNorm> {
        let mut part = |leaf: &str| -> Result<Tensor> {
            let tensor = source.take_shape(&format!("{name}.{leaf}"), &[channels])?;
            Ok(tensor.f_view([1, channels, 1, 1])?)
        };
        Ok(RmsNorm {
            weight: part("weight")?,
            bias: part("bias")?,
        })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.f_to_kind(Kind::Float)?;
        let mean = wide.f_square()?.f_mean_dim([1i64].as_slice(), true, None)?;
        let normed = wide.f_mul(&mean.f_add_scalar(NORM_EPS)?.f_rsqrt()?)?;
        Ok(normed
            .f_to_kind(x.kind())?
            .f_mul(&self.weight)?
            .f_add(&self.bias)?)
    }
}

/// `x + norm(conv(act(conv(x))))`.
struct Residual {
    first: Conv,
    second: Conv,
    norm: RmsNorm,
    act: Act,
}

impl Block for Residual {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let y = self.first.forward(x, norms)?;
        let y = match self.act {
            Act::Silu => y.f_silu()?,
            Act::Relu => y.f_relu()?,
            Act::Relu6 => y.f_clamp(0.0, 6.0)?,
        };
        let y = self.second.forward(&y, norms)?;
        Ok(self.norm.apply(&y)?.f_add(x)?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Near {
            margin: self.first.padding() + self.second.padding(),
            scale: 1,
        }
    }
}

/// The norm and the activation before the last convolution.
struct NormRelu(RmsNorm);

impl Block for NormRelu {
    fn forward(&self, x: &Tensor, _: &Norms) -> Result<Tensor> {
        Ok(self.0.apply(x)?.f_relu()?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Near {
            margin: 0,
            scale: 1,
        }
    }
}

/// Multi-scale linear attention, plus its input.
struct Attention {
    /// `[3·inner, C, 1, 1]`: rows q, k, v.
    qkv: Tensor,
    /// A depthwise and a grouped convolution of qkv per scale.
    scales: Vec<(Tensor, Tensor)>,
    out: Tensor,
    norm: RmsNorm,
}

impl Attention {
    fn take(source: &mut Source, name: &str, width: i64) -> Result<Attention> {
        let mut rows = vec![];
        for layer in ["to_q", "to_k", "to_v"] {
            let weight = source.take(&format!("{name}.{layer}.weight"))?;
            match weight.size().as_slice() {
                [inner, inputs] if *inputs == width && inner % HEAD == 0 => rows.push(weight),
                size => bail!(
                    Weights,
                    "{name}.{layer}.weight: expected a multiple of {HEAD} rows of {width}, got {size:?}"
                ),
            }
        }
        let qkv = Tensor::f_cat(&rows, 0)?;
        let all = qkv.size()[0];
        let mut scales = vec![];
        for k in 0.. {
            let part = format!("{name}.to_qkv_multiscale.{k}");
            let Some(depthwise) = source.take_optional(&format!("{part}.proj_in.weight"))? else {
                break;
            };
            let grouped =
                source.take_shape(&format!("{part}.proj_out.weight"), &[all, HEAD, 1, 1])?;
            let size = depthwise.size();
            if !matches!(*size, [o, 1, k, l] if o == all && k == l && k % 2 == 1) {
                bail!(
                    Weights,
                    "{part}.proj_in.weight: expected [{all}, 1, k, k], got {size:?}"
                );
            }
            scales.push((depthwise, grouped));
        }
        let inner = all / 3 * (1 + scales.len() as i64);
        let out = source.take_shape(&format!("{name}.to_out.weight"), &[width, inner])?;
        Ok(Attention {
            qkv: qkv.f_view([all, width, 1, 1])?,
            scales,
            out: out.f_view([width, inner, 1, 1])?,
            norm: RmsNorm::take(source, &format!("{name}.norm_out"), width)?,
        })
    }
}

impl Block for Attention {
    fn forward(&self, x: &Tensor, _: &Norms) -> Result<Tensor> {
        let &[b, _, h, w] = x.size().as_slice() else {
            bail!(Internal, "attention over a map of shape {:?}", x.size());
        };
        let conv = |x: &Tensor, weight: &Tensor, groups: i64| {
            let padding = weight.size()[2] / 2;
            x.f_conv2d::<Tensor>(weight, None, 1, padding, 1, groups)
        };
        let qkv = conv(x, &self.qkv, 1)?;
        let mut all = vec![qkv.shallow_clone()];
        for (depthwise, grouped) in &self.scales {
            let channels = depthwise.size()[0];
            let y = conv(&qkv, depthwise, channels)?;
            all.push(conv(&y, grouped, channels / HEAD)?);
        }
        let linear = h * w > HEAD;
        let all = Tensor::f_cat(&all, 1)?;
        let all = if linear {
            all.f_to_kind(Kind::Float)?
        } else {
            all
        };
        let parts = all.f_reshape([b, -1, 3 * HEAD, h * w])?.f_chunk(3, 2)?;
        let (q, k, v) = (parts[0].f_relu()?, parts[1].f_relu()?, &parts[2]);
        let mixed = if linear {
            // The sum over the keys is computed as one more row of the values.
            let ones = v.f_narrow(2, 0, 1)?.f_ones_like()?;
            let v = Tensor::f_cat(&[v, &ones], 2)?;
            let scores = v.f_matmul(&k.f_transpose(-1, -2)?)?.f_matmul(&q)?;
            let sum = scores.f_narrow(2, HEAD, 1)?.f_add_scalar(ATTENTION_EPS)?;
            scores.f_narrow(2, 0, HEAD)?.f_div(&sum)?
        } else {
            let scores = k
                .f_transpose(-1, -2)?
                .f_matmul(&q)?
                .f_to_kind(Kind::Float)?;
            let sum = scores
                .f_sum_dim_intlist([2i64].as_slice(), true, None)?
                .f_add_scalar(ATTENTION_EPS)?;
            v.f_matmul(&scores.f_div(&sum)?.f_to_kind(v.kind())?)?
        };
        let mixed = mixed.f_to_kind(x.kind())?.f_reshape([b, -1, h, w])?;
        Ok(self.norm.apply(&conv(&mixed, &self.out, 1)?)?.f_add(x)?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Whole
    }
}

/// An inverted bottleneck with a gate, plus its input.
struct Gated {
    inverted: Conv,
    /// Depthwise.
    depth: (Tensor, Tensor),
    point: Conv,
    norm: RmsNorm,
}

impl Gated {
    fn take(source: &mut Source, name: &str, width: i64) -> Result<Gated> {
        let inverted = Conv::take(source, &format!("{name}.conv_inverted"), width)?;
        let hidden = inverted.outputs();
        let depth = format!("{name}.conv_depth");
        Ok(Gated {
            depth: (
                source.take_shape(&format!("{depth}.weight"), &[hidden, 1, 3, 3])?,
                source.take_shape(&format!("{depth}.bias"), &[hidden])?,
            ),
            point: Conv::take(source, &format!("{name}.conv_point"), hidden / 2)?,
            norm: RmsNorm::take(source, &format!("{name}.norm"), width)?,
            inverted,
        })
    }
}

impl Block for Gated {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let y = self.inverted.forward(x, norms)?.f_silu()?;
        let (weight, bias) = &self.depth;
        let y = y.f_conv2d(weight, Some(bias), 1, 1, 1, weight.size()[0])?;
        let parts = y.f_chunk(2, 1)?;
        let y = parts[0].f_mul(&parts[1].f_silu()?)?;
        let y = self.point.forward(&y, norms)?;
        Ok(self.norm.apply(&y)?.f_add(x)?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Near {
            margin: 1,
            scale: 1,
        }
    }
}
