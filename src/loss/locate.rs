//! Locating: the reference and the place of the generated face of every sample.

use super::Loss;
use super::images::GeneratedImages;
use crate::batch::{Located, Outcome, Sample, Targets};
use crate::config::Locate;
use crate::error::{Result, bail};
use crate::face::FacePlace;
use crate::reference::Reference;
use crate::tensor::flags;
use tch::Tensor;

/// A sample whose reference and generated face are found.
pub(super) struct LocatedFace {
    pub sample: usize,
    pub reference: Reference,
    pub place: FacePlace,
}

impl Loss {
    /// The located faces of the samples that count. A sample without a reference face or without a generated
    /// face is marked as left out. So is one whose image is not finite, where a detector looks for faces or
    /// something of the images is remembered; elsewhere the comparison leaves it out.
    pub(super) fn locate(
        &mut self,
        images: &mut dyn GeneratedImages,
        targets: &Targets,
        samples: &mut [Sample],
    ) -> Result<(Vec<LocatedFace>, Option<Tensor>)> {
        let mut live: Vec<usize> = (0..samples.len())
            .filter(|&at| samples[at].outcome == Outcome::Counted)
            .collect();
        if live.is_empty() {
            return Ok((vec![], None));
        }
        let mut unread = Some(images.finite()?);
        if images.are_remembered() || self.looks_for_faces(targets, &live)? {
            let finite = unread.take().map(|finite| flags(&finite)).transpose()?;
            live = finite_samples(live, &finite.unwrap_or_default(), samples);
        }
        let mut found = vec![];
        let references = self.references.resolve(&self.pipeline, targets, &live)?;
        for (at, reference) in live.into_iter().zip(references) {
            match reference {
                Some(reference) => found.push((at, reference)),
                None => samples[at].outcome = Outcome::NoReferenceFace,
            }
        }
        let places = self.places(images, targets, samples, &found)?;
        let mut located = vec![];
        for ((at, reference), place) in found.into_iter().zip(places) {
            match place {
                Some(place) => located.push(LocatedFace {
                    sample: at,
                    reference,
                    place,
                }),
                None => samples[at].outcome = Outcome::NoFace,
            }
        }
        Ok((located, unread))
    }

    /// Whether the place of the generated face of one of `live` has to be detected.
    fn looks_for_faces(&self, targets: &Targets, live: &[usize]) -> Result<bool> {
        for &at in live {
            let given = targets.faces.get(at).filter(|place| !place.is_empty());
            if match given {
                Some(place) => self.pipeline.unusable(place)?,
                None => self.config.landmarks != Locate::Reference,
            } {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where the generated face of every entry of `found` is.
    fn places(
        &self,
        images: &mut dyn GeneratedImages,
        targets: &Targets,
        samples: &mut [Sample],
        found: &[(usize, Reference)],
    ) -> Result<Vec<Option<FacePlace>>> {
        let (height, width) = images.size();
        let in_reference = |reference: &Reference| {
            let face = reference.face.as_ref()?;
            Some(face.place.resized(face.size, [width as f64, height as f64]))
        };
        let mut places = vec![None; found.len()];
        let mut unknown = vec![];
        for (slot, (at, reference)) in found.iter().enumerate() {
            let given = targets.faces.get(*at).filter(|place| !place.is_empty());
            if let Some(place) = given {
                places[slot] = Some(*place);
                samples[*at].located = Located::Given;
                if self.pipeline.unusable(place)? {
                    unknown.push(slot);
                }
            } else if self.config.landmarks == Locate::Reference {
                places[slot] = in_reference(reference);
                if places[slot].is_none() {
                    bail!(
                        Argument,
                        "sample {}: `landmarks` is \"reference\", which needs a reference image of the \
                         sample itself, not a registered id",
                        targets.number(*at)
                    );
                }
                samples[*at].located = Located::Reference;
            } else {
                unknown.push(slot);
            }
        }
        if unknown.is_empty() {
            return Ok(places);
        }
        let rows: Vec<usize> = unknown.iter().map(|&slot| found[slot].0).collect();
        let detected = self.pipeline.detect(&images.decoded(&rows)?)?;
        for (&slot, face) in unknown.iter().zip(detected) {
            let (at, reference) = &found[slot];
            if let Some(face) = face {
                samples[*at].located = Located::Detected;
                samples[*at].score = face.score;
                // Where the host's landmarks cannot be used, the detected face's box is used.
                places[slot] = Some(match places[slot] {
                    None => FacePlace::from(&face),
                    Some(_) => FacePlace {
                        bbox: Some(face.bbox),
                        landmarks: None,
                    },
                });
            } else if places[slot].is_some() {
                continue;
            } else if self.config.landmarks == Locate::DetectOrReference {
                places[slot] = in_reference(reference);
                if places[slot].is_some() {
                    samples[*at].located = Located::Reference;
                }
            }
        }
        Ok(places)
    }
}

/// The samples of `live` whose images are finite. The others are marked: a detector would find no face in them, which would
/// hide the cause.
fn finite_samples(live: Vec<usize>, finite: &[bool], samples: &mut [Sample]) -> Vec<usize> {
    let (good, bad): (Vec<usize>, Vec<usize>) = live.into_iter().partition(|&at| finite[at]);
    for at in bad {
        samples[at].outcome = Outcome::NonFinite;
    }
    good
}
