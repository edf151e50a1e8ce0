//! The decoder of AutoencoderKL, AutoencoderKLFlux2, and of Qwen-Image and Wan 2.1 for one frame:
//! residual blocks around one attention, then up blocks. Widths, depths and norms come from the
//! tensors (diffusers `autoencoders/vae.py` class Decoder, `autoencoder_kl_wan.py`).
//!
//! Wan's final clamp is left to the caller, who chooses what it does to the gradient.

use super::block::{Block, Chain};
use super::layers::{Attention, Conv, Norm, NormConv, Residual, Upsample};
use super::source::Source;
use crate::error::{Result, bail};
use crate::latent::PatchStats;
use tch::{Kind, Tensor};

/// Builds the chain; returns it with the latent's channels and the image pixels per latent pixel.
pub(super) fn build(source: &mut Source) -> Result<(Chain, i64, i64)> {
    // Only later frames use Wan's temporal upsampling.
    source.discard(|name| name.contains(".time_conv."));
    let mut stages: Vec<Box<dyn Block>> = vec![];
    let mut blocks: Vec<Box<dyn Block>> = vec![];
    let channels = post_quant(source, &mut blocks)?;
    let conv_in = Conv::take(source, "decoder.conv_in", channels)?;
    let mut width = conv_in.outputs();
    blocks.push(Box::new(conv_in));
    middle(source, &mut blocks, &mut width)?;
    for i in 0.. {
        let block = format!("decoder.up_blocks.{i}");
        let inner = resnets(source, &block, &mut width)?;
        if inner.is_empty() {
            break;
        }
        blocks.extend(inner);
        let name = format!("{block}.upsamplers.0.conv");
        if source.has(&format!("{name}.weight")) {
            let conv = Conv::take(source, &name, width)?;
            width = conv.outputs();
            // `recompute: blocks` keeps the inputs of the stages, which are small maps before upsampling.
            stages.push(Box::new(Chain(std::mem::take(&mut blocks))));
            blocks.push(Box::new(Upsample(conv)));
            source.enlarge()?;
        }
    }
    blocks.push(Box::new(end(source, width, 3)?));
    stages.push(Box::new(Chain(blocks)));
    Ok((Chain(stages), channels, source.scale()))
}

/// The convolution before the decoder, where there is one; returns the latent's channels.
pub(super) fn post_quant(source: &mut Source, blocks: &mut Vec<Box<dyn Block>>) -> Result<i64> {
    let shape = source.shape("decoder.conv_in.weight");
    let Some(channels) = shape.and_then(|s| s.get(1).copied()) else {
        bail!(Weights, "missing tensor decoder.conv_in.weight");
    };
    if source.has("post_quant_conv.weight") {
        let conv = Conv::take(source, "post_quant_conv", channels)?;
        if conv.outputs() != channels {
            bail!(
                Weights,
                "post_quant_conv: expected {channels} outputs, got {}",
                conv.outputs()
            );
        }
        blocks.push(Box::new(conv));
    }
    Ok(channels)
}

/// Two residual blocks, around an attention where there is one.
pub(super) fn middle(
    source: &mut Source,
    blocks: &mut Vec<Box<dyn Block>>,
    width: &mut i64,
) -> Result<()> {
    let mid = "decoder.mid_block";
    blocks.push(Box::new(resnet(
        source,
        &format!("{mid}.resnets.0"),
        width,
    )?));
    let name = format!("{mid}.attentions.0");
    if ["to_qkv", "to_q"].map(|q| source.has(&format!("{name}.{q}.weight"))) != [false; 2] {
        blocks.push(Box::new(attention(source, &name, *width)?));
    }
    blocks.push(Box::new(resnet(
        source,
        &format!("{mid}.resnets.1"),
        width,
    )?));
    Ok(())
}

/// The residual blocks of an up block.
pub(super) fn resnets(
    source: &mut Source,
    block: &str,
    width: &mut i64,
) -> Result<Vec<Box<dyn Block>>> {
    let mut blocks: Vec<Box<dyn Block>> = vec![];
    for j in 0.. {
        let name = format!("{block}.resnets.{j}");
        if !source.has(&format!("{name}.conv1.weight")) {
            break;
        }
        blocks.push(Box::new(resnet(source, &name, width)?));
    }
    Ok(blocks)
}

