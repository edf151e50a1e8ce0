//! The decoder of HunyuanImage 2.1 (diffusers `autoencoder_kl_hunyuanimage.py`): AutoencoderKL's blocks in sequence.
//! Maps are enlarged by shuffling channels into pixels, with shortcuts that repeat channels.

use super::block::{Block, Chain};
use super::kl::{end, middle, resnet};
use super::layers::Conv;
use super::shuffle::{Order, Repeat, RepeatIn, ShuffleUp};
use super::source::Source;
use crate::error::{Result, bail};

/// Builds the chain; returns it with the latent's channels and the image pixels per latent pixel.
pub(super) fn build(source: &mut Source) -> Result<(Chain, i64, i64)> {
    let shape = source.shape("decoder.conv_in.weight").unwrap_or_default();
    let &[_, channels, ..] = shape.as_slice() else {
        bail!(Weights, "missing tensor decoder.conv_in.weight");
    };
    let conv = Conv::take(source, "decoder.conv_in", channels)?;
    let mut width = conv.outputs();
    let mut blocks: Vec<Box<dyn Block>> =
        vec![Box::new(RepeatIn::new(conv, channels, source.device())?)];
    middle(source, &mut blocks, &mut width)?;
    let mut stages: Vec<Box<dyn Block>> = vec![];
    for i in 0.. {
        let name = format!("decoder.up_blocks.{i}");
        if source.has(&format!("{name}.conv1.weight")) {
            blocks.push(Box::new(resnet(source, &name, &mut width)?));
        } else if source.has(&format!("{name}.conv.weight")) {
            let conv = Conv::take(source, &format!("{name}.conv"), width)?;
            let (inputs, outputs) = (width, conv.outputs() / 4);
            let order = Order::RowColumnChannel;
            stages.push(Box::new(Chain(std::mem::take(&mut blocks))));
            blocks.push(Box::new(ShuffleUp {
                conv,
                order: Some(order),
                shortcut: Some(Repeat::new(inputs, outputs, 1, order, source.device())?),
            }));
            width = outputs;
            source.enlarge()?;
        } else {
            break;
        }
    }
    blocks.push(Box::new(end(source, width, 3)?));
    stages.push(Box::new(Chain(blocks)));
    Ok((Chain(stages), channels, source.scale()))
}
