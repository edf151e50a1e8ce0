//! The decoder of AutoencoderKL, AutoencoderKLFlux2, and of Qwen-Image and Wan 2.1 for one frame:
//! residual blocks around one attention, then up blocks. Widths, depths and norms come from the
//! tensors (diffusers `autoencoders/vae.py` class Decoder, `autoencoder_kl_wan.py`).
//!
//! Wan's final clamp is left to the caller, who chooses what it does to the gradient.

use super::block::{Block, Chain};
use super::layers::{Attention, Conv, Norm, NormConv, Qkv, Residual, Upsample};
use super::source::Source;
use crate::error::{Result, bail};
use crate::latent::PatchStats;
use tch::{Kind, Tensor};

/// Builds the chain; returns it with the latent's channels and the image pixels per latent pixel.
pub(super) fn build(source: &mut Source) -> Result<(Chain, i64, i64)> {
    // Wan's temporal upsampling is for later frames only.
    source.discard(|name| name.contains(".time_conv."));
    let mut stages: Vec<Box<dyn Block>> = vec![];
    let mut blocks: Vec<Box<dyn Block>> = vec![];
    let Some(channels) = source
        .shape("decoder.conv_in.weight")
        .and_then(|s| s.get(1).copied())
    else {
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
    let conv_in = Conv::take(source, "decoder.conv_in", channels)?;
    let mut width = conv_in.outputs();
    blocks.push(Box::new(conv_in));
    let mid = "decoder.mid_block";
    blocks.push(Box::new(resnet(
        source,
        &format!("{mid}.resnets.0"),
        &mut width,
    )?));
    let [joint, split] =
        ["to_qkv", "to_q"].map(|q| source.has(&format!("{mid}.attentions.0.{q}.weight")));
    if joint || split {
        blocks.push(Box::new(attention(
            source,
            &format!("{mid}.attentions.0"),
            width,
        )?));
    }
    blocks.push(Box::new(resnet(
        source,
        &format!("{mid}.resnets.1"),
        &mut width,
    )?));
    let mut scale = 1;
    for i in 0.. {
        let block = format!("decoder.up_blocks.{i}");
        let before = blocks.len();
        for j in 0.. {
            let name = format!("{block}.resnets.{j}");
            if !source.has(&format!("{name}.conv1.weight")) {
                break;
            }
            blocks.push(Box::new(resnet(source, &name, &mut width)?));
        }
        if blocks.len() == before {
            break;
        }
        let name = format!("{block}.upsamplers.0.conv");
        if source.has(&format!("{name}.weight")) {
            let conv = Conv::take(source, &name, width)?;
            width = conv.outputs();
            // What recomputing keeps are the inputs of the stages: small maps, before upsampling.
            stages.push(Box::new(Chain(std::mem::take(&mut blocks))));
            blocks.push(Box::new(Upsample(conv)));
            scale *= 2;
        }
    }
    let norm = Norm::take(source, "decoder.conv_norm_out", width)?;
    let conv = Conv::take(source, "decoder.conv_out", width)?;
    if conv.outputs() != 3 {
        bail!(
            Weights,
            "decoder.conv_out: expected an RGB image, got {} channels",
            conv.outputs()
        );
    }
    blocks.push(Box::new(NormConv { norm, conv }));
    stages.push(Box::new(Chain(blocks)));
    Ok((Chain(stages), channels, scale))
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

fn resnet(source: &mut Source, name: &str, width: &mut i64) -> Result<Residual> {
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
    let (norm, out) = if joint {
        ("norm", "proj")
    } else {
        ("group_norm", "to_out.0")
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
    let qkv = if joint {
        let (weight, bias) = linear("to_qkv", 3 * width)?;
        Qkv::Joint(weight, bias)
    } else {
        Qkv::Split([
            linear("to_q", width)?,
            linear("to_k", width)?,
            linear("to_v", width)?,
        ])
    };
    let (weight, bias) = linear(out, width)?;
    Ok(Attention {
        norm,
        qkv,
        weight,
        bias,
    })
}
