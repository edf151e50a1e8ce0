//! What the host says about a batch of generated images.

use crate::config::{MAX_WEIGHT, is_weight};
use crate::error::{Result, bail};
use crate::face::FacePlace;
use crate::tensor::select_rows;
use tch::Tensor;

/// References and per-sample facts of one batch of N generated images. An empty vector means
/// that the host says nothing about any sample.
#[derive(Debug, Default)]
pub struct Targets {
    /// `[N,3,H,W]` or `[1,3,H,W]`, RGB in [0, 1].
    pub references: Option<Tensor>,
    /// Per sample: a registered id, or `None` where its reference is an image of `references`.
    pub reference_ids: Vec<Option<String>>,
    /// Per sample: the kind of training image, compared with `face_types`.
    pub data_types: Vec<String>,
    /// Per sample: where the generated face is; empty places are detected.
    pub faces: Vec<FacePlace>,
    /// Per reference image: where its face is; empty places are detected.
    pub reference_faces: Vec<FacePlace>,
    /// Per sample: its weight in the mean, at least 0.
    pub weights: Vec<f64>,
    /// Per sample: its number in the host's batch, for messages. Empty: its position.
    pub numbers: Vec<usize>,
    /// Per sample: a name that is unique in the training set.
    pub sample_ids: Vec<Option<String>>,
}

impl Targets {
    /// Checks every length against the number of samples, and that every sample has a reference.
    ///
    /// # Errors
    /// `Shape` for a wrong length; `Argument` for a missing reference or a weight that is not a number from 0 to 1e30.
    pub fn check(&self, samples: usize) -> Result<()> {
        let per_sample = [
            ("reference_ids", self.reference_ids.len()),
            ("data_types", self.data_types.len()),
            ("sample_ids", self.sample_ids.len()),
            ("landmarks or boxes", self.faces.len()),
            ("sample_weights", self.weights.len()),
        ];
        for (name, length) in per_sample {
            if length != 0 && length != samples {
                bail!(
                    Shape,
                    "{name}: expected {samples} entries, one per image, got {length}"
                );
            }
        }
        let images = self.reference_images();
        if images > 1 && images != samples {
            bail!(
                Shape,
                "references: expected 1 image{}, got {images}",
                match samples {
                    1 => String::new(),
                    _ => format!(" or {samples}, one per sample"),
                }
            );
        }
        if !self.reference_faces.is_empty() && self.reference_faces.len() != images {
            bail!(
                Shape,
                "reference_landmarks: expected {images} entries, one per reference image, got {}",
                self.reference_faces.len()
            );
        }
        for sample in 0..samples {
            if self.reference_id(sample).is_none() && images == 0 {
                bail!(
                    Argument,
                    "sample {sample} has no reference: give `references` or its id in `reference_ids`"
                );
            }
        }
        for (sample, &weight) in self.weights.iter().enumerate() {
            if !is_weight(weight) {
                bail!(
                    Argument,
                    "sample_weights[{sample}]: expected a number from 0 to {MAX_WEIGHT:e}, got {weight:?}"
                );
            }
        }
        Ok(())
    }

    /// The targets of some of the samples.
    pub fn select(&self, samples: &[usize]) -> Result<Targets> {
        fn pick<T: Clone>(all: &[T], rows: &[usize]) -> Vec<T> {
            match all.is_empty() {
                true => vec![],
                false => rows.iter().map(|&row| all[row].clone()).collect(),
            }
        }
        let per_sample = self.reference_images() > 1;
        Ok(Targets {
            references: match &self.references {
                Some(images) if per_sample => Some(select_rows(images, samples)?),
                all => all.as_ref().map(Tensor::shallow_clone),
            },
            reference_ids: pick(&self.reference_ids, samples),
            data_types: pick(&self.data_types, samples),
            faces: pick(&self.faces, samples),
            reference_faces: match per_sample {
                true => pick(&self.reference_faces, samples),
                false => self.reference_faces.clone(),
            },
            weights: pick(&self.weights, samples),
            numbers: samples.iter().map(|&at| self.number(at)).collect(),
            sample_ids: pick(&self.sample_ids, samples),
        })
    }

    /// The number of a sample in the host's batch, for messages.
    pub fn number(&self, sample: usize) -> usize {
        self.numbers.get(sample).copied().unwrap_or(sample)
    }

    /// The number of reference images.
    pub fn reference_images(&self) -> usize {
        self.references
            .as_ref()
            .map_or(0, |images| images.size().first().map_or(0, |&n| n as usize))
    }

    /// The registered id of a sample's reference; `None` where it is an image of `references`.
    pub fn reference_id(&self, sample: usize) -> Option<&str> {
        self.reference_ids.get(sample).and_then(|id| id.as_deref())
    }

    /// The unique name of a sample, where the host gave one.
    pub fn sample_id(&self, sample: usize) -> Option<&str> {
        self.sample_ids.get(sample).and_then(|id| id.as_deref())
    }

    /// The row of `references` that a sample uses.
    pub fn reference_row(&self, sample: usize) -> usize {
        if self.reference_images() == 1 {
            0
        } else {
            sample
        }
    }
}
