//! IResNet, the network of arcface_torch (`recognition/arcface_torch/backbones/iresnet.py`). Depth and widths
//! are read from the weights, which have arcface_torch's names.

use crate::error::{Result, bail};
use crate::tensor::from_array;
use crate::weights::Weights;
use tch::{Device, Kind, Tensor};

const EPSILON: f64 = 1e-5;

/// The most numbers of a map of the stem's size: 512 channels for pictures of 512x512.
const MAX_MAP: i64 = 1 << 27;

/// The depths that have a name, as blocks per stage.
const NAMED: [(&str, [usize; 4]); 5] = [
    ("r18", [2, 2, 2, 2]),
    ("r34", [3, 4, 6, 3]),
    ("r50", [3, 4, 14, 3]),
    ("r100", [3, 13, 30, 3]),
    ("r200", [6, 26, 60, 6]),
];

/// A convolution with the batch norm after it folded in.
struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
}

/// A batch norm before a convolution. It cannot be folded into the convolution because of the zero padding between
/// them.
struct Scale {
    factor: Tensor,
    shift: Tensor,
}

struct Block {
    before: Scale,
    first: Conv,
    prelu: Tensor,
    second: Conv,
    shortcut: Option<Conv>,
}

/// The network, frozen.
pub struct IResNet {
    stem: Conv,
    prelu: Tensor,
    blocks: Vec<Block>,
    /// The last batch norm, the linear layer and the feature norm, folded into one.
    head: Tensor,
    bias: Tensor,
    depth: [usize; 4],
    input_size: i64,
}

impl IResNet {
    /// A name that every IResNet has, and no other known network.
    pub const ANCHOR: &'static str = "layer1.0.bn1.weight";

    /// What [`IResNet::forward`] returns, in this order.
    pub const LEVELS: [&'static str; 5] = ["layer1", "layer2", "layer3", "layer4", "embedding"];

    /// Builds the network from plain names (no `module.` in front) on `device` in `kind`.
    ///
    /// # Errors
    /// `Weights`; the text names the tensors that are missing, left over or of another shape. `Limit` for maps that are
    /// larger than those of any known IResNet.
    pub fn from_weights(weights: &Weights, device: Device, kind: Kind) -> Result<Self> {
        let mut reader = Reader {
            weights,
            used: Default::default(),
            widest: 0,
            device,
            kind,
        };
        let stem = reader.conv_norm("conv1", "bn1", 1)?;
        let prelu = reader.prelu("prelu", &stem)?;
        let mut depth = [0; 4];
        let mut blocks = vec![];
        for (stage, count) in depth.iter_mut().enumerate() {
            let name = |block: usize| format!("layer{}.{block}", stage + 1);
            while weights.contains_key(&format!("{}.conv1.weight", name(*count))) {
                // The first block of every stage halves the feature map.
                let stride = if *count == 0 { 2 } else { 1 };
                blocks.push(reader.block(&name(*count), stride)?);
                *count += 1;
            }
            if *count == 0 {
                bail!(Weights, "an IResNet without {}.conv1.weight", name(0));
            }
        }
        let (head, bias, input_size) = reader.head()?;
        let widest = reader.widest;
        reader.finish()?;
        if widest.saturating_mul(input_size.saturating_mul(input_size)) > MAX_MAP {
            bail!(
                Limit,
                "an IResNet of {widest} channels for pictures of {input_size}x{input_size}; a map may have up to {MAX_MAP} numbers"
            );
        }
        Ok(Self {
            stem,
            prelu,
            blocks,
            head,
            bias,
            depth,
            input_size,
        })
    }

    /// `r18` … `r200`, or the blocks of the stages.
    pub fn name(&self) -> String {
        let named = NAMED.iter().find(|(_, depth)| *depth == self.depth);
        named.map_or_else(
            || format!("IResNet{:?}", self.depth),
            |(name, _)| name.to_string(),
        )
    }

    /// Side of the input, pixels.
    pub fn input_size(&self) -> i64 {
        self.input_size
    }

    /// From normalised pixels `[M,3,S,S]` to the outputs of the stages, `[M,C,h,w]`, and last the embeddings `[M,D]`,
    /// which are not normalised.
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let mut x = self.stem.forward(x)?.f_prelu(&self.prelu)?;
        let mut levels = vec![];
        let mut blocks = self.blocks.iter();
        for count in self.depth {
            for block in blocks.by_ref().take(count) {
                x = block.forward(&x)?;
            }
            levels.push(x.shallow_clone());
        }
        levels.push(x.f_flatten(1, -1)?.f_linear(&self.head, Some(&self.bias))?);
        Ok(levels)
    }
}

