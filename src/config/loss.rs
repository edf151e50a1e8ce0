use super::path::optional_path;
use super::weight::{MAX_WEIGHT, is_weight};
use super::{
    Choice, ClampPolicy, DetectorConfig, FaceChoice, LatentFormat, LevelWeights, Packing,
    PredictionConfig, Rect, VaeConfig,
};
use crate::error::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a face becomes the recogniser's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum AlignMode {
    /// A square of 1.2 times the box's longer side, resized. The method's default.
    #[default]
    Bbox,
    /// The five landmarks mapped to the ArcFace template, as in the recognisers' own training.
    Kps,
}

/// Where the face of a generated image is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Locate {
    /// By detection on the generated image.
    #[default]
    Detect,
    /// Where it is in the reference image. Valid when the generated image is a reconstruction of
    /// the reference, as in LoRA training; needs no detection and works at every noise level.
    Reference,
    /// By detection; where that finds nothing, where it is in the reference image.
    DetectOrReference,
}

/// How a face is compared with a registered reference of several images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceMode {
    /// With the normalised mean of their embeddings. Version 0.1 called it `mean`, and that name is still read.
    #[default]
    #[serde(alias = "mean")]
    Centroid,
    /// With the embedding that is most similar to the generated face.
    Best,
}

/// Which part of an image is decoded for the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DecodeMode {
    /// The whole image.
    #[default]
    Full,
    /// The part that the face's crop shows. Where the decoder allows no window: the whole image, with one line in the
    /// log.
    Window,
    /// The part that the face's crop shows. Where the decoder allows no window: an error.
    WindowOnly,
}

/// Where the GroupNorms of a window get the statistics of the whole feature map from. Decoders without GroupNorm
/// need none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum NormStats {
    /// As `predicted`.
    #[default]
    Auto,
    /// From decoding the whole image without a gradient in the same step, which detection needs anyway.
    Exact,
    /// From earlier steps with the same sample at a near noise level. From this step where there was none, or above
    /// `norm_stats_t_max`. An error where the sample or its noise level is not known.
    Cached,
    /// From a model that predicts them from the output of the decoder's first blocks for the same latents. The model is
    /// fitted to the exact passes of all samples. From this step where the model's measured error is too large, or
    /// above `norm_stats_t_max`.
    Predicted,
    /// From the window itself. Nothing else is decoded, and the gradient is the least exact.
    Window,
}

/// The method's name for what is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// The loss with a gradient.
    #[default]
    Differentiable,
    /// The evaluator's score in its place: crops of 8-bit pixels, aligned by landmarks, in ONNX Runtime where it can run
    /// the recogniser. It has no gradient.
    NonDifferentiable,
}

/// A detector by path alone, or with all its keys.
pub type DetectorChoice = Choice<DetectorConfig>;

/// A VAE by path alone, or with all its keys.
pub type VaeChoice = Choice<VaeConfig>;

/// The weight of a sample by its noise level t in [0, 1].
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum TimeWeight {
    /// The weight 1 for every t.
    #[default]
    Constant,
    /// max(1 − t, 0.1), as in guangzhaoli/face.
    OneMinusT,
    /// (1 − t)², as in ID-Booth.
    OneMinusTSquared,
    /// 1 / max(t, 0.1)², as in ai-toolkit: it turns an error of x0 into one of the velocity.
    InverseTSquared,
    /// min(SNR, γ) / SNR with the γ given (5 is usual); SNR = ((1 − t) / t)² for flow matching,
    /// ᾱ / (1 − ᾱ) for epsilon and v.
    MinSnr(f64),
    /// Weights at evenly spaced t from 0 to 1, linear between them.
    Table(Vec<f64>),
}

