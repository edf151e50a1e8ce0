use super::path::optional_path;
use super::{
    BackboneConfig, Choice, DetectorChoice, DetectorConfig, Engine, FaceChoice, Provider, Runtime,
};
use crate::error::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How the similarities to several reference images of one person become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The cosine with the normalised mean of their embeddings.
    #[default]
    Centroid,
    /// The mean of the cosines.
    Mean,
    /// The largest cosine.
    Max,
}

/// A recogniser by path alone, or with all its keys.
pub type RecogniserChoice = Choice<BackboneConfig>;

/// Configuration of an evaluator.
#[derive(Debug, Clone, PartialEq, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluatorConfig {
    /// The detector: its file, or an object with its own engine, providers and library.
    pub detector: Option<DetectorChoice>,
    /// The recogniser.
    pub recogniser: Option<RecogniserChoice>,
    /// What runs the recogniser, and a detector given by its file.
    pub engine: Engine,
    /// ONNX Runtime's execution providers for the same, best first; empty: the CPU.
    pub providers: Vec<Provider>,
    /// ONNX Runtime's library or its folder, for the same.
    #[serde(deserialize_with = "optional_path")]
    pub onnxruntime: Option<PathBuf>,
    /// Which of several faces is compared.
    pub face_choice: FaceChoice,
    /// For `face_choice: index`: the n-th face by score, from 0.
    pub face_index: usize,
    /// How several reference images of one person become one number.
    pub pooling: Pooling,
    /// The `data_type`s that count, where the host gives them.
    pub face_types: Option<Vec<String>>,
}

impl EvaluatorConfig {
    /// The two networks' configurations and what runs the recogniser.
    pub fn networks(&self) -> Result<(DetectorConfig, BackboneConfig, Runtime)> {
        let (Some(detector), Some(recogniser)) = (&self.detector, &self.recogniser) else {
            bail!(
                Config,
                "evaluator config: expected `detector` and `recogniser`, the ONNX files of a pack such as buffalo_l"
            );
        };
        let runtime = Runtime {
            engine: self.engine,
            providers: self.providers.clone(),
            library: self.onnxruntime.clone(),
        };
        let detector = match detector {
            DetectorChoice::Config(config) => (**config).clone(),
            DetectorChoice::Path(path) => DetectorConfig {
                engine: runtime.engine,
                providers: runtime.providers.clone(),
                onnxruntime: runtime.library.clone(),
                ..DetectorConfig::new(path.clone())
            },
        };
        let recogniser = match recogniser {
            RecogniserChoice::Config(config) => (**config).clone(),
            RecogniserChoice::Path(path) => BackboneConfig::new(path.clone()),
        };
        Ok((detector, recogniser, runtime))
    }
}
