//! The layers that the decoders share.

use super::block::{Block, Chain, ReceptiveField, differentiate};
use super::regions::Regions;
use super::source::Source;
use super::statistics::{GroupNorm, Norms};
use crate::error::{Result, bail};
use crate::tensor;
use tch::{Kind, Tensor};

/// eps of every GroupNorm of the KL decoders (diffusers autoencoders/vae.py).
const GROUP_NORM_EPS: f64 = 1e-6;
/// Least norm that RMS_norm divides by (torch.nn.functional.normalize).
const NORMALIZE_EPS: f64 = 1e-12;

/// 2-D convolution, stride 1, "same" padding.
pub(super) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    padding: i64,
}

impl Conv {
    /// Takes weights `[O,I,k,k]`, or `[O,I,t,k,k]` of a causal 3-D convolution. Of the latter only the last temporal
    /// slice is kept, because before the first frame there are only zeros (autoencoder_kl_wan.py).
    pub(super) fn take(source: &mut Source, name: &str, inputs: i64) -> Result<Conv> {
        let weight = source.take(&format!("{name}.weight"))?;
        let shape = weight.size();
        let weight = match shape.as_slice() {
            [_, _, t, _, _] if *t > 0 => source.compact(weight.f_select(2, t - 1)?)?,
            [_, _, _, _] => weight,
            [o, i] => weight.f_reshape([*o, *i, 1, 1])?,
            _ => bail!(
                Weights,
                "{name}.weight: expected a convolution, got shape {shape:?}"
            ),
        };
        let size = weight.size();
        let &[outputs, taken, k, k2] = size.as_slice() else {
            bail!(Internal, "{name}.weight: shape {size:?}");
        };
        if taken != inputs || k != k2 || k % 2 == 0 {
            bail!(
                Weights,
                "{name}.weight: expected {inputs} input channels and an odd square kernel, got shape {shape:?}"
            );
        }
        source.makes(outputs);
        let bias = source.take_optional(&format!("{name}.bias"))?;
        if let Some(bias) = &bias
            && bias.size() != [outputs]
        {
            bail!(
                Weights,
                "{name}.bias: expected [{outputs}], got {:?}",
                bias.size()
            );
        }
        Ok(Conv {
            weight,
            bias,
            padding: k / 2,
        })
    }

    /// The same convolution with its first `outputs` outputs alone.
    pub(super) fn first(self, outputs: i64) -> Result<Conv> {
        let narrow = |t: &Tensor| t.f_narrow(0, 0, outputs);
        Ok(Conv {
            weight: narrow(&self.weight)?,
            bias: self.bias.as_ref().map(narrow).transpose()?,
            padding: self.padding,
        })
    }

    pub(super) fn outputs(&self) -> i64 {
        self.weight.size().first().copied().unwrap_or(0)
    }

    /// The padding on each side, which is half the kernel.
    pub(super) fn padding(&self) -> i64 {
        self.padding
    }
}

impl Block for Conv {
    fn forward(&self, x: &Tensor, _: &Norms) -> Result<Tensor> {
        Ok(x.f_conv2d(&self.weight, self.bias.as_ref(), 1, self.padding, 1, 1)?)
    }
    /// A convolution is linear: its gradient needs neither the input nor the output.
    fn vjp(&self, _: &Tensor, grad: &Tensor, _: &Norms) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        Ok(grad.f_conv_transpose2d::<Tensor>(&self.weight, None, 1, self.padding, 0, 1, 1)?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Near {
            margin: self.padding,
            scale: 1,
        }
    }
}

/// The normalisation in front of a convolution.
pub(super) enum Norm {
    /// GroupNorm with weight and bias (KL families).
    Group(GroupNorm),
    /// `x/‖x‖·√C·gamma` over the channels (Qwen-Image, Wan).
    Rms { gamma: Tensor },
}