/// Configuration of a loss. Its serialised form leaves out the networks, which have descriptions of their own.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// `false` gates every sample out.
    pub use_face_loss: bool,
    /// λ: the factor of the mean over the counted samples; ≥ 0, usually 0.05–0.2.
    pub face_loss_weight: f64,
    /// How a face becomes the recogniser's input.
    pub face_align_mode: AlignMode,
    /// The loss, or the score without a gradient.
    pub face_loss_type: LossType,
    /// The `data_type`s that count.
    pub face_types: Vec<String>,
    /// The recogniser's weights, where no backbone is handed over.
    #[serde(deserialize_with = "optional_path", skip_serializing)]
    pub arcface_weights: Option<PathBuf>,
    /// `r18`, `r34`, `r50`, `r100`, `r200`: checked against the weights where given.
    #[serde(skip_serializing)]
    pub arcface_model: Option<String>,
    /// The detector, where none is handed over.
    #[serde(skip_serializing)]
    pub detector: Option<DetectorChoice>,
    /// Where the face of a generated image is looked for.
    pub landmarks: Locate,
    /// Which of several faces counts.
    pub face_choice: FaceChoice,
    /// For `face_choice: index`: the n-th face by score, from 0.
    pub face_index: usize,
    /// Cosine similarity in (-1, 1] from which on a sample has no gradient. Pairs of real photographs of one
    /// person lie near 0.5.
    pub target_similarity: f64,
    /// Weights of the cosine distances on several levels of the recogniser; the loss is their weighted sum. The levels
    /// are `embedding`, of an IResNet also `layer1` to `layer4`, and of an ONNX model also its further outputs by name.
    /// Left out: the embedding alone.
    pub levels: Option<LevelWeights>,
    /// How a face is compared with a registered reference of several images.
    pub reference_mode: ReferenceMode,
    /// How many faces of reference images are kept, by the content of the image; 0: none.
    pub reference_cache: usize,
    /// The VAE, where none is handed over; needed by the fused step alone.
    #[serde(skip_serializing)]
    pub vae: Option<VaeChoice>,
    /// How the model's prediction becomes the clean latent.
    pub prediction: PredictionConfig,
    /// How latents are laid out in the host's tensors.
    pub packing: Packing,
    /// The part of the unpacked latent that the loss looks at. Left out: all of it.
    pub latent_crop: Option<Rect>,
    /// How the model's latents relate to those of its VAE. Left out: what the VAE's files tell.
    pub latent_format: Option<LatentFormat>,
    /// How the decoded image is brought into [0, 1].
    pub clamp: ClampPolicy,
    /// Which part of an image is decoded.
    pub decode: DecodeMode,
    /// The largest margin that is computed around a window, in latent pixels. Left out: the decoder's whole receptive
    /// field, with which the window shows what the whole image shows; 2 where the statistics are not exact.
    pub window_halo: Option<i64>,
    /// Where the GroupNorms of a window get their statistics from.
    pub norm_stats: NormStats,
    /// Above this noise level, statistics are those of the same step. Left out: 0.6 for `cached`, none for `predicted`.
    pub norm_stats_t_max: Option<f64>,
    /// With `cached`: how often statistics are used before they are computed anew.
    pub norm_stats_refresh: u64,
    /// With `cached`: for how many samples statistics are kept, about ten kilobytes each. The least recently used are
    /// dropped first.
    pub norm_stats_cache: usize,
    /// Every so many steps the whole image is decoded with a gradient. It is compared with the windows' gradient, and
    /// the step uses it. 0: never.
    pub audit_every: u64,
    /// The least cosine between the gradients of a sample through its window and through the whole image. An audit
    /// below it ends the use of cached and predicted statistics, and the next such audit ends the use of windows.
    pub audit_cosine: f64,
    /// The largest ratio of the norms of these two gradients, the longer to the shorter; beyond it as for
    /// `audit_cosine`.
    pub audit_norm_ratio: f64,
    /// The least noise level that counts. The noise level is t for flow matching, √(1 − ᾱ) for epsilon and v.
    pub t_min: f64,
    /// The largest noise level that counts.
    pub t_max: f64,
    /// The weight of a sample by its noise level.
    pub time_weight: TimeWeight,
    /// Only steps whose number is a multiple of this count.
    pub every_n_steps: u64,
    /// The largest norm of the gradient with respect to the prediction, relative to the norm that the host gives with
    /// the step. A longer gradient is scaled down to it.
    pub gradient_limit: Option<f64>,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            use_face_loss: true,
            face_loss_weight: 0.1,
            face_align_mode: AlignMode::default(),
            face_loss_type: LossType::default(),
            face_types: vec!["person".into(), "person_head".into()],
            arcface_weights: None,
            arcface_model: None,
            detector: None,
            landmarks: Locate::default(),
            face_choice: FaceChoice::default(),
            face_index: 0,
            target_similarity: 1.0,
            levels: None,
            reference_mode: ReferenceMode::default(),
            reference_cache: 4096,
            vae: None,
            prediction: PredictionConfig::default(),
            packing: Packing::default(),
            latent_crop: None,
            latent_format: None,
            clamp: ClampPolicy::default(),
            decode: DecodeMode::default(),
            window_halo: None,
            norm_stats: NormStats::default(),
            norm_stats_t_max: None,
            norm_stats_refresh: 32,
            norm_stats_cache: 4096,
            audit_every: 0,
            audit_cosine: 0.9,
            audit_norm_ratio: 1.5,
            t_min: 0.0,
            t_max: 1.0,
            time_weight: TimeWeight::default(),
            every_n_steps: 1,
            gradient_limit: None,
        }
    }
}

