//! The `config.json` that diffusers puts beside a model.

use super::dc::{Act, Options};
use crate::config::{CustomFormat, LatentFormat, MAX_BYTES, VaeFamily};
use crate::error::{Error, Result, bail};
use crate::weights;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The remedy in errors about a VAE that the library has no decoder for.
pub(super) const INSTEAD: &str = "load it in Python and hand the module over (`vae=AutoencoderX.from_pretrained(...)`), \
     whose own code then decodes, give two functions to `facegrad_vae_new_from_functions`, or save it as TorchScript";

/// The keys of a VAE's config.json that matter for decoding.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sidecar {
    #[serde(rename = "_class_name")]
    class: Option<String>,
    pub norm_num_groups: Option<i64>,
    scaling_factor: Option<f64>,
    shift_factor: Option<f64>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
    pub batch_norm_eps: Option<f64>,
    act_fn: Option<String>,
    decoder_in_shortcut: Option<bool>,
    upsample_block_type: Option<String>,
    decoder_act_fns: Option<OneOrEach>,
    decoder_norm_types: Option<OneOrEach>,
    decoder_conv_act_fn: Option<String>,
    attention_head_dim: Option<i64>,
}

/// One word for all blocks, or one for each.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrEach {
    One(String),
    Each(Vec<String>),
}

impl OneOrEach {
    /// The word that all blocks share.
    fn word(&self) -> Option<&str> {
        match self {
            OneOrEach::One(word) => Some(word),
            OneOrEach::Each(words) => {
                let first = words.first()?;
                words.iter().all(|word| word == first).then_some(first)
            }
        }
    }
}

impl Sidecar {
    /// Reads config.json beside the weights; one that is absent says nothing. In a `folder` that was given as a model it is
    /// that model's; beside a single file it may be another's, so one that describes no autoencoder says nothing.
    pub(super) fn beside(weights: &Path, folder: bool) -> Result<Sidecar> {
        let path = weights.with_file_name("config.json");
        let Some(text) = weights::text(&path, MAX_BYTES as u64)? else {
            return Ok(Sidecar::default());
        };
        let value = serde_json::from_str(&text)
            .map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
        let autoencoder = |class: &str| {
            ["Autoencoder", "VAE", "VQModel"]
                .iter()
                .any(|part| class.contains(part))
        };
        if !class_of(&value).is_some_and(|class| folder || autoencoder(class)) {
            return Ok(Sidecar::default());
        }
        Sidecar::of(value).map_err(|e| e.context(path.display()))
    }

    /// From the file's content.
    pub(super) fn of(value: serde_json::Value) -> Result<Sidecar> {
        serde_json::from_value(value).map_err(|e| Error::Config(format!("model config: {e}")))
    }

    /// Checks that there is a decoder for the class.
    pub(super) fn check_class(&self) -> Result<()> {
        const KNOWN: [&str; 7] = [
            "AutoencoderKL",
            "AutoencoderKLFlux2",
            "AutoencoderKLQwenImage",
            "AutoencoderKLWan",
            "AutoencoderKLHunyuanImage",
            "AutoencoderDC",
            "AutoencoderTiny",
        ];
        match self.class.as_deref() {
            Some(class) if !KNOWN.contains(&class) => bail!(
                Unsupported,
                "config.json: the class {class} is not implemented; known are {}; {INSTEAD}",
                KNOWN.join(", ")
            ),
            _ => Ok(()),
        }
    }

    /// Checks that the file describes the family that its tensors are of.
    pub(super) fn check(&self, family: VaeFamily) -> Result<()> {
        let described = match self.class.as_deref() {
            Some("AutoencoderKL") => VaeFamily::Kl,
            Some("AutoencoderKLFlux2") => VaeFamily::Flux2,
            Some("AutoencoderKLWan") if family == VaeFamily::Wan22 => VaeFamily::Wan22,
            Some("AutoencoderKLWan" | "AutoencoderKLQwenImage") => VaeFamily::Wan,
            Some("AutoencoderKLHunyuanImage") => VaeFamily::Hunyuan,
            Some("AutoencoderDC") => VaeFamily::Dc,
            Some("AutoencoderTiny") => VaeFamily::Tiny,
            _ => return Ok(()),
        };
        if described != family {
            bail!(
                Weights,
                "config.json says {}, but the tensors are those of {family:?}",
                self.class.as_deref().unwrap_or_default()
            );
        }
        let usual = if family == VaeFamily::Tiny {
            "relu"
        } else {
            "silu"
        };
        match self.act_fn.as_deref() {
            Some(other) if other != usual => bail!(
                Unsupported,
                "config.json: act_fn {other} is not implemented; expected {usual}"
            ),
            _ => Ok(()),
        }
    }

