//! The face of a reference image: found, cropped and embedded.

use crate::error::Result;
use crate::face::FacePlace;
use crate::pipeline::Pipeline;
use crate::tensor::{finite_rows, flags, select_rows};
use tch::Tensor;

/// The face of one reference image.
#[derive(Debug)]
pub struct ReferenceFace {
    /// `[D]`, features of which every level is normalised.
    pub embedding: Tensor,
    /// Where the face is in the reference image.
    pub place: FacePlace,
    /// Width and height of the reference image, pixels.
    pub size: [f64; 2],
}

/// The clone shares the embedding.
impl Clone for ReferenceFace {
    fn clone(&self) -> ReferenceFace {
        ReferenceFace {
            embedding: self.embedding.shallow_clone(),
            place: self.place,
            size: self.size,
        }
    }
}

/// The face of every image of `[N,3,H,W]`; `None` where there is none, or its embedding is not finite. Detection
/// runs only for images whose place is empty.
pub(super) fn faces(
    pipeline: &Pipeline,
    images: &Tensor,
    places: &[FacePlace],
) -> Result<Vec<Option<ReferenceFace>>> {
    let _no_grad = tch::no_grad_guard();
    let mut places: Vec<Option<FacePlace>> = places
        .iter()
        .map(|place| (!place.is_empty()).then_some(*place))
        .collect();
    let mut unknown = vec![];
    for (row, place) in places.iter().enumerate() {
        if match place {
            None => true,
            Some(place) => pipeline.unusable(place)?,
        } {
            unknown.push(row);
        }
    }
    if !unknown.is_empty() {
        let detected = pipeline.detect(&select_rows(images, &unknown)?)?;
        for (&row, face) in unknown.iter().zip(detected) {
            // Where the host's landmarks cannot be used, the detected face's box is used.
            places[row] = match (face, places[row]) {
                (Some(face), Some(_)) => Some(FacePlace {
                    bbox: Some(face.bbox),
                    landmarks: None,
                }),
                (face, given) => face.map(|face| FacePlace::from(&face)).or(given),
            };
        }
    }
    let mut crops = vec![];
    let mut rows = vec![];
    for (row, place) in places.iter().enumerate() {
        if let Some(place) = place
            && let Some((crop, _)) = pipeline.crop(row, place)?
        {
            crops.push(crop);
            rows.push((row, *place));
        }
    }
    let mut faces: Vec<Option<ReferenceFace>> = places.iter().map(|_| None).collect();
    if crops.is_empty() {
        return Ok(faces);
    }
    let embeddings = pipeline.embed(images, &crops)?;
    let finite = flags(&finite_rows(&embeddings)?)?;
    let size = images.size();
    for (at, (row, place)) in rows.into_iter().enumerate() {
        // An embedding that is not finite cannot be compared.
        if finite[at] {
            faces[row] = Some(ReferenceFace {
                embedding: embeddings.f_select(0, at as i64)?.f_contiguous()?,
                place,
                size: [size[3] as f64, size[2] as f64],
            });
        }
    }
    Ok(faces)
}
