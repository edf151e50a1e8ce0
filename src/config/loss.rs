use super::path::optional_path;
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
    /// The five landmarks mapped to the ArcFace template: what the recognisers were trained with.
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

/// How the several images of one registered reference act together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceMode {
    /// The normalised mean of their embeddings. 0.1 called it `mean`, which is still read.
    #[default]
    #[serde(alias = "mean")]
    Centroid,
    /// The one that is most similar to the generated face.
    Best,
}

/// What of an image is decoded for the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DecodeMode {
    /// All of it.
    #[default]
    Full,
    /// What the face's crop shows; all of it, with one line in the log, where the decoder allows no window.
    Window,
    /// What the face's crop shows; an error where the decoder allows no window.
    WindowOnly,
}

/// Where the GroupNorms of a window get the statistics of the whole map from. Decoders without GroupNorm
/// need none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum NormStats {
    /// As `predicted`.
    #[default]
    Auto,
    /// From decoding the whole image without a gradient in the same step, as detection needs it anyway.
    Exact,
    /// From an earlier step with the same sample at a near noise level; from this step where there was
    /// none, or above `norm_stats_t_max`. An error where sample or noise level are not known.
    Cached,
    /// Predicted from what the decoder's first blocks make of the same latents, by a model that is fitted to the exact
    /// passes of all samples. From this step where the model is not good by its own measure, or above
    /// `norm_stats_t_max`.
    Predicted,
    /// From the window itself: nothing else is decoded, and the gradient is the least exact.
    Window,
}

/// The method's name for what this library computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum LossType {
    /// The loss with a gradient.
    #[default]
    Differentiable,
}

/// A detector by path alone, or with all its keys.
pub type DetectorChoice = Choice<DetectorConfig>;

/// A VAE by path alone, or with all its keys.
pub type VaeChoice = Choice<VaeConfig>;

/// How much a sample counts by its noise level t in [0, 1].
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum TimeWeight {
    /// 1.
    #[default]
    Constant,
    /// max(1 − t, 0.1), as guangzhaoli/face weights.
    OneMinusT,
    /// (1 − t)², as ID-Booth weights.
    OneMinusTSquared,
    /// 1 / max(t, 0.1)²: an error of x0 in units of the velocity, as ai-toolkit weights.
    InverseTSquared,
    /// min(SNR, γ) / SNR with the γ given (5 is usual); SNR = ((1 − t) / t)² for flow matching,
    /// ᾱ / (1 − ᾱ) for epsilon and v.
    MinSnr(f64),
    /// Weights at evenly spaced t from 0 to 1, linear between them.
    Table(Vec<f64>),
}

/// Configuration of a loss. As JSON it tells all but the networks, which describe themselves.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// `false` gates every sample out.
    pub use_face_loss: bool,
    /// λ: what the mean over the counted samples is multiplied with; ≥ 0, usually 0.05–0.2.
    pub face_loss_weight: f64,
    /// How a face becomes the recogniser's input.
    pub face_align_mode: AlignMode,
    /// `differentiable`.
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
    /// Cosine similarity in (-1, 1] beyond which there is no push. Pairs of real photographs of one
    /// person lie near 0.5.
    pub target_similarity: f64,
    /// Weights of the cosine distances on several levels of the recogniser, whose weighted sum the loss is: of an IResNet
    /// `layer1` to `layer4`, of an ONNX model its further outputs by name, and `embedding`. Left out: the embedding alone.
    pub levels: Option<LevelWeights>,
    /// How the several images of one registered reference act together.
    pub reference_mode: ReferenceMode,
    /// How many reference faces are remembered by content; 0 remembers none.
    pub reference_cache: usize,
    /// The VAE, where none is handed over; needed by the fused step alone.
    #[serde(skip_serializing)]
    pub vae: Option<VaeChoice>,
    /// How the model's prediction becomes the clean latent.
    pub prediction: PredictionConfig,
    /// How latents are laid out in the host's tensors.
    pub packing: Packing,
    /// The part of the unpacked latent that the loss is about.
    pub latent_crop: Option<Rect>,
    /// How the model's latents relate to those of its VAE. Left out: what the VAE's files tell.
    pub latent_format: Option<LatentFormat>,
    /// How the decoded image is brought into [0, 1].
    pub clamp: ClampPolicy,
    /// What of the image is decoded.
    pub decode: DecodeMode,
    /// Largest distance from a window, in latent pixels, of what is computed around it. Left out: the
    /// decoder's receptive field, with which the window shows what the whole image shows; 2 where the
    /// statistics are not exact.
    pub window_halo: Option<i64>,
    /// Where the GroupNorms of a window get their statistics from.
    pub norm_stats: NormStats,
    /// Noise level above which statistics are those of the same step. Left out: 0.6 for `cached`, none for `predicted`.
    pub norm_stats_t_max: Option<f64>,
    /// How often statistics are used before they are taken anew.
    pub norm_stats_refresh: u64,
    /// How many samples' statistics are remembered, those used last; some ten kilobytes each.
    pub norm_stats_cache: usize,
    /// Every so many steps the whole image is decoded with a gradient, which is compared with that of the
    /// windows and used; 0: never.
    pub audit_every: u64,
    /// Least cosine of a sample's two gradients. Below it remembered statistics are given up, and if that
    /// is not enough, windows.
    pub audit_cosine: f64,
    /// Largest ratio of the norms of a sample's two gradients, whichever is the longer.
    pub audit_norm_ratio: f64,
    /// Least noise level that counts. The level is t for flow matching, √(1 − ᾱ) for epsilon and v.
    pub t_min: f64,
    /// Largest noise level that counts.
    pub t_max: f64,
    /// How much a sample counts by its noise level.
    pub time_weight: TimeWeight,
    /// Only every n-th step counts: those whose number is a multiple.
    pub every_n_steps: u64,
    /// Largest norm of the gradient with respect to the prediction, relative to the norm that the
    /// host gives with the step; a longer one is scaled down.
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
        let config: Self = super::parse("loss config", json)?;
        let weight = config.face_loss_weight;
        if !(weight.is_finite() && weight >= 0.0) {
            bail!(
                Config,
                "loss config: face_loss_weight: expected a number >= 0, got {weight}"
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
        let usable = |weight: &f64| weight.is_finite() && *weight >= 0.0;
        let weights_work = match &config.time_weight {
            TimeWeight::Table(table) => !table.is_empty() && table.iter().all(usable),
            TimeWeight::MinSnr(gamma) => gamma.is_finite() && *gamma > 0.0,
            _ => true,
        };
        if !weights_work {
            bail!(
                Config,
                "loss config: time_weight: expected numbers >= 0 in the table, and a gamma > 0"
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
