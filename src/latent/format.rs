//! From model space to VAE space: undoes the scaling that a trainer applies to latents.

use super::packing::four;
use crate::config::LatentFormat;
use crate::error::{Result, bail};
use crate::tensor::upload;
use tch::{Kind, Tensor};

/// FLUX.2's latent statistics, which its VAE file carries (`bn.running_mean`, `bn.running_var`).
#[derive(Debug)]
pub struct PatchStats {
    /// Mean of the 4C patch channels, `[4C]` f32, channel 4c + 2py + px.
    pub mean: Tensor,
    /// √(variance + eps) of the same channels, `[4C]` f32.
    pub std: Tensor,
}

impl PatchStats {
    /// The same statistics over the same memory.
    pub fn shallow_clone(&self) -> Self {
        PatchStats {
            mean: self.mean.shallow_clone(),
            std: self.std.shallow_clone(),
        }
    }
}

// diffusers autoencoder_kl_qwenimage.py, autoencoder_kl_wan.py.
const WAN_MEAN: [f64; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
    -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
];
const WAN_STD: [f64; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
    1.6382, 1.1253, 2.8251, 1.9160,
];

// diffusers scripts/convert_wan_to_diffusers.py, Wan 2.2.
#[rustfmt::skip]
const WAN22_MEAN: [f64; 48] = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
];
#[rustfmt::skip]
const WAN22_STD: [f64; 48] = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
];

/// Converts unpacked model-space latents `[B,C,H,W]` to the latents that the VAE decodes: the same shape, f32.
///
/// `patch` is needed by `flux2` only; see `Decoder::patch_stats`.
///
/// # Errors
/// `Shape` when the channels are not the format's; `Config` for a custom format that cannot be
/// used or flux2 without its statistics.
pub fn to_vae_space(
    latents: &Tensor,
    format: &LatentFormat,
    patch: Option<&PatchStats>,
) -> Result<Tensor> {
    let shape = latents.size();
    let [b, c, h, w] = four(&shape, "[B,C,H,W]")?;
    let x = latents.f_to_kind(Kind::Float)?;
    // (scale, shift): diffusers' configs of the models named.
    let (channels, scale, shift) = match format {
        LatentFormat::None => return Ok(x),
        LatentFormat::Sd15 => (4, 0.18215, 0.0),
        LatentFormat::Sdxl => (4, 0.13025, 0.0),
        LatentFormat::Sd3 => (16, 1.5305, 0.0609),
        LatentFormat::Flux => (16, 0.3611, 0.1159),
        LatentFormat::QwenImage | LatentFormat::Wan21 => {
            expect_channels(format, c, 16)?;
            return per_channel(&x, &WAN_STD, &WAN_MEAN);
        }
        LatentFormat::Wan22 => {
            expect_channels(format, c, 48)?;
            return per_channel(&x, &WAN22_STD, &WAN22_MEAN);
        }
        LatentFormat::Custom(custom) => {
            if !(custom.scale.is_finite() && custom.shift.is_finite()) || custom.scale == 0.0 {
                bail!(
                    Config,
                    "latent format custom: expected a finite scale other than 0 and a finite shift, got {} and {}",
                    custom.scale,
                    custom.shift
                );
            }
            let fill = |name: &str, values: &[f64], default: f64| -> Result<Vec<f64>> {
                match values.len() as i64 {
                    0 => Ok(vec![default; c as usize]),
                    n if n == c && values.iter().all(|v| v.is_finite()) => Ok(values.to_vec()),
                    n => bail!(
                        Config,
                        "latent format custom: {name} has {n} numbers, the latents {c} channels; each must be finite"
                    ),
                }
            };
            let mul = fill("std", &custom.std, 1.0)?;
            let add = fill("mean", &custom.mean, 0.0)?;
            let mul: Vec<f64> = mul.iter().map(|s| s / custom.scale).collect();
            let add: Vec<f64> = add.iter().map(|m| m + custom.shift).collect();
            return per_channel(&x, &mul, &add);
        }
        LatentFormat::Flux2 => {
            let Some(patch) = patch else {
                bail!(
                    Config,
                    "latent format flux2: its statistics come from a FLUX.2 VAE; load one, or use `none` with TAEF2"
                );
            };
            expect_channels(format, 4 * c, patch.mean.numel() as i64)?;
            if h % 2 != 0 || w % 2 != 0 {
                bail!(
                    Shape,
                    "latents: flux2 needs an even height and width, got {h}x{w}"
                );
            }
            let spread = |stat: &Tensor| -> Result<Tensor> {
                Ok(stat
                    .f_to_device(x.device())?
                    .f_reshape([1, c, 1, 2, 1, 2])?)
            };
            return Ok(x
                .f_reshape([b, c, h / 2, 2, w / 2, 2])?
                .f_mul(&spread(&patch.std)?)?
                .f_add(&spread(&patch.mean)?)?
                .f_reshape([b, c, h, w])?);
        }
    };
    expect_channels(format, c, channels)?;
    Ok(x.f_div_scalar(scale)?.f_add_scalar(shift)?)
}

fn expect_channels(format: &LatentFormat, got: i64, want: i64) -> Result<()> {
    if got != want {
        bail!(
            Shape,
            "latents: the format {format:?} has {want} channels, got {got}"
        );
    }
    Ok(())
}

fn per_channel(x: &Tensor, mul: &[f64], add: &[f64]) -> Result<Tensor> {
    let column = |values: &[f64]| -> Result<Tensor> {
        Ok(upload(values, x.device())?
            .f_to_kind(Kind::Float)?
            .f_reshape([1, -1, 1, 1])?)
    };
    Ok(x.f_mul(&column(mul)?)?.f_add(&column(add)?)?)
}