/// The last norm and convolution, to `outputs` channels. Where three are asked for and the model has a fourth for
/// alpha, only the colours are computed.
pub(super) fn end(source: &mut Source, width: i64, outputs: i64) -> Result<NormConv> {
    let norm = Norm::take(source, "decoder.conv_norm_out", width)?;
    let mut conv = Conv::take(source, "decoder.conv_out", width)?;
    if outputs == 3 && conv.outputs() == 4 {
        conv = conv.first(3)?;
    }
    if conv.outputs() != outputs {
        bail!(
            Weights,
            "decoder.conv_out: expected an RGB image, got {} channels",
            conv.outputs()
        );
    }
    Ok(NormConv { norm, conv })
}

/// FLUX.2's latent statistics; `eps` is the BatchNorm's.
pub(super) fn patch_stats(source: &mut Source, channels: i64, eps: f64) -> Result<PatchStats> {
    let mut take = |name: &str| -> Result<Tensor> {
        match source.take_as(name, Kind::Float)? {
            Some(stat) if stat.size() == [4 * channels] => Ok(stat),
            Some(stat) => bail!(
                Weights,
                "{name}: expected [{}], got {:?}",
                4 * channels,
                stat.size()
            ),
            None => bail!(Weights, "missing tensor {name}"),
        }
    };
    Ok(PatchStats {
        mean: take("bn.running_mean")?,
        std: take("bn.running_var")?.f_add_scalar(eps)?.f_sqrt()?,
    })
}

pub(super) fn resnet(source: &mut Source, name: &str, width: &mut i64) -> Result<Residual> {
    let inputs = *width;
    let norm1 = Norm::take(source, &format!("{name}.norm1"), inputs)?;
    let conv1 = Conv::take(source, &format!("{name}.conv1"), inputs)?;
    let outputs = conv1.outputs();
    let norm2 = Norm::take(source, &format!("{name}.norm2"), outputs)?;
    let conv2 = Conv::take(source, &format!("{name}.conv2"), outputs)?;
    let shortcut = shortcut(source, name, inputs, outputs, conv2.outputs())?;
    *width = outputs;
    Ok(Residual {
        branch: Chain(vec![
            Box::new(NormConv {
                norm: norm1,
                conv: conv1,
            }),
            Box::new(NormConv {
                norm: norm2,
                conv: conv2,
            }),
        ]),
        shortcut,
    })
}

/// The shortcut of a residual block: none where the widths agree.
fn shortcut(
    source: &mut Source,
    name: &str,
    inputs: i64,
    outputs: i64,
    branch: i64,
) -> Result<Option<Conv>> {
    let shortcut = if inputs == outputs {
        None
    } else {
        Some(Conv::take(
            source,
            &format!("{name}.conv_shortcut"),
            inputs,
        )?)
    };
    if branch != outputs || shortcut.as_ref().is_some_and(|s| s.outputs() != outputs) {
        bail!(
            Weights,
            "{name}: conv1, conv2 and conv_shortcut differ in their outputs"
        );
    }
    Ok(shortcut)
}

fn attention(source: &mut Source, name: &str, width: i64) -> Result<Attention> {
    let joint = source.has(&format!("{name}.to_qkv.weight"));
    // Wan and HunyuanImage have a `norm` and a `proj`.
    let (norm, out) = match source.has(&format!("{name}.proj.weight")) {
        true => ("norm", "proj"),
        false => ("group_norm", "to_out.0"),
    };
    let norm = Norm::take(source, &format!("{name}.{norm}"), width)?;
    // LDM and Wan keep these as 1x1 convolutions.
    let mut linear = |layer: &str, rows: i64| -> Result<(Tensor, Tensor)> {
        let weight = source.take(&format!("{name}.{layer}.weight"))?;
        if weight.numel() as i64 != rows * width {
            bail!(
                Weights,
                "{name}.{layer}.weight: expected [{rows}, {width}], got {:?}",
                weight.size()
            );
        }
        let bias = source.take_shape(&format!("{name}.{layer}.bias"), &[rows])?;
        Ok((weight.f_reshape([rows, width])?, bias))
    };
    let [query, key, value] = if joint {
        let (weight, bias) = linear("to_qkv", 3 * width)?;
        let rows = |t: &Tensor, at: i64| t.f_narrow(0, at * width, width);
        let part = |at: i64| -> Result<_> { Ok((rows(&weight, at)?, rows(&bias, at)?)) };
        [part(0)?, part(1)?, part(2)?]
    } else {
        [
            linear("to_q", width)?,
            linear("to_k", width)?,
            linear("to_v", width)?,
        ]
    };
    Ok(Attention {
        norm,
        query,
        key: key.0,
        value,
        out: linear(out, width)?,
    })
}
