use super::LatentFormat;
use super::path::optional_path;
use serde::Deserialize;
use std::path::PathBuf;

/// The family of a VAE decoder. The weights tell it. If the configuration names it, another family is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VaeFamily {
    /// AutoencoderKL: SD1.5, SDXL, SD3, FLUX.1 and all that share it.
    Kl,
    /// AutoencoderKLFlux2.
    Flux2,
    /// Qwen-Image and Wan 2.1, one frame.
    Wan,
    /// Wan 2.2's residual VAE, one frame.
    Wan22,
    /// HunyuanImage 2.1.
    Hunyuan,
    /// The deep compression autoencoders of Sana.
    Dc,
    /// TAESD, TAESDXL, TAESD3, TAEF1, TAEF2.
    Tiny,
    /// A scripted or traced module that maps latents to an image. Loading one runs code that is in the file, so the
    /// configuration must name this family.
    Torchscript,
    /// Functions of the host.
    Host,
}

/// Element type that a network computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bit.
    #[default]
    F32,
    /// bfloat16: half the memory, the range of f32.
    Bf16,
    /// float16. SDXL's original VAE overflows in it; take bf16 or f32 there.
    F16,
}

/// Which activations of a decoder are kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// All activations: fastest, most memory.
    #[default]
    None,
    /// Only the inputs of the blocks. The backward pass computes each block again.
    Blocks,
}

/// Range of a TorchScript decoder's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum ImageRange {
    /// [−1, 1].
    #[default]
    Signed,
    /// [0, 1].
    Unit,
}

/// Configuration of a VAE decoder.
#[derive(Debug, Clone, PartialEq, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct VaeConfig {
    /// A safetensors, `.pth` or TorchScript file, a single-file checkpoint, or a diffusers folder.
    /// Not needed where the host gives the weights as tensors.
    #[serde(deserialize_with = "optional_path")]
    pub path: Option<PathBuf>,
    /// The family that the file must be of. Default: found from the tensors; never TorchScript.
    pub family: Option<VaeFamily>,
    /// Element type of weights and activations.
    pub dtype: Precision,
    /// What is kept for the backward pass.
    pub recompute: Recompute,
    /// Decode one sample at a time.
    pub slicing: bool,
    /// The content of the VAE's diffusers `config.json`, for tensors in memory. For a file, it replaces the
    /// `config.json` beside it.
    pub model_config: Option<serde_json::Value>,
    /// Groups of the KL families' GroupNorm. Default: the model's `config.json`, else 32.
    pub norm_num_groups: Option<i64>,
    /// TorchScript only: channels of the latent.
    pub latent_channels: Option<i64>,
    /// TorchScript only: range of the image.
    pub image_range: ImageRange,
    /// TorchScript only: image pixels per latent pixel. Default: 8.
    pub scale_factor: Option<i64>,
}

/// Configuration of a decoder that the host implements.
#[derive(Debug, Clone, PartialEq, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct HostVaeConfig {
    /// Channels of the latent; 0: any number.
    pub latent_channels: i64,
    /// Range of the image.
    pub image_range: ImageRange,
    /// How a model's latents relate to those that the functions take. Default: `none`.
    pub latent_format: LatentFormat,
    /// Decode one sample at a time.
    pub slicing: bool,
}