impl LossConfig {
    /// Reads and checks the JSON text.
    pub fn parse(json: &str) -> Result<Self> {
        let mut config: Self = super::parse("loss config", json)?;
        if config.is_score() {
            if config.levels.is_some() {
                bail!(
                    Config,
                    "loss config: levels: the score of face_loss_type \"non_differentiable\" compares embeddings alone; leave \
                     levels (use_multiscale_face_loss, multiscale_layer_weights) out, or set face_loss_type to \
                     \"differentiable\""
                );
            }
            // InsightFace's score aligns by landmarks, whatever the loss would do.
            config.face_align_mode = AlignMode::Kps;
        }
        let weight = config.face_loss_weight;
        if !is_weight(weight) {
            bail!(
                Config,
                "loss config: face_loss_weight: expected a number from 0 to {MAX_WEIGHT:e}, got {weight:?}"
            );
        }
        let target = config.target_similarity;
        if !(target > -1.0 && target <= 1.0) {
            bail!(
                Config,
                "loss config: target_similarity: expected a cosine in (-1, 1], got {target}"
            );
        }
        if config.t_min > config.t_max {
            bail!(
                Config,
                "loss config: t_min {} is larger than t_max {}",
                config.t_min,
                config.t_max
            );
        }
        if config.every_n_steps == 0 {
            bail!(
                Config,
                "loss config: every_n_steps: expected at least 1, got 0"
            );
        }
        let weights_work = match &config.time_weight {
            TimeWeight::Table(table) => !table.is_empty() && table.iter().all(|&w| is_weight(w)),
            TimeWeight::MinSnr(gamma) => is_weight(*gamma) && *gamma > 0.0,
            _ => true,
        };
        if !weights_work {
            bail!(
                Config,
                "loss config: time_weight: expected numbers from 0 to {MAX_WEIGHT:e} in the table, or a gamma > 0 and up to {MAX_WEIGHT:e}"
            );
        }
        if config
            .gradient_limit
            .is_some_and(|limit| !(limit.is_finite() && limit > 0.0))
        {
            bail!(Config, "loss config: gradient_limit: expected a number > 0");
        }
        config.check_windows()?;
        Ok(config)
    }

    /// Whether the score takes the place of the loss.
    pub fn is_score(&self) -> bool {
        self.face_loss_type == LossType::NonDifferentiable
    }

    fn check_windows(&self) -> Result<()> {
        if self
            .window_halo
            .is_some_and(|halo| !(0..=1024).contains(&halo))
        {
            bail!(
                Config,
                "loss config: window_halo: expected 0 to 1024 latent pixels"
            );
        }
        if self.norm_stats_refresh == 0 || self.norm_stats_cache == 0 {
            bail!(
                Config,
                "loss config: norm_stats_refresh, norm_stats_cache: expected at least 1; `norm_stats` \"exact\" \
                 remembers nothing"
            );
        }
        if !(self.audit_cosine <= 1.0 && self.audit_norm_ratio >= 1.0) {
            bail!(
                Config,
                "loss config: audit_cosine: expected a cosine, got {}; audit_norm_ratio: expected at least 1, \
                 got {}",
                self.audit_cosine,
                self.audit_norm_ratio
            );
        }
        Ok(())
    }
}
