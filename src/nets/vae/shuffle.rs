//! Blocks that move channels to pixels: pixel shuffles, and shortcuts that repeat channels.

use super::block::{Block, Chain, ReceptiveField};
use super::layers::Conv;
use super::statistics::Norms;
use crate::error::{Result, bail};
use tch::{Device, Tensor};

/// The order of the channels that become 2×2 pixels, outermost first. c is the channel of the larger map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// (c, row, column): `torch.nn.functional.pixel_shuffle`.
    ChannelRowColumn,
    /// (row, column, c): HunyuanImage.
    RowColumnChannel,
    /// (c, column, row): Wan's patches.
    ChannelColumnRow,
}

impl Order {
    /// `[B,4C,h,w]` → `[B,C,2h,2w]`.
    pub(super) fn shuffle(self, x: &Tensor) -> Result<Tensor> {
        let &[b, channels, h, w] = x.size().as_slice() else {
            bail!(Internal, "shuffling a map of shape {:?}", x.size());
        };
        let c = channels / 4;
        let (sizes, order) = match self {
            Order::ChannelRowColumn => ([b, c, 2, 2, h, w], [0, 1, 4, 2, 5, 3]),
            Order::RowColumnChannel => ([b, 2, 2, c, h, w], [0, 3, 4, 1, 5, 2]),
            Order::ChannelColumnRow => ([b, c, 2, 2, h, w], [0, 1, 4, 3, 5, 2]),
        };
        Ok(x.f_reshape(sizes)?
            .f_permute(order)?
            .f_reshape([b, c, 2 * h, 2 * w])?)
    }
}

/// A shortcut that enlarges a map: its channels are repeated and then shuffled into pixels.
pub(super) struct Repeat {
    /// The channel of the input that every channel before the shuffle repeats.
    index: Tensor,
    order: Order,
}

impl Repeat {
    /// A shortcut from `inputs` channels to `outputs`. Where the channels form several `frames`, the last frame is
    /// used.
    pub(super) fn new(
        inputs: i64,
        outputs: i64,
        frames: i64,
        order: Order,
        device: Device,
    ) -> Result<Repeat> {
        let all = 4 * frames * outputs;
        if inputs < 1 || all % inputs != 0 {
            bail!(
                Weights,
                "a shortcut from {inputs} to {outputs} channels: {all} is no multiple of {inputs}"
            );
        }
        let repeats = all / inputs;
        let index = |at: i64| match frames {
            1 => at / repeats,
            // (c, frame, row, column): the last frame of c.
            _ => ((at / 4 * frames + frames - 1) * 4 + at % 4) / repeats,
        };
        let index: Vec<i64> = (0..4 * outputs).map(index).collect();
        Ok(Repeat {
            index: Tensor::f_from_slice(&index)?.f_to_device(device)?,
            order,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.order.shuffle(&x.f_index_select(1, &self.index)?)
    }
}

/// A convolution whose channels become 2×2 pixels, or that runs on the enlarged map, with or without a shortcut.
pub(super) struct ShuffleUp {
    pub conv: Conv,
    /// `None`: nearest ×2, then the convolution.
    pub order: Option<Order>,
    pub shortcut: Option<Repeat>,
}

impl Block for ShuffleUp {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let main = match self.order {
            Some(order) => order.shuffle(&self.conv.forward(x, norms)?)?,
            None => {
                let size = x.size();
                let larger = [2 * size[2], 2 * size[3]];
                let wide = x.f_upsample_nearest2d(larger, None, None)?;
                self.conv.forward(&wide, norms)?
            }
        };
        Ok(match &self.shortcut {
            Some(repeat) => main.f_add(&repeat.forward(x)?)?,
            None => main,
        })
    }

    fn receptive_field(&self) -> ReceptiveField {
        let small = self.order.is_some();
        ReceptiveField::Near {
            margin: self.conv.padding() * if small { 2 } else { 1 },
            scale: 2,
        }
    }
}

/// Blocks of scale 1, then one that enlarges, with a shortcut around them all.
pub(super) struct ResidualUp {
    pub blocks: Chain,
    pub up: Box<dyn Block>,
    pub shortcut: Repeat,
}

impl Block for ResidualUp {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let main = self.up.forward(&self.blocks.forward(x, norms)?, norms)?;
        Ok(main.f_add(&self.shortcut.forward(x)?)?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        match (self.blocks.receptive_field(), self.up.receptive_field()) {
            (
                ReceptiveField::Near { margin: before, .. },
                ReceptiveField::Near { margin, scale },
            ) => ReceptiveField::Near {
                margin: before * scale + margin,
                scale,
            },
            _ => ReceptiveField::Whole,
        }
    }
}

/// A first convolution with a shortcut that repeats channels.
pub(super) struct RepeatIn {
    conv: Conv,
    index: Tensor,
}

impl RepeatIn {
    pub(super) fn new(conv: Conv, inputs: i64, device: Device) -> Result<RepeatIn> {
        let outputs = conv.outputs();
        if inputs < 1 || outputs % inputs != 0 {
            bail!(
                Weights,
                "decoder.conv_in: expected a multiple of {inputs} outputs, got {outputs}"
            );
        }
        let repeats = outputs / inputs;
        let index: Vec<i64> = (0..outputs).map(|at| at / repeats).collect();
        Ok(RepeatIn {
            conv,
            index: Tensor::f_from_slice(&index)?.f_to_device(device)?,
        })
    }
}

impl Block for RepeatIn {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let repeated = x.f_index_select(1, &self.index)?;
        Ok(self.conv.forward(x, norms)?.f_add(&repeated)?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        self.conv.receptive_field()
    }
}

/// Moves channels to 2×2 pixels, without a convolution.
pub(super) struct Unpatch(pub Order);

impl Block for Unpatch {
    fn forward(&self, x: &Tensor, _: &Norms) -> Result<Tensor> {
        self.0.shuffle(x)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Near {
            margin: 0,
            scale: 2,
        }
    }
}
