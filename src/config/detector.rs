use serde::Deserialize;
use std::path::PathBuf;

/// What runs the detector's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// ONNX Runtime on the CPU where its library is found, else libtorch; libtorch on CUDA.
    #[default]
    Auto,
    /// ONNX Runtime; a missing library is an error.
    Ort,
    /// libtorch, on the context's device.
    Torch,
}

/// Which of several faces a sample's loss looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum FaceChoice {
    /// The highest detection score.
    #[default]
    Score,
    /// The largest box area.
    Largest,
    /// The box centre nearest to the image's centre.
    Center,
    /// The n-th by score, see the key `face_index`.
    Index,
}

/// Configuration of a detector.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectorConfig {
    /// The SCRFD ONNX file (det_10g.onnx, det_500m.onnx, scrfd_10g_bnkps.onnx, …).
    pub path: PathBuf,
    /// What runs the network.
    #[serde(default)]
    pub engine: Engine,
    /// Sides of the square detection canvases, each a multiple of 32. Candidates of all sizes are
    /// merged before NMS. insightface < 1.0 used `[640]`, insightface ≥ 1.0 uses `[128, 640]`.
    #[serde(default = "default_sizes")]
    pub det_sizes: Vec<u32>,
    /// Least score of a face, in (0, 1).
    #[serde(default = "default_threshold")]
    pub threshold: f64,
    /// IoU above which the weaker of two boxes is dropped, in (0, 1).
    #[serde(default = "default_nms")]
    pub nms_threshold: f64,
    /// The ONNX Runtime library; without it the Python wheel and the loader are asked.
    #[serde(default)]
    pub onnxruntime: Option<PathBuf>,
}

fn default_sizes() -> Vec<u32> {
    vec![640]
}

// insightface model_zoo/scrfd.py: nms_thresh 0.4, det_thresh 0.5.
fn default_threshold() -> f64 {
    0.5
}

fn default_nms() -> f64 {
    0.4
}