impl Conv {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pad = self.weight.size()[2] / 2;
        let stride = [self.stride, self.stride];
        Ok(x.f_conv2d(
            &self.weight,
            Some(&self.bias),
            stride,
            [pad, pad],
            [1, 1],
            1,
        )?)
    }
}

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.before.shift.f_addcmul(x, &self.before.factor)?;
        let y = self
            .second
            .forward(&self.first.forward(&y)?.f_prelu(&self.prelu)?)?;
        Ok(match &self.shortcut {
            Some(conv) => y.f_add(&conv.forward(x)?)?,
            None => y.f_add(x)?,
        })
    }
}

/// Takes tensors by name, and notes which were taken.
struct Reader<'a> {
    weights: &'a Weights,
    used: std::collections::BTreeSet<String>,
    /// The most channels of a convolution.
    widest: i64,
    device: Device,
    kind: Kind,
}

impl Reader<'_> {
    fn take(&mut self, name: &str) -> Result<Tensor> {
        let Some(array) = self.weights.get(name) else {
            bail!(
                Weights,
                "{name} is missing: not the weights of an IResNet, or not all of them"
            );
        };
        self.used.insert(name.to_string());
        // Folding is done in double precision, and its result is rounded once.
        Ok(from_array(array, Device::Cpu)?.f_to_kind(Kind::Double)?)
    }

    fn place(&self, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor
            .f_to_kind(self.kind)?
            .f_to_device(self.device)?
            .f_contiguous()?)
    }

    /// Factor and shift of a batch norm.
    fn norm(&mut self, name: &str, channels: i64) -> Result<(Tensor, Tensor)> {
        let mut part = |part: &str| -> Result<Tensor> {
            let full = format!("{name}.{part}");
            let tensor = self.take(&full)?;
            if tensor.size() != [channels] {
                bail!(
                    Weights,
                    "{full}: expected [{channels}], got {:?}",
                    tensor.size()
                );
            }
            Ok(tensor)
        };
        let (weight, bias) = (part("weight")?, part("bias")?);
        let (mean, var) = (part("running_mean")?, part("running_var")?);
        self.used.insert(format!("{name}.num_batches_tracked"));
        let factor = weight.f_div(&var.f_add_scalar(EPSILON)?.f_sqrt()?)?;
        let shift = bias.f_sub(&mean.f_mul(&factor)?)?;
        Ok((factor, shift))
    }

    fn conv_norm(&mut self, conv: &str, norm: &str, stride: i64) -> Result<Conv> {
        let name = format!("{conv}.weight");
        let weight = self.take(&name)?;
        let &[out, _, height, width] = weight.size().as_slice() else {
            bail!(
                Weights,
                "{name}: expected a convolution's four dimensions, got {:?}",
                weight.size()
            );
        };
        if height != width || height % 2 == 0 {
            bail!(
                Weights,
                "{name}: expected an odd square kernel, got {height}x{width}"
            );
        }
        self.widest = self.widest.max(out);
        let (factor, shift) = self.norm(norm, out)?;
        Ok(Conv {
            weight: self.place(weight.f_mul(&factor.f_view([-1, 1, 1, 1])?)?)?,
            bias: self.place(shift)?,
            stride,
        })
    }

    /// The slopes after a convolution, one a channel or one for all.
    fn prelu(&mut self, name: &str, conv: &Conv) -> Result<Tensor> {
        let full = format!("{name}.weight");
        let slope = self.take(&full)?;
        let channels = conv.weight.size()[0];
        if slope.size() != [channels] && slope.size() != [1] {
            bail!(
                Weights,
                "{full}: expected [{channels}], got {:?}",
                slope.size()
            );
        }
        self.place(slope)
    }

    fn block(&mut self, name: &str, stride: i64) -> Result<Block> {
        let channels = match self.weights.get(&format!("{name}.conv1.weight")) {
            Some(array) if array.shape.len() == 4 => array.shape[1] as i64,
            _ => bail!(
                Weights,
                "{name}.conv1.weight: expected a convolution's four dimensions"
            ),
        };
        let (factor, shift) = self.norm(&format!("{name}.bn1"), channels)?;
        let per_channel = [1, channels, 1, 1];
        let before = Scale {
            factor: self.place(factor.f_view(per_channel)?)?,
            shift: self.place(shift.f_view(per_channel)?)?,
        };
        let shortcut = format!("{name}.downsample.0");
        let has_shortcut = self.weights.contains_key(&format!("{shortcut}.weight"));
        let first = self.conv_norm(&format!("{name}.conv1"), &format!("{name}.bn2"), 1)?;
        Ok(Block {
            before,
            prelu: self.prelu(&format!("{name}.prelu"), &first)?,
            first,
            second: self.conv_norm(&format!("{name}.conv2"), &format!("{name}.bn3"), stride)?,
            shortcut: match has_shortcut {
                true => Some(self.conv_norm(&shortcut, &format!("{name}.downsample.1"), stride)?),
                false => None,
            },
        })
    }

    /// `features(fc(flatten(bn2(x))))` as one linear layer, and the side of the network's input.
    fn head(&mut self) -> Result<(Tensor, Tensor, i64)> {
        let (weight, bias) = (self.take("fc.weight")?, self.take("fc.bias")?);
        let channels = self
            .weights
            .get("bn2.weight")
            .map_or(0, |array| array.shape.iter().product::<usize>()) as i64;
        let &[dim, width] = weight.size().as_slice() else {
            bail!(
                Weights,
                "fc.weight: expected two dimensions, got {:?}",
                weight.size()
            );
        };
        let side = ((width / channels.max(1)) as f64).sqrt() as i64;
        if channels == 0 || side * side * channels != width || side == 0 {
            bail!(
                Weights,
                "fc.weight: {width} inputs are no square of bn2's {channels} channels"
            );
        }
        if bias.size() != [dim] {
            bail!(Weights, "fc.bias: expected [{dim}], got {:?}", bias.size());
        }
        let (factor, shift) = self.norm("bn2", channels)?;
        let spread = |t: &Tensor| t.f_repeat_interleave_self_int(side * side, 0, None);
        let bias = bias.f_add(&weight.f_mv(&spread(&shift)?)?)?;
        let weight = weight.f_mul(&spread(&factor)?)?;
        let (factor, shift) = self.norm("features", dim)?;
        let bias = bias.f_mul(&factor)?.f_add(&shift)?;
        let weight = weight.f_mul(&factor.f_unsqueeze(1)?)?;
        Ok((self.place(weight)?, self.place(bias)?, side * 16))
    }

    /// Fails where tensors are left over, because then this is another network.
    fn finish(self) -> Result<()> {
        let extra: Vec<&String> = self
            .weights
            .keys()
            .filter(|name| !self.used.contains(*name))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        let shown: Vec<&str> = extra.iter().take(5).map(|name| name.as_str()).collect();
        bail!(
            Weights,
            "{} tensors that an IResNet does not have: {}{}",
            extra.len(),
            shown.join(", "),
            if extra.len() > shown.len() {
                ", …"
            } else {
                ""
            }
        );
    }
}
