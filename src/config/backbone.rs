use super::path::path;
use serde::Deserialize;
use std::path::PathBuf;

/// The channel order that a recogniser was trained with. The host's images are always RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColorOrder {
    /// Red first (InsightFace's ArcFace models).
    Rgb,
    /// Blue first.
    Bgr,
}

/// Configuration of a recogniser. Keys that are left out take the values of the model's known family.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// The file of the weights: arcface_torch `.pth` / `.safetensors`, or any recogniser ONNX.
    #[serde(deserialize_with = "path")]
    pub path: PathBuf,
    /// `r18`, `r34`, `r50`, `r100`, `r200`: checked against the file's blocks where given.
    #[serde(default)]
    pub model: Option<String>,
    /// Side of the square input, pixels.
    #[serde(default)]
    pub input_size: Option<i64>,
    /// Per-channel mean in the units of an image in [0, 1] (three numbers, model's channel order).
    #[serde(default)]
    pub mean: Option<[f64; 3]>,
    /// Per-channel standard deviation in the same units.
    #[serde(default)]
    pub std: Option<[f64; 3]>,
    /// Channel order of the model.
    #[serde(default)]
    pub color: Option<ColorOrder>,
    /// `f32` (default), `bf16` or `f16`.
    #[serde(default)]
    pub dtype: Option<String>,
}

impl BackboneConfig {
    /// A recogniser with everything from its known family.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            model: None,
            input_size: None,
            mean: None,
            std: None,
            color: None,
            dtype: None,
        }
    }
}
