use serde::{Deserialize, Serialize};

/// What a diffusion model predicts. The named models are flow matching with the sign and the time of
/// their transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// Flow matching: the velocity `noise − x0`.
    #[default]
    Flow,
    /// The noise ε of a variance-preserving process.
    Epsilon,
    /// `√ᾱ·ε − √(1−ᾱ)·x0`.
    V,
    /// The clean latent itself (ComfyUI's trainer hands this out).
    Sample,
    /// The host gives the coefficients a and b itself.
    Custom,
    /// Z-Image: the transformer's own output (negated velocity) and its own time (1 = clean).
    ZImage,
    /// Lumina 2: the transformer's own output (negated velocity) and its own time (1 = clean).
    Lumina2,
    /// HiDream: the transformer's own output (negated velocity); the time is the noise fraction.
    Hidream,
}

/// The unit of the host's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Time {
    /// Flow: the noise fraction in [0, 1]. Epsilon and v: the training timestep 0…999 of the
    /// scaled-linear schedule of SD1.5, SD2 and SDXL.
    #[default]
    T,
    /// Flow: the noise fraction in [0, 1]. Epsilon and v: √((1−ᾱ)/ᾱ), at least 0.
    Sigma,
    /// The share of the signal's power, in (0, 1].
    AlphaBar,
}

/// How the host's prediction becomes the clean latent x0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct PredictionConfig {
    /// What the model predicts.
    pub kind: Prediction,
    /// The unit of the host's times.
    pub time: Time,
    /// The prediction comes with the opposite sign. Default: as the kind says.
    pub negated: Option<bool>,
    /// Time runs from 0 = noise to 1 = clean. Default: as the kind says.
    pub reversed_time: Option<bool>,
}

/// How latents are laid out in the host's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// `[B,C,H,W]`.
    #[default]
    None,
    /// FLUX.1, Chroma, Qwen-Image: 2×2 tokens `[B,HW/4,4C]`, features in the order (c, py, px).
    Flux,
    /// FLUX.2: 2×2 patches as channels `[B,4C,H/2,W/2]`, channel 4c + 2py + px.
    Flux2,
    /// FLUX.2's transformer: the same as tokens `[B,HW/4,4C]`.
    Flux2Tokens,
}

/// A rectangle of pixels. In a configuration they are pixels of the unpacked `[B,C,H,W]` latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rect {
    /// First column.
    pub x: i64,
    /// First row.
    pub y: i64,
    /// Columns, at least 1.
    pub width: i64,
    /// Rows, at least 1.
    pub height: i64,
}

/// How a model's latents relate to those that its VAE decodes.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum LatentFormat {
    /// They are those that the VAE decodes, as for every TAESD decoder, which takes model-space latents.
    #[default]
    None,
    /// SD1.5 and SD2: 4 channels.
    Sd15,
    /// SDXL and all that share its VAE: 4 channels.
    Sdxl,
    /// SD3 and SD3.5: 16 channels.
    Sd3,
    /// FLUX.1, Chroma, HiDream, Lumina 2, OmniGen 2, Z-Image: 16 channels.
    Flux,
    /// FLUX.2: 32 channels, statistics per 2×2 patch from the VAE's own file.
    Flux2,
    /// Qwen-Image: 16 channels.
    QwenImage,
    /// Wan 2.1: 16 channels, the numbers of Qwen-Image.
    Wan21,
    /// Wan 2.2's residual VAE: 48 channels.
    Wan22,
    /// `z·std/scale + mean + shift`.
    Custom(CustomFormat),
}

/// The numbers of [`LatentFormat::Custom`].
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CustomFormat {
    /// What the trainer multiplied the VAE's latents by; not 0.
    pub scale: f64,
    /// What it subtracted before.
    pub shift: f64,
    /// Per-channel mean; empty for none.
    pub mean: Vec<f64>,
    /// Per-channel standard deviation; empty for none.
    pub std: Vec<f64>,
}

impl Default for CustomFormat {
    fn default() -> Self {
        Self {
            scale: 1.0,
            shift: 0.0,
            mean: vec![],
            std: vec![],
        }
    }
}

/// How a decoded image is brought into [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum ClampPolicy {
    /// Values outside are cut off. The gradient is zero where the image is saturated.
    #[default]
    Clamp,
    /// Values outside are cut off. The gradient passes as if they had not been.
    StraightThrough,
    /// A smooth curve, with a small gradient beyond the ends.
    Soft,
}
