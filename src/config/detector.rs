use super::path::{optional_path, path};
use super::{Engine, Provider, Runtime};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Which of several faces a sample's loss looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
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

/// Width and height of a detection canvas, pixels: `640` in JSON, or `[640, 480]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetectionSize {
    /// Multiple of 32.
    pub width: u32,
    /// Multiple of 32.
    pub height: u32,
}

impl From<u32> for DetectionSize {
    fn from(side: u32) -> Self {
        Self {
            width: side,
            height: side,
        }
    }
}

impl fmt::Display for DetectionSize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.width == self.height {
            true => write!(f, "{}", self.width),
            false => write!(f, "{}x{}", self.width, self.height),
        }
    }
}

impl<'de> Deserialize<'de> for DetectionSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SideOrPair;

        impl<'de> Visitor<'de> for SideOrPair {
            type Value = DetectionSize;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a side in pixels, or a pair [width, height]")
            }

            fn visit_u64<E: Error>(self, side: u64) -> Result<DetectionSize, E> {
                let side = u32::try_from(side).map_err(E::custom)?;
                Ok(side.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<DetectionSize, A::Error> {
                let (width, height) = (seq.next_element()?, seq.next_element()?);
                match (width, height, seq.next_element::<u32>()?) {
                    (Some(width), Some(height), None) => Ok(DetectionSize { width, height }),
                    _ => Err(A::Error::custom("expected a pair [width, height]")),
                }
            }
        }

        deserializer.deserialize_any(SideOrPair)
    }
}

/// Configuration of a detector.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectorConfig {
    /// The SCRFD ONNX file (det_10g.onnx, det_500m.onnx, scrfd_10g_bnkps.onnx, …).
    #[serde(deserialize_with = "path")]
    pub path: PathBuf,
    /// What runs the network.
    #[serde(default)]
    pub engine: Engine,
    /// Sides of the detection canvases, or pairs [width, height], all multiples of 32. Candidates of all sizes are
    /// merged before NMS. insightface < 1.0 used `[640]`, insightface ≥ 1.0 uses `[128, 640]`.
    #[serde(default = "default_sizes")]
    pub det_sizes: Vec<DetectionSize>,
    /// Least score of a face, in (0, 1).
    #[serde(default = "default_threshold")]
    pub threshold: f64,
    /// IoU above which the weaker of two boxes is dropped, in (0, 1).
    #[serde(default = "default_nms")]
    pub nms_threshold: f64,
    /// ONNX Runtime's library or its folder. Left out: the Python wheel's, or the one that the system's loader finds.
    #[serde(default, deserialize_with = "optional_path")]
    pub onnxruntime: Option<PathBuf>,
    /// ONNX Runtime's execution providers, best first; empty: the CPU.
    #[serde(default)]
    pub providers: Vec<Provider>,
    /// Least length of a face's shorter side, pixels of the image.
    #[serde(default)]
    pub min_size: f64,
    /// Sizes that are tried one after the other where `det_sizes` find no face, until one finds a face.
    #[serde(default)]
    pub retry_sizes: Vec<DetectionSize>,
    /// Where all of these find no face, `det_sizes` are tried again with a black border of this part of the
    /// image's longer side; 0: no.
    #[serde(default)]
    pub retry_padding: f64,
}

impl DetectorConfig {
    /// A detector with the default of every other key.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            engine: Engine::default(),
            det_sizes: default_sizes(),
            threshold: default_threshold(),
            nms_threshold: default_nms(),
            onnxruntime: None,
            providers: vec![],
            min_size: 0.0,
            retry_sizes: vec![],
            retry_padding: 0.0,
        }
    }

    /// What runs the network.
    pub fn runtime(&self) -> Runtime {
        Runtime {
            engine: self.engine,
            providers: self.providers.clone(),
            library: self.onnxruntime.clone(),
        }
    }
}

fn default_sizes() -> Vec<DetectionSize> {
    vec![640.into()]
}

// insightface model_zoo/scrfd.py: nms_thresh 0.4, det_thresh 0.5.
fn default_threshold() -> f64 {
    0.5
}

fn default_nms() -> f64 {
    0.4
}
