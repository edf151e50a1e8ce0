//! From images to embeddings: detect faces, choose one per image, crop it, embed it.

use crate::align::{Alignment, Crop, align, align_pixels, crop_for};
use crate::config::{AlignMode, FaceChoice};
use crate::detect::Detector;
use crate::error::{Result, bail};
use crate::face::{Face, FacePlace, choose};
use crate::nets::{Levels, Recogniser};
use crate::shared::{Shared, lock};
use crate::tensor::{pixels, upload};
use tch::Tensor;

/// The networks of a loss and how they are used.
pub struct Pipeline {
    /// The detector; needed only where the host does not say where a face is.
    pub detector: Option<Shared<Detector>>,
    /// The frozen recogniser.
    pub recogniser: Shared<Recogniser>,
    /// The levels of the recogniser on which faces are compared.
    pub levels: Levels,
    /// How a face becomes the recogniser's input.
    pub align_mode: AlignMode,
    /// Which of several faces in an image counts.
    pub choice: FaceChoice,
    /// The index for [`FaceChoice::Index`].
    pub index: usize,
    /// Whether faces are embedded as the evaluator does it: from crops of 8-bit pixels, without a gradient.
    pub is_score: bool,
}

impl Pipeline {
    /// The chosen face of every image of `[N,3,H,W]` (RGB in [0, 1]); `None` for an image without a face.
    ///
    /// # Errors
    /// `Argument` where there is no detector.
    pub fn detect(&self, images: &Tensor) -> Result<Vec<Option<Face>>> {
        let Some(detector) = &self.detector else {
            bail!(
                Argument,
                "the loss has no detector, so it needs every face's place: give landmarks or boxes, \
                 or make the loss with a detector"
            );
        };
        let &[_, _, height, width] = images.size().as_slice() else {
            bail!(
                Internal,
                "images of shape {:?} reached the detector",
                images.size()
            );
        };
        let detected = lock(detector).detect(&images.detach())?;
        Ok(detected
            .into_iter()
            .map(|mut faces| {
                choose(&faces, self.choice, self.index, width as f64, height as f64)
                    .map(|at| faces.swap_remove(at))
            })
            .collect())
    }

    /// Side of the recogniser's input, pixels.
    pub fn input_size(&self) -> i64 {
        lock(&self.recogniser).input_size()
    }

    /// The crop that shows the face at `place` in image `sample`; `None` where the place spans no area.
    ///
    /// # Errors
    /// As [`crop_for`].
    pub fn crop(&self, sample: usize, place: &FacePlace) -> Result<Option<(Crop, Alignment)>> {
        crop_for(self.align_mode, sample, place, self.input_size())
    }

    /// Whether a place that the host gave has only landmarks from which no crop can be made, and there is a detector
    /// that can find the face's box.
    ///
    /// # Errors
    /// As [`crop_for`].
    pub fn unusable(&self, place: &FacePlace) -> Result<bool> {
        let alone = place.bbox.is_none() && self.align_mode == AlignMode::Kps;
        Ok(alone && self.detector.is_some() && self.crop(0, place)?.is_none())
    }

    /// Features `[M,D]` of the crops, every level normalised. The gradient flows back to `images`, unless this is a score.
    pub fn embed(&self, images: &Tensor, crops: &[Crop]) -> Result<Tensor> {
        let recogniser = lock(&self.recogniser);
        if self.is_score {
            return embed_pixels(&recogniser, images, crops);
        }
        let crops = align(images, crops, recogniser.input_size())?;
        self.levels.features(&recogniser, &crops)
    }
}

/// Embeddings `[M,D]` of crops that are cut out of 8-bit pixels and rounded to 8 bits; rows of NaN for images that are not
/// finite.
fn embed_pixels(recogniser: &Recogniser, images: &Tensor, crops: &[Crop]) -> Result<Tensor> {
    let dim = recogniser.dim();
    let mut rows = Vec::with_capacity(crops.len() * dim as usize);
    for crop in crops {
        match pixels(&images.f_narrow(0, crop.sample, 1)?)?
            .pop()
            .flatten()
        {
            Some(image) => {
                let cut = align_pixels(&image, crop, recogniser.input_size());
                rows.extend(recogniser.embed_pixels(&[&cut])?.concat());
            }
            None => rows.resize(rows.len() + dim as usize, f32::NAN),
        }
    }
    Ok(upload(&rows, images.device())?.f_view([crops.len() as i64, dim])?)
}
