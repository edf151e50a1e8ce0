//! From images to embeddings: find a face, choose one, cut it out, embed it.

use super::pictures::Shown;
use super::references::ReferenceFace;
use super::report::Alignment;
use super::targets::Known;
use crate::align::{Border, Crop, align, align_within};
use crate::config::{AlignMode, FaceChoice, Rect};
use crate::detect::Detector;
use crate::error::{Result, bail};
use crate::face::{Face, bbox_transform, choose, kps_transform};
use crate::nets::Recogniser;
use crate::shared::{Shared, lock};
use tch::Tensor;

/// The networks of a loss and how they are used.
pub struct Pipeline {
    /// Needed only where a face's place is not known.
    pub detector: Option<Shared<Detector>>,
    /// The frozen recogniser.
    pub recogniser: Shared<Recogniser>,
    /// How a face becomes the recogniser's input.
    pub align_mode: AlignMode,
    /// Which of several faces counts.
    pub choice: FaceChoice,
    /// For [`FaceChoice::Index`].
    pub index: usize,
}

impl Pipeline {
    /// The chosen face of every image of `[N,3,H,W]`.
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
        let found = lock(detector).detect(&images.detach())?;
        Ok(found
            .into_iter()
            .map(|mut faces| {
                choose(&faces, self.choice, self.index, width as f64, height as f64)
                    .map(|at| faces.swap_remove(at))
            })
            .collect())
    }

    /// How the face at `place` of image `sample` is cut out; `None` where it spans no area.
    pub fn crop(&self, sample: usize, place: &Known) -> Result<Option<(Crop, Alignment)>> {
        let size = lock(&self.recogniser).input_size();
        crop(self.align_mode, sample, place, size)
    }

    /// Embeddings `[M,D]` of the crops, with the gradient flowing back to `images`.
    pub fn embed(&self, images: &Tensor, crops: &[Crop]) -> Result<Tensor> {
        let recogniser = lock(&self.recogniser);
        recogniser.embed(&align(images, crops, recogniser.input_size())?)
    }

    /// Embeddings `[M,D]` of all that is shown, whose images are `leaves`.
    pub(super) fn embed_shown(&self, leaves: &[Tensor], shown: &[Shown]) -> Result<Tensor> {
        let recogniser = lock(&self.recogniser);
        let mut crops = vec![];
        for (leaf, shown) in leaves.iter().zip(shown) {
            let rows = (0i64..)
                .zip(&shown.candidates)
                .map(|(sample, candidate)| Crop {
                    sample,
                    ..candidate.crop.clone()
                });
            let rows: Vec<Crop> = rows.collect();
            crops.push(align_within(
                leaf,
                &rows,
                &shown.frames,
                recogniser.input_size(),
            )?);
        }
        recogniser.embed(&Tensor::f_cat(&crops, 0)?)
    }

    /// What of a picture of (height, width) a crop shows.
    pub(super) fn support(&self, crop: &Crop, picture: (i64, i64)) -> Rect {
        crop.support(lock(&self.recogniser).input_size(), picture)
    }

    /// The face of every reference image; detection runs only where `known` is empty.
    pub fn reference_faces(
        &self,
        images: &Tensor,
        known: &[Known],
    ) -> Result<Vec<Option<ReferenceFace>>> {
        let _frozen = tch::no_grad_guard();
        let mut places: Vec<Option<Known>> = known
            .iter()
            .map(|k| (!k.is_empty()).then_some(*k))
            .collect();
        let unknown: Vec<i64> = (0..places.len())
            .filter(|&i| places[i].is_none())
            .map(|i| i as i64)
            .collect();
        if !unknown.is_empty() {
            let index = Tensor::f_from_slice(&unknown)?.f_to_device(images.device())?;
            for (&at, face) in unknown
                .iter()
                .zip(self.detect(&images.f_index_select(0, &index)?)?)
            {
                places[at as usize] = face.map(|face| Known::from(&face));
            }
        }
        let mut crops = vec![];
        let mut rows = vec![];
        for (row, place) in places.iter().enumerate() {
            if let Some(place) = place
                && let Some((crop, _)) = self.crop(row, place)?
            {
                crops.push(crop);
                rows.push((row, *place));
            }
        }
        let mut faces: Vec<Option<ReferenceFace>> = places.iter().map(|_| None).collect();
        if crops.is_empty() {
            return Ok(faces);
        }
        let embeddings = self.embed(images, &crops)?;
        let size = images.size();
        for (at, (row, place)) in rows.into_iter().enumerate() {
            let embedding = embeddings.f_select(0, at as i64)?.f_contiguous()?;
            // A reference that cannot be compared with is no reference.
            if embedding.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0 {
                faces[row] = Some(ReferenceFace {
                    embedding,
                    place,
                    size: [size[3] as f64, size[2] as f64],
                });
            }
        }
        Ok(faces)
    }
}

/// How a face is cut out for a recogniser of input `size`; falls back from landmarks to the box
/// where there are none. `None` where the place spans no area.
pub fn crop(
    mode: AlignMode,
    sample: usize,
    place: &Known,
    size: i64,
) -> Result<Option<(Crop, Alignment)>> {
    let made = |transform, border| Crop {
        sample: sample as i64,
        transform,
        border,
    };
    if mode == AlignMode::Kps
        && let Some(transform) = place
            .landmarks
            .as_ref()
            .and_then(|l| kps_transform(l, size))
    {
        return Ok(Some((made(transform, Border::Zeros), Alignment::Kps)));
    }
    let Some(bbox) = &place.bbox else {
        if mode == AlignMode::Bbox && place.landmarks.is_some() {
            bail!(
                Argument,
                "sample {sample}: face_align_mode is \"bbox\" but only landmarks were given; \
                 give boxes too, or set face_align_mode to \"kps\""
            );
        }
        return Ok(None);
    };
    let how = match mode {
        AlignMode::Kps => Alignment::BboxFallback,
        AlignMode::Bbox => Alignment::Bbox,
    };
    Ok(bbox_transform(bbox, size).map(|transform| (made(transform, Border::Reflect), how)))
}

impl From<&Face> for Known {
    fn from(face: &Face) -> Self {
        Known {
            bbox: Some(face.bbox),
            landmarks: face.landmarks,
        }
    }
}
