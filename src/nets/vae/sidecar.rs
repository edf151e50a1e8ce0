//! The `config.json` that diffusers puts beside a model.

use crate::config::{CustomFormat, LatentFormat, MAX_BYTES, VaeFamily};
use crate::error::{Error, Result, bail};
use crate::weights;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What of a VAE's config.json matters for decoding.
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
}

impl Sidecar {
    /// Reads config.json beside the weights; one that is absent or describes no autoencoder says
    /// nothing.
    pub(super) fn beside(weights: &Path) -> Result<Sidecar> {
        let path = weights.with_file_name("config.json");
        let Some(text) = weights::text(&path, MAX_BYTES as u64)? else {
            return Ok(Sidecar::default());
        };
        let value = serde_json::from_str(&text)
            .map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
        if !class_of(&value).is_some_and(|c| c.starts_with("Autoencoder")) {
            return Ok(Sidecar::default());
        }
        Sidecar::of(value).map_err(|e| e.context(path.display()))
    }

    /// From the file's content.
    pub(super) fn of(value: serde_json::Value) -> Result<Sidecar> {
        serde_json::from_value(value).map_err(|e| Error::Config(format!("model config: {e}")))
    }

    /// Checks that the file describes the family that its tensors are of.
    pub(super) fn check(&self, family: VaeFamily) -> Result<()> {
        let described = match self.class.as_deref() {
            Some("AutoencoderKL") => VaeFamily::Kl,
            Some("AutoencoderKLFlux2") => VaeFamily::Flux2,
            Some("AutoencoderKLWan" | "AutoencoderKLQwenImage") => VaeFamily::Wan,
            Some("AutoencoderTiny") => VaeFamily::Tiny,
            Some(class) => bail!(
                Unsupported,
                "config.json: the class {class} is not implemented; known are AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLWan and AutoencoderTiny"
            ),
            None => return Ok(()),
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

    /// The latent format that the numbers tell, for a KL decoder.
    pub(super) fn format(&self) -> Option<LatentFormat> {
        let scale = self.scaling_factor?;
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

/// The weights file that a path means: itself, or what diffusers puts in a folder.
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
