//! What happened to every sample of a batch.

use crate::align::Alignment;
use crate::face::Landmarks;
use crate::log::warn_host;

/// Why a sample counts, or why not. The numbers are those of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Outcome {
    /// It counts.
    #[default]
    Counted = 0,
    /// `use_face_loss` is false.
    Disabled = 1,
    /// Its `data_type` is not among `face_types`.
    DataType = 2,
    /// Its weight is 0.
    ZeroWeight = 3,
    /// No face was found in the reference.
    NoReferenceFace = 4,
    /// No face was found in the generated image.
    NoFace = 5,
    /// Its landmarks or box span no area.
    Degenerate = 6,
    /// Its loss or gradient is not finite.
    NonFinite = 7,
    /// Its noise level lies outside `t_min` to `t_max`.
    Time = 8,
    /// The step's number is not a multiple of `every_n_steps`.
    Step = 9,
}

impl Outcome {
    /// The reason in words.
    pub fn text(self) -> &'static str {
        match self {
            Outcome::Counted => "counted",
            Outcome::Disabled => "use_face_loss is false",
            Outcome::DataType => "its data_type is not among face_types",
            Outcome::ZeroWeight => "its weight is 0",
            Outcome::NoReferenceFace => "no face was found in the reference",
            Outcome::NoFace => "no face was found in the generated image",
            Outcome::Degenerate => "its landmarks or box span no area",
            Outcome::NonFinite => "its image, loss or gradient is not finite",
            Outcome::Time => "its noise level lies outside the window",
            Outcome::Step => "the step is not one of every n",
        }
    }
}

/// How the generated face was found. The numbers are those of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Located {
    /// It was not found, or not looked for.
    #[default]
    Nowhere = 0,
    /// By detection.
    Detected = 1,
    /// By the landmarks or the box that the host gave.
    Given = 2,
    /// At the place of the face in the reference image.
    Reference = 3,
}

/// What was decoded of the generated image with a gradient. The numbers are those of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Decoded {
    /// Nothing: the sample was gated out, or came as an image.
    #[default]
    Nothing = 0,
    /// The whole image.
    Full = 1,
    /// A window that equals the whole image there. Its gradient leaves out the part that flows through
    /// GroupNorm's statistics, in decoders that have GroupNorm.
    WindowExact = 2,
    /// A window with GroupNorm statistics of earlier steps.
    WindowCached = 3,
    /// A window with GroupNorm statistics of the window itself.
    Window = 4,
    /// A window with GroupNorm statistics that are predicted.
    WindowPredicted = 5,
}

/// A comparison of a sample's gradient through a window with its gradient through the whole image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Audit {
    /// The cosine between the two gradients.
    pub cosine: f64,
    /// The norm of the window's gradient divided by that of the whole image's.
    pub norm_ratio: f64,
}

/// What happened to one sample.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// Whether it counts, or why not.
    pub outcome: Outcome,
    /// How the generated face was found.
    pub located: Located,
    /// How the face was aligned.
    pub alignment: Alignment,
    /// Cosine similarity to the reference in [-1, 1]; NaN where there is none.
    pub similarity: f64,
    /// The sample's weight in the mean.
    pub weight: f64,
    /// Detection score in [0, 1]; NaN where the face was not detected.
    pub score: f64,
    /// The generated face's box in pixels, `[x1, y1, x2, y2]`.
    pub bbox: Option<[f64; 4]>,
    /// Its landmarks in pixels.
    pub landmarks: Option<Landmarks>,
    /// What was decoded of it.
    pub decoded: Decoded,
    /// Whether the whole image was also decoded without a gradient, for detection or for GroupNorm statistics.
    pub exact_pass: bool,
    /// The audit of the sample; `None` at steps without one.
    pub audit: Option<Audit>,
    /// The cosine with the reference per configured level, in the order of the levels; empty where the embedding alone
    /// is compared.
    pub levels: Vec<f64>,
}

impl Sample {
    /// A sample that counts with `weight`, of which nothing else is known yet.
    pub fn new(weight: f64) -> Self {
        Sample {
            weight,
            similarity: f64::NAN,
            score: f64::NAN,
            ..Sample::default()
        }
    }
}

/// The value of a loss and what every sample contributed to it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// `face_loss_weight · Σ wᵢ·(1 − min(cosᵢ, target)) / counted`: the value that is differentiated. 0 where no sample
    /// counts.
    pub loss: f64,
    /// Mean of `1 − cos` over the counted samples, without weights; 0 where none counts.
    pub mean_distance: f64,
    /// One per generated image, in order.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Computes `loss` and `mean_distance` from the samples. `levels`: per level the cosine beyond which a sample adds
    /// nothing more to the loss, and the level's weight; one level is the embedding.
    pub fn total(&mut self, face_loss_weight: f64, levels: &[(f64, f64)]) {
        let (mut total, mut distance, mut count) = (0.0, 0.0, 0.0);
        for sample in &self.samples {
            if sample.outcome == Outcome::Counted {
                let cosines = match levels.len() {
                    1 => std::slice::from_ref(&sample.similarity),
                    _ => sample.levels.as_slice(),
                };
                let parts = levels
                    .iter()
                    .zip(cosines)
                    .map(|((target, weight), cosine)| weight * (1.0 - cosine.min(*target)));
                total += sample.weight * parts.sum::<f64>();
                distance += 1.0 - sample.similarity;
                count += 1.0;
            }
        }
        (self.loss, self.mean_distance) = match count {
            0.0 => (0.0, 0.0),
            _ => (face_loss_weight * total / count, distance / count),
        };
    }

    /// Logs a warning for every sample that was left out because a face is missing or a number is not finite.
    /// `number` gives a sample's number in the host's batch.
    pub fn warn(&self, number: impl Fn(usize) -> usize) {
        let warned = Outcome::NoReferenceFace as i32..=Outcome::NonFinite as i32;
        for (at, sample) in self.samples.iter().enumerate() {
            if warned.contains(&(sample.outcome as i32)) {
                warn_host!(
                    "sample {} counts nothing: {}",
                    number(at),
                    sample.outcome.text()
                );
            }
        }
    }

    /// How many whole images were decoded without a gradient.
    pub fn exact_passes(&self) -> usize {
        self.samples.iter().filter(|s| s.exact_pass).count()
    }

    /// The audit with the smallest cosine; `None` where no sample was audited.
    pub fn worst_audit(&self) -> Option<Audit> {
        let audits = self.samples.iter().filter_map(|s| s.audit);
        audits.min_by(|a, b| a.cosine.total_cmp(&b.cosine))
    }

    /// Per level the mean of `1 − cos` over the counted samples; empty where the embedding alone is compared, or no
    /// sample counts.
    pub fn level_distances(&self) -> Vec<f64> {
        let counted = self
            .samples
            .iter()
            .filter(|s| s.outcome == Outcome::Counted);
        let rows: Vec<&Vec<f64>> = counted.map(|s| &s.levels).collect();
        let levels = rows.first().map_or(0, |row| row.len());
        let mean = |at: usize| {
            let distances = rows.iter().filter_map(|row| Some(1.0 - row.get(at)?));
            distances.sum::<f64>() / rows.len() as f64
        };
        (0..levels).map(mean).collect()
    }

    /// How many samples count.
    pub fn counted(&self) -> usize {
        self.samples
            .iter()
            .filter(|s| s.outcome == Outcome::Counted)
            .count()
    }
}
