//! Faces that are ready to be compared, in groups that share one tensor of pixels.

use crate::align::{Crop, Frame};
use crate::reference::Reference;
use tch::Tensor;

/// The crop of a sample's generated face, and the reference that it is compared with.
#[derive(Clone)]
pub(crate) struct FaceCrop {
    /// The sample's index in the report.
    pub sample: usize,
    pub reference: Reference,
    /// `crop.sample` is the row of the images that show the face.
    pub crop: Crop,
}

impl FaceCrop {
    /// The same face, shown by another row.
    pub(crate) fn in_row(&self, row: i64) -> FaceCrop {
        let mut face = self.clone();
        face.crop.sample = row;
        face
    }
}

/// The faces of a batch.
pub(crate) struct FoundFaces {
    pub faces: Vec<FaceCrop>,
    /// Per sample whether its image is finite, `[N]` of bool, where it was not read yet.
    pub finite: Option<Tensor>,
}

impl FoundFaces {
    /// One group of all faces in whole images, and what was not read yet.
    pub(crate) fn in_whole_images(self) -> (Vec<FaceGroup>, Option<Tensor>) {
        (vec![FaceGroup::whole_images(self.faces)], self.finite)
    }
}

/// Faces whose pixels come in one tensor `[n,3,height,width]` in [0, 1]: whole images, or windows of images. No
/// two faces are in one row.
#[derive(Clone)]
pub(crate) struct FaceGroup {
    pub faces: Vec<FaceCrop>,
    /// Per row where the window lies in its image; empty for whole images.
    pub frames: Vec<Frame>,
}

impl FaceGroup {
    /// Faces in whole images.
    pub(crate) fn whole_images(faces: Vec<FaceCrop>) -> Self {
        Self {
            faces,
            frames: vec![],
        }
    }

    /// The rows of the images that show the faces.
    pub(super) fn rows(&self) -> Vec<usize> {
        let row = |face: &FaceCrop| face.crop.sample as usize;
        self.faces.iter().map(row).collect()
    }

    /// The crops, in the order of the faces.
    pub(super) fn crops(&self) -> Vec<Crop> {
        self.faces.iter().map(|face| face.crop.clone()).collect()
    }
}
