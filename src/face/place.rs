//! Where a face is in an image, as the host gives it or as detection finds it.

use super::{Face, Landmarks, middle};
use serde::{Deserialize, Serialize};

/// Where a face is: its box, its landmarks, or both. Empty where nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct FacePlace {
    /// `[x1, y1, x2, y2]` in pixels.
    pub bbox: Option<[f64; 4]>,
    /// The five points in pixels.
    pub landmarks: Option<Landmarks>,
}

impl FacePlace {
    /// Whether neither a box nor landmarks are known.
    pub fn is_empty(&self) -> bool {
        self.bbox.is_none() && self.landmarks.is_none()
    }

    /// The middle of the landmarks, or of the box where there are no landmarks.
    pub fn middle(&self) -> Option<[f64; 2]> {
        middle(self.landmarks.as_ref(), self.bbox.as_ref())
    }

    /// The same place after the image is resized; sizes are `[width, height]` in pixels.
    pub fn resized(&self, from: [f64; 2], to: [f64; 2]) -> FacePlace {
        // Pixel centres lie at integers, so an image that is W pixels wide spans -0.5 to W - 0.5.
        let scaled = |value: f64, axis: usize| (value + 0.5) * (to[axis] / from[axis]) - 0.5;
        FacePlace {
            bbox: self
                .bbox
                .map(|b| std::array::from_fn(|i| scaled(b[i], i % 2))),
            landmarks: self
                .landmarks
                .map(|points| points.map(|p| [scaled(p[0], 0), scaled(p[1], 1)])),
        }
    }
}

impl From<&Face> for FacePlace {
    fn from(face: &Face) -> Self {
        FacePlace {
            bbox: Some(face.bbox),
            landmarks: face.landmarks,
        }
    }
}
