//! Face geometry. It uses no tensors and no files.

mod assign;
mod choose;
mod nms;
mod place;
mod transform;

pub use assign::assign;
pub use choose::{choose, middle, nearest};
pub use nms::nms;
pub use place::FacePlace;
pub use transform::{bbox_transform, invert, kps_transform, template};

/// Five points in image order: left eye, right eye, nose, left and right mouth corner (left and
/// right as seen in the image), each `[x, y]` in pixels, pixel centres at integers.
pub type Landmarks = [[f64; 2]; 5];

/// A detected face, in pixels of the image it was found in.
#[derive(Debug, Clone, PartialEq)]
pub struct Face {
    /// `[x1, y1, x2, y2]`.
    pub bbox: [f64; 4],
    /// Detection score in [0, 1].
    pub score: f64,
    /// The five points, where the detector gives them.
    pub landmarks: Option<Landmarks>,
}

/// Rows of a 2×3 affine map: `x' = m[0][0]·x + m[0][1]·y + m[0][2]`.
pub type Affine = [[f64; 3]; 2];
