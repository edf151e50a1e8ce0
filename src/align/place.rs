//! Which crop shows the face at a place.

use super::{Border, Crop};
use crate::config::AlignMode;
use crate::error::{Result, bail};
use crate::face::{FacePlace, bbox_transform, kps_transform};

/// How a face was brought to the recogniser's input. The numbers are those of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Alignment {
    /// It was not aligned.
    #[default]
    None = 0,
    /// By its five landmarks.
    Kps = 1,
    /// By its box, as configured.
    Bbox = 2,
    /// By its box, because it has no usable landmarks.
    BboxFallback = 3,
}

/// The crop of `size`×`size` pixels that shows the face at `place` in image `sample` of a batch. Mode `kps`
/// falls back to the box where there are no usable landmarks. `None` where the place spans no area.
///
/// # Errors
/// `Argument` where the mode is `bbox` and only landmarks are known.
pub fn crop_for(
    mode: AlignMode,
    sample: usize,
    place: &FacePlace,
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
