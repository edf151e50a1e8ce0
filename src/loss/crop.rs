//! Cropping: the crop that shows each located face.

use super::Loss;
use super::group::FaceCrop;
use super::locate::LocatedFace;
use crate::batch::{Outcome, Sample};
use crate::error::Result;

impl Loss {
    /// The crops of the located faces in whole images. A sample whose face spans no area is marked as left out.
    pub(super) fn crop(
        &self,
        located: Vec<LocatedFace>,
        samples: &mut [Sample],
    ) -> Result<Vec<FaceCrop>> {
        let mut faces = vec![];
        for LocatedFace {
            sample: at,
            reference,
            place,
        } in located
        {
            let sample = &mut samples[at];
            sample.bbox = place.bbox;
            sample.landmarks = place.landmarks;
            match self.pipeline.crop(at, &place)? {
                None => sample.outcome = Outcome::Degenerate,
                Some((crop, alignment)) => {
                    sample.alignment = alignment;
                    faces.push(FaceCrop {
                        sample: at,
                        reference,
                        crop,
                    });
                }
            }
        }
        Ok(faces)
    }
}