impl Norm {
    /// Takes the norm of the kind that its tensors' names tell: `gamma` for RMS_norm, `weight` and `bias` for
    /// GroupNorm.
    pub(super) fn take(source: &mut Source, name: &str, channels: i64) -> Result<Norm> {
        if let Some(gamma) = source.take_optional(&format!("{name}.gamma"))? {
            if gamma.numel() as i64 != channels {
                bail!(
                    Weights,
                    "{name}.gamma: expected {channels} numbers, got shape {:?}",
                    gamma.size()
                );
            }
            return Ok(Norm::Rms {
                gamma: gamma.f_reshape([1, channels, 1, 1])?,
            });
        }
        let groups = source.groups();
        if groups < 1 || channels % groups != 0 {
            bail!(
                Weights,
                "{name}: {channels} channels cannot be split into {groups} groups; set `norm_num_groups` or put the model's config.json beside the file"
            );
        }
        Ok(Norm::Group(GroupNorm {
            id: source.next_norm(),
            groups,
            eps: GROUP_NORM_EPS,
            weight: source.take_shape(&format!("{name}.weight"), &[channels])?,
            bias: source.take_shape(&format!("{name}.bias"), &[channels])?,
        }))
    }

    fn apply(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        Ok(match self {
            Norm::Group(norm) => norm.apply(x, norms)?,
            Norm::Rms { gamma } => {
                // The sum of squares of a float16 map can overflow float16.
                let wide = x.f_to_kind(Kind::Float)?;
                let norm = wide
                    .f_norm_scalaropt_dim(2.0, 1, true)?
                    .f_clamp_min(NORMALIZE_EPS)?;
                let root = (gamma.numel() as f64).sqrt();
                wide.f_div(&norm)?
                    .f_to_kind(x.kind())?
                    .f_mul_scalar(root)?
                    .f_mul(gamma)?
            }
        })
    }
}

/// Norm → SiLU → convolution.
pub(super) struct NormConv {
    pub norm: Norm,
    pub conv: Conv,
}

impl Block for NormConv {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let active = self.norm.apply(x, norms)?.f_silu()?;
        self.conv.forward(&active, norms)
    }

    fn vjp(&self, x: &Tensor, grad: &Tensor, norms: &Norms) -> Result<Tensor> {
        let grad = self.conv.vjp(x, grad, norms)?;
        let _grad_mode = tensor::GradGuard::new();
        let x = x.f_detach()?.f_set_requires_grad(true)?;
        let normed = self.norm.apply(&x, norms)?;
        // The gradient is written by hand, so that neither SiLU's output nor its gradient is kept while GroupNorm's
        // gradient is computed: at the size of the image, these maps are the memory peak of a whole decode.
        let grad = {
            let behind = grad;
            let _no_grad = tch::no_grad_guard();
            normed.f_detach()?.f_silu_backward(&behind)?
        };
        Ok(tensor::vjp(&normed, &[&x], &grad, false)?.swap_remove(0))
    }

    fn receptive_field(&self) -> ReceptiveField {
        self.conv.receptive_field()
    }
}

/// `branch(x) + shortcut(x)`; no shortcut is the identity.
pub(super) struct Residual {
    pub branch: Chain,
    pub shortcut: Option<Conv>,
}

impl Residual {
    /// The branch's output and the shortcut's together. A convolution does not look at norms.
    fn add(&self, branch: Tensor, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.shortcut {
            Some(conv) => branch.f_add(&conv.forward(x, &Norms::Own)?)?,
            None => branch.f_add(x)?,
        })
    }

    /// The branch's gradient and the shortcut's together.
    fn add_vjp(&self, branch: Tensor, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        Ok(match &self.shortcut {
            Some(conv) => branch.f_add(&conv.vjp(x, grad, &Norms::Own)?)?,
            None => branch.f_add(grad)?,
        })
    }
}