    /// The options of a deep compression autoencoder, which its tensors do not tell.
    pub(super) fn dc_options(&self) -> Result<Options> {
        let defaults = Options::default();
        let known = |what: &str, found: Option<&str>, usual: &str| match found {
            Some(other) if other != usual => bail!(
                Unsupported,
                "config.json: {what} {other} is not implemented; expected {usual}; {INSTEAD}"
            ),
            _ => Ok(()),
        };
        let each = |words: &Option<OneOrEach>| {
            let words = words.as_ref()?;
            Some(words.word().unwrap_or("of several kinds").to_string())
        };
        known(
            "decoder_norm_types",
            each(&self.decoder_norm_types).as_deref(),
            "rms_norm",
        )?;
        known(
            "decoder_conv_act_fn",
            self.decoder_conv_act_fn.as_deref(),
            "relu",
        )?;
        let head = self.attention_head_dim.map(|head| head.to_string());
        known("attention_head_dim", head.as_deref(), "32")?;
        let act = match each(&self.decoder_act_fns).as_deref() {
            None => defaults.act,
            Some("silu") => Act::Silu,
            Some("relu") => Act::Relu,
            Some("relu6") => Act::Relu6,
            Some(other) => bail!(
                Unsupported,
                "config.json: decoder_act_fns {other} is not implemented; expected silu, relu or relu6 in all blocks"
            ),
        };
        Ok(Options {
            shortcut: self.decoder_in_shortcut.unwrap_or(defaults.shortcut),
            interpolates: match self.upsample_block_type.as_deref() {
                None | Some("pixel_shuffle") => false,
                Some("interpolate") => true,
                Some(other) => bail!(
                    Unsupported,
                    "config.json: upsample_block_type {other} is not implemented; expected pixel_shuffle or interpolate"
                ),
            },
            act,
        })
    }

    /// The latent format that the scaling numbers tell, for a KL decoder.
    pub(super) fn format(&self) -> Option<LatentFormat> {
        let numbers = self.latents_mean.is_some() && self.latents_std.is_some();
        let scale = self.scaling_factor.or(numbers.then_some(1.0))?;
        let shift = self.shift_factor.unwrap_or(0.0);
        if self.latents_mean.is_none() && self.latents_std.is_none() {
            let known = [
                (0.18215, 0.0, LatentFormat::Sd15),
                (0.13025, 0.0, LatentFormat::Sdxl),
                (1.5305, 0.0609, LatentFormat::Sd3),
                (0.3611, 0.1159, LatentFormat::Flux),
                (1.0, 0.0, LatentFormat::None),
            ];
            let found = known
                .into_iter()
                .find(|(s, h, _)| (s - scale).abs() < 1e-9 && (h - shift).abs() < 1e-9);
            if let Some((_, _, format)) = found {
                return Some(format);
            }
        }
        Some(LatentFormat::Custom(CustomFormat {
            scale,
            shift,
            mean: self.latents_mean.clone().unwrap_or_default(),
            std: self.latents_std.clone().unwrap_or_default(),
        }))
    }

    /// Whether the class is Qwen-Image's.
    pub(super) fn is_qwen_image(&self) -> bool {
        self.class.as_deref() == Some("AutoencoderKLQwenImage")
    }
}

fn class_of(value: &serde_json::Value) -> Option<&str> {
    value.get("_class_name")?.as_str()
}

/// The file of the weights: the path itself, or diffusers' file in the folder that the path names.
pub(super) fn weights_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    const NAMES: [&str; 3] = [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bin",
    ];
    let folders = [path.to_path_buf(), path.join("vae")];
    let mut candidates = folders
        .iter()
        .flat_map(|folder| NAMES.iter().map(move |name| folder.join(name)));
    match candidates.find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => bail!(
            Io,
            "{}: expected {} in this folder or its folder vae",
            path.display(),
            NAMES.join(", ")
        ),
    }
}
