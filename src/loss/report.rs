//! What happened to every sample.

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
    /// Its noise level lies outside the window.
    Time = 8,
    /// The step is not one of every n.
    Step = 9,
}

impl Outcome {
    /// The reason as a person reads it.
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

/// How the generated face was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Located {
    /// It was not.
    #[default]
    Nowhere = 0,
    /// By detection.
    Detected = 1,
    /// The host gave landmarks or a box.
    Given = 2,
    /// Where the reference's face is.
    Reference = 3,
}

/// How the generated face was brought to the recogniser's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Alignment {
    /// It was not.
    #[default]
    None = 0,
    /// By its five landmarks.
    Kps = 1,
    /// By its box, as asked.
    Bbox = 2,
    /// By its box, since it has no usable landmarks.
    BboxFallback = 3,
}

/// What was decoded of the generated image to get a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Decoded {
    /// Nothing: the sample was gated out, or came as an image.
    #[default]
    Nothing = 0,
    /// All of it.
    Full = 1,
    /// A window, exact but for the gradient through GroupNorm's statistics, if there is any.
    WindowExact = 2,
    /// A window with statistics of an earlier step.
    WindowCached = 3,
    /// A window with statistics of its own.
    Window = 4,
}

/// The gradient of a window against that of the whole image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Audit {
    /// Their cosine.
    pub cosine: f64,
    /// ‖window's‖ / ‖whole image's‖.
    pub norm_ratio: f64,
}

/// One sample's part in a loss.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// Whether it counts, or why not.
    pub outcome: Outcome,
    /// How the generated face was found.
    pub located: Located,
    /// How it was aligned.
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
    /// Whether the whole image was decoded without a gradient, for detection or statistics.
    pub exact_pass: bool,
    /// Filled in at steps that audit.
    pub audit: Option<Audit>,
}

/// The value of a loss and what every sample did for it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// `face_loss_weight · Σ wᵢ·(1 − min(cosᵢ, target)) / counted`: what the gradient belongs to.
    pub loss: f64,
    /// Mean of `1 − cos` over the counted samples, without any weight; 0 where none counts.
    pub mean_distance: f64,
    /// One per generated image, in order.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Fills in the sums from the samples; a sample is not pushed beyond a similarity of `target`.
    pub(super) fn total(&mut self, face_loss_weight: f64, target: f64) {
        let (mut total, mut distance, mut count) = (0.0, 0.0, 0.0);
        for sample in &self.samples {
            if sample.outcome == Outcome::Counted {
                total += sample.weight * (1.0 - sample.similarity.min(target));
                distance += 1.0 - sample.similarity;
                count += 1.0;
            }
        }
        (self.loss, self.mean_distance) = match count {
            0.0 => (0.0, 0.0),
            _ => (face_loss_weight * total / count, distance / count),
        };
    }

    /// Warns of every sample for which something was looked for and not found, or went wrong.
    pub(super) fn warn(&self, number: impl Fn(usize) -> usize) {
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

    /// How many whole images were decoded without a gradient for the sake of windows.
    pub fn exact_passes(&self) -> usize {
        self.samples.iter().filter(|s| s.exact_pass).count()
    }

    /// The least cosine of the audited samples.
    pub fn worst_audit(&self) -> Option<Audit> {
        let audits = self.samples.iter().filter_map(|s| s.audit);
        audits.min_by(|a, b| a.cosine.total_cmp(&b.cosine))
    }

    /// How many samples count.
    pub fn counted(&self) -> usize {
        self.samples
            .iter()
            .filter(|s| s.outcome == Outcome::Counted)
            .count()
    }
}