impl Block for Residual {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        self.add(self.branch.forward(x, norms)?, x)
    }

    fn vjp(&self, x: &Tensor, grad: &Tensor, norms: &Norms) -> Result<Tensor> {
        self.add_vjp(self.branch.vjp(x, grad, norms)?, x, grad)
    }

    /// Keeps what the second convolution sees too, so that the first one is computed once.
    fn record(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let _no_grad = tch::no_grad_guard();
        let (branch, kept) = self.branch.record(x)?;
        Ok((self.add(branch, x)?, kept))
    }

    fn replay(&self, kept: Vec<Tensor>, grad: &Tensor) -> Result<Tensor> {
        let Some(x) = kept.first().map(Tensor::shallow_clone) else {
            bail!(Internal, "a residual block's recording is empty");
        };
        let branch = self.branch.replay(kept, grad)?;
        self.add_vjp(branch, &x, grad)
    }

    /// The shortcut's convolution is no wider than the branch's.
    fn receptive_field(&self) -> ReceptiveField {
        self.branch.receptive_field()
    }
}

/// Self-attention over all pixels with one head, plus its input. A projection is a weight `[C,C]` and a bias `[C]`.
///
/// Neither keys nor values are projected. For the normed map n and a query q, the score q·(K n + k) is (Kᵀ q)·n plus a number
/// that all pixels share, which the softmax takes out; and as weights p of a softmax add up to 1, Σ p (V n + v) is V (Σ p n) + v.
/// So a region's attention costs nothing per pixel of the map but its two products with n.
pub(super) struct Attention {
    pub norm: Norm,
    pub query: (Tensor, Tensor),
    /// Without its bias, which has no influence.
    pub key: Tensor,
    pub value: (Tensor, Tensor),
    pub out: (Tensor, Tensor),
}

impl Block for Attention {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        self.attend(x, None, norms)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Attends
    }

    fn forward_region(&self, x: &Tensor, regions: &Regions, norms: &Norms) -> Result<Tensor> {
        self.attend(x, Some(regions), norms)
    }

    fn vjp_region(
        &self,
        x: &Tensor,
        grad: &Tensor,
        regions: &Regions,
        norms: &Norms,
    ) -> Result<Tensor> {
        differentiate(x, grad, |x| self.attend(x, Some(regions), norms))
    }
}

impl Attention {
    /// The queries are the pixels of `regions`, or all; they attend to all pixels of `x`.
    fn attend(&self, x: &Tensor, regions: Option<&Regions>, norms: &Norms) -> Result<Tensor> {
        let tokens = |map: &Tensor| -> Result<Tensor> {
            let rows = map.f_flatten(2, 3)?.f_transpose(1, 2)?;
            Ok(rows.f_contiguous()?.f_unsqueeze(1)?)
        };
        let linear = |x: &Tensor, (weight, bias): &(Tensor, Tensor)| x.f_linear(weight, Some(bias));
        let normed = self.norm.apply(x, norms)?;
        let all = tokens(&normed)?;
        let (queries, x) = match regions {
            None => (all.shallow_clone(), x.shallow_clone()),
            Some(regions) => (tokens(&regions.cut(&normed)?)?, regions.cut(x)?),
        };
        let queries = linear(&queries, &self.query)?.f_matmul(&self.key)?;
        let mixed = Tensor::f_scaled_dot_product_attention::<Tensor>(
            &queries, &all, &all, None, 0.0, false, None, false,
        )?;
        let out = linear(&linear(&mixed, &self.value)?, &self.out)?
            .f_squeeze_dim(1)?
            .f_transpose(1, 2)?
            .f_reshape(x.size())?;
        Ok(out.f_add(&x)?)
    }
}

/// Nearest ×2, then a convolution. (`nearest-exact` is the same at a factor of 2.)
pub(super) struct Upsample(pub Conv);

impl Block for Upsample {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let size = x.size();
        let [.., h, w] = size.as_slice() else {
            bail!(Internal, "upsampling a map of shape {size:?}");
        };
        let wide = x.f_upsample_nearest2d([2 * h, 2 * w], None, None)?;
        self.0.forward(&wide, norms)
    }

    fn vjp(&self, x: &Tensor, grad: &Tensor, norms: &Norms) -> Result<Tensor> {
        let wide = self.0.vjp(x, grad, norms)?;
        let _no_grad = tch::no_grad_guard();
        // Four pixels came from one: their gradients add up.
        Ok(wide
            .f_avg_pool2d(2, 2, 0, false, true, None)?
            .f_mul_scalar(4.0)?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Near {
            margin: self.0.padding,
            scale: 2,
        }
    }
}
