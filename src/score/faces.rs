//! Faces and their embeddings: detection, the choice of one face per image, crops and embedding.

use super::Evaluator;
use super::people::Embedding;
use crate::align::{Alignment, align_pixels, crop_for};
use crate::batch::Outcome;
use crate::config::AlignMode;
use crate::error::{Result, bail};
use crate::face::{Face, FacePlace, choose, nearest};
use crate::tensor::{self, select_rows};
use tch::{Kind, Tensor};

/// A detected face and its embedding.
pub struct EmbeddedFace {
    /// Where the face is.
    pub face: Face,
    /// How it was aligned.
    pub alignment: Alignment,
    /// `None` where it was not asked for, where landmarks and box span no area, or where the network's output is not
    /// finite.
    pub embedding: Option<Embedding>,
}

/// How many crops run through the recogniser together: enough to be fast, and few enough to fit into memory.
const BATCH: usize = 16;

impl Evaluator {
    /// All faces of every image of `[N,3,H,W]` (RGB, uint8 or floats in [0, 1]), the highest score first. `embed`:
    /// whether they are embedded.
    pub fn faces(&mut self, images: &Tensor, embed: bool) -> Result<Vec<Vec<EmbeddedFace>>> {
        let detected =
            self.detect_and_embed(images, embed, |_, faces, _| (0..faces.len()).collect())?;
        Ok(detected
            .into_iter()
            .map(Option::unwrap_or_default)
            .collect())
    }

    /// The crops `[M,3,S,S]` in [0, 1] of faces. Each face is given as the number of its image and its place.
    ///
    /// # Errors
    /// `Argument` for an image that is not finite, or a place that spans no area.
    pub fn align(&self, images: &Tensor, faces: &[(i64, FacePlace)]) -> Result<Tensor> {
        let size = self.recogniser.input_size();
        let all = tensor::pixels(images)?;
        let mut crops = vec![];
        for (at, (image, place)) in faces.iter().enumerate() {
            let Some(Some(pixels)) = all.get(*image as usize) else {
                bail!(Argument, "faces[{at}]: its image is not finite");
            };
            let Some((cut, _)) = crop_for(AlignMode::Kps, at, place, size)? else {
                bail!(Argument, "faces[{at}]: its landmarks and box span no area");
            };
            crops.push(align_pixels(pixels, &cut, size));
        }
        Ok(Tensor::f_from_slice(&crops.concat())?
            .f_view([faces.len() as i64, 3, size, size])?
            .f_to_device(self.device)?
            .f_to_kind(Kind::Float)?
            .f_div_scalar(255.0)?)
    }

    /// The chosen face of every image, or why there is none. Images that are not `wanted` are skipped.
    pub(super) fn chosen_faces(
        &mut self,
        images: &Tensor,
        places: &[FacePlace],
        wanted: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<std::result::Result<EmbeddedFace, Outcome>>> {
        let count = images.size()[0] as usize;
        let rows: Vec<usize> = (0..count).filter(|&at| wanted(at)).collect();
        let picked = select_rows(images, &rows)?;
        let (choice, index) = (self.config.face_choice, self.config.face_index);
        let detected = self.detect_and_embed(&picked, true, |row, faces, (width, height)| {
            let at = rows[row];
            let chosen = match places.get(at).and_then(FacePlace::middle) {
                Some(point) => nearest(faces, point),
                None => choose(faces, choice, index, width, height),
            };
            chosen.into_iter().collect()
        })?;
        let mut all: Vec<_> = (0..count).map(|_| Err(Outcome::NoFace)).collect();
        for (row, of_image) in rows.into_iter().zip(detected) {
            all[row] = match of_image {
                None => Err(Outcome::NonFinite),
                Some(faces) => faces.into_iter().next().ok_or(Outcome::NoFace),
            };
        }
        Ok(all)
    }

    /// Detects the faces of every image, keeps those that `keep` picks, and embeds them where asked for. `keep` gets the
    /// image's row, its faces, and its width and height. `None` for an image that is not finite.
    pub(super) fn detect_and_embed(
        &mut self,
        images: &Tensor,
        embed: bool,
        mut keep: impl FnMut(usize, &[Face], (f64, f64)) -> Vec<usize>,
    ) -> Result<Vec<Option<Vec<EmbeddedFace>>>> {
        let size = self.recogniser.input_size();
        let mut crops = vec![];
        let mut detected = vec![];
        for (row, pixels) in tensor::pixels(images)?.into_iter().enumerate() {
            let Some(pixels) = pixels else {
                detected.push(None);
                continue;
            };
            let faces = self.detector.detect_pixels(&pixels)?;
            let kept = keep(row, &faces, (pixels.width as f64, pixels.height as f64));
            let mut found = vec![];
            for face in kept.into_iter().filter_map(|at| faces.get(at)) {
                let cut = crop_for(AlignMode::Kps, row, &FacePlace::from(face), size)?;
                let alignment = cut.as_ref().map(|(_, how)| *how).unwrap_or_default();
                if let (true, Some((cut, _))) = (embed, cut) {
                    crops.push((row, found.len(), align_pixels(&pixels, &cut, size)));
                }
                found.push(EmbeddedFace {
                    face: face.clone(),
                    alignment,
                    embedding: None,
                });
            }
            detected.push(Some(found));
        }
        for batch in crops.chunks(BATCH) {
            let planes: Vec<&[u8]> = batch.iter().map(|(_, _, crop)| crop.as_slice()).collect();
            for ((row, at, _), embedding) in
                batch.iter().zip(self.recogniser.embed_pixels(&planes)?)
            {
                if let Some(found) = detected[*row].as_mut().and_then(|found| found.get_mut(*at)) {
                    found.embedding = embedding.iter().all(|v| v.is_finite()).then_some(embedding);
                }
            }
        }
        Ok(detected)
    }
}
