//! The decoder of Wan 2.2's residual VAE for one frame (diffusers `autoencoder_kl_wan.py`, `is_residual`): Wan 2.1's blocks
//! with shortcuts around whole up blocks, and an image that comes as 2×2 patches.

use super::block::{Block, Chain};
use super::kl::{end, middle, post_quant, resnets};
use super::layers::{Conv, Upsample};
use super::shuffle::{Order, Repeat, ResidualUp, Unpatch};
use super::source::Source;
use crate::error::Result;

/// Builds the chain; returns it with the latent's channels and the image pixels per latent pixel.
pub(super) fn build(source: &mut Source) -> Result<(Chain, i64, i64)> {
    let mut blocks: Vec<Box<dyn Block>> = vec![];
    let channels = post_quant(source, &mut blocks)?;
    let conv_in = Conv::take(source, "decoder.conv_in", channels)?;
    let mut width = conv_in.outputs();
    blocks.push(Box::new(conv_in));
    middle(source, &mut blocks, &mut width)?;
    let mut stages: Vec<Box<dyn Block>> = vec![];
    for i in 0.. {
        let name = format!("decoder.up_blocks.{i}");
        let inputs = width;
        let inner = resnets(source, &name, &mut width)?;
        if inner.is_empty() {
            break;
        }
        let up = format!("{name}.upsampler.conv");
        if !source.has(&format!("{up}.weight")) {
            blocks.extend(inner);
            continue;
        }
        // Only later frames use the temporal convolution. Its presence tells that the channels hold two frames.
        let temporal = format!("{name}.upsampler.time_conv.");
        let frames = if source.has(&format!("{temporal}weight")) {
            2
        } else {
            1
        };
        source.discard(|tensor| tensor.starts_with(&temporal));
        let conv = Conv::take(source, &up, width)?;
        width = conv.outputs();
        stages.push(Box::new(Chain(std::mem::take(&mut blocks))));
        blocks.push(Box::new(ResidualUp {
            blocks: Chain(inner),
            up: Box::new(Upsample(conv)),
            shortcut: Repeat::new(
                inputs,
                width,
                frames,
                Order::ChannelRowColumn,
                source.device(),
            )?,
        }));
        source.enlarge()?;
    }
    let outputs = source.shape("decoder.conv_out.weight");
    let patches = outputs.is_some_and(|shape| shape.first() == Some(&12));
    blocks.push(Box::new(end(source, width, if patches { 12 } else { 3 })?));
    if patches {
        blocks.push(Box::new(Unpatch(Order::ChannelColumnRow)));
        source.enlarge()?;
    }
    stages.push(Box::new(Chain(blocks)));
    Ok((Chain(stages), channels, source.scale()))
}
