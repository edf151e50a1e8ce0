//! Tensor arguments, checked against what the function takes.

use super::read::sized;
use super::types::facegrad_face;
use crate::error::{Result, bail};
use crate::face::FacePlace;
use crate::tensor::{RawTensor, Use, View};
use tch::{Device, Kind};

/// Images `[N,3,H,W]` of a float dtype on the context's device, H and W at least 1.
///
/// # Safety
/// As for [`View::read`].
pub unsafe fn images(
    name: &'static str,
    raw: *const RawTensor,
    usage: Use,
    device: Device,
) -> Result<View> {
    // SAFETY: the caller's promise is the same.
    let view = unsafe { View::read(name, raw, usage) }?;
    view.expect_float()?;
    batch(view, device)
}

/// [`images`] that may also be uint8, for calls that need no gradient.
///
/// # Safety
/// As for [`View::read`].
pub unsafe fn pictures(name: &'static str, raw: *const RawTensor, device: Device) -> Result<View> {
    // SAFETY: the caller's promise is the same.
    let view = unsafe { View::read(name, raw, Use::Input) }?;
    if view.kind() != Kind::Uint8 {
        view.expect_float()?;
    }
    batch(view, device)
}

fn batch(view: View, device: Device) -> Result<View> {
    view.expect_device(device)?;
    view.expect_shape("[N,3,H,W]", &[None, Some(3), None, None])?;
    if view.shape()[2] == 0 || view.shape()[3] == 0 {
        bail!(
            Shape,
            "{}: images of {:?} have no pixels",
            view.name(),
            view.shape()
        );
    }
    Ok(view)
}

/// An output of a given shape and any float dtype on the context's device.
///
/// # Safety
/// As for [`View::read`].
pub unsafe fn output(
    name: &'static str,
    raw: *const RawTensor,
    shape: &[i64],
    device: Device,
) -> Result<View> {
    // SAFETY: the caller's promise is the same.
    let view = unsafe { View::read(name, raw, Use::Output) }?;
    view.expect_float()?;
    view.expect_device(device)?;
    if view.shape() != shape {
        bail!(
            Shape,
            "{name}: expected the shape {shape:?}, got {:?}",
            view.shape()
        );
    }
    Ok(view)
}

/// An [`output`], or `None` for NULL.
///
/// # Safety
/// As for [`View::read`].
pub unsafe fn optional_output(
    name: &'static str,
    raw: *const RawTensor,
    shape: &[i64],
    device: Device,
) -> Result<Option<View>> {
    match raw.is_null() {
        true => Ok(None),
        // SAFETY: the caller's promise is the same.
        false => unsafe { output(name, raw, shape, device) }.map(Some),
    }
}

/// Rows of `width` numbers, on any device and of any float dtype: `[N,4]`, `[N,5,2]`, or `[N]` for width 1. `None` for
/// NULL.
///
/// # Safety
/// As for [`View::read`].
pub unsafe fn optional_numbers(
    name: &'static str,
    raw: *const RawTensor,
    width: i64,
) -> Result<Option<View>> {
    if raw.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise is the same.
    let view = unsafe { View::read(name, raw, Use::Input) }?;
    view.expect_numbers()?;
    match width {
        1 => view.expect_shape("[N]", &[None])?,
        2 => view.expect_shape("[N,2]", &[None, Some(2)])?,
        4 => view.expect_shape("[N,4]", &[None, Some(4)])?,
        _ => view.expect_shape("[N,5,2]", &[None, Some(5), Some(2)])?,
    }
    Ok(Some(view))
}

/// The numbers of a view, row after row.
pub fn numbers(view: &View) -> Result<Vec<f64>> {
    crate::tensor::numbers(&view.borrow()?)
}

/// One [`FacePlace`] per row of the landmarks and boxes; empty where both are NULL. A row of NaN means that the
/// place is not known. A row with some NaN or an infinity is an error.
pub fn places(landmarks: Option<&View>, boxes: Option<&View>) -> Result<Vec<FacePlace>> {
    let mut places: Vec<FacePlace> = vec![];
    if let Some(view) = landmarks {
        for row in rows(view, 10)? {
            places.push(FacePlace {
                bbox: None,
                landmarks: row.map(|r| std::array::from_fn(|i| [r[2 * i], r[2 * i + 1]])),
            });
        }
    }
    if let Some(view) = boxes {
        let boxes = rows(view, 4)?;
        if landmarks.is_none() {
            places = vec![FacePlace::default(); boxes.len()];
        }
        if places.len() != boxes.len() {
            bail!(
                Shape,
                "{}: expected {} rows as the landmarks have, got {}",
                view.name(),
                places.len(),
                boxes.len()
            );
        }
        for (place, row) in places.iter_mut().zip(boxes) {
            place.bbox = row.map(|r| [r[0], r[1], r[2], r[3]]);
        }
    }
    Ok(places)
}

fn rows(view: &View, width: usize) -> Result<Vec<Option<Vec<f64>>>> {
    numbers(view)?
        .chunks(width)
        .enumerate()
        .map(|(at, row)| {
            if row.iter().all(|v| v.is_nan()) {
                return Ok(None);
            }
            if let Some(value) = row.iter().find(|v| !v.is_finite()) {
                bail!(
                    Argument,
                    "{}[{at}]: expected finite pixels, or NaN in the whole row where not known, got {value}",
                    view.name()
                );
            }
            Ok(Some(row.to_vec()))
        })
        .collect()
}

/// An array of faces, each with the image it is in.
///
/// # Safety
/// `faces` is NULL or points to `count` structs, each as long as the first one's `struct_size`.
pub unsafe fn faces(
    faces: *const facegrad_face,
    count: usize,
    images: i64,
) -> Result<Vec<(i64, FacePlace)>> {
    if count == 0 {
        return Ok(vec![]);
    }
    // SAFETY: the caller promises readable structs.
    let stride = unsafe { super::read::struct_size("faces", faces) }?;
    (0..count)
        .map(|at| {
            // SAFETY: `at < count`, and the caller promises that many structs of this size.
            let face = unsafe {
                let pointer = faces.cast::<u8>().add(at * stride).cast::<facegrad_face>();
                sized("faces", pointer, stride)
            }?;
            if face.image < 0 || face.image >= images {
                bail!(
                    Argument,
                    "faces[{at}].image: expected 0 to {}, got {}",
                    images - 1,
                    face.image
                );
            }
            let l = face.landmarks.map(f64::from);
            let known = FacePlace {
                bbox: Some(face.bbox.map(f64::from)),
                landmarks: (face.has_landmarks != 0)
                    .then(|| std::array::from_fn(|i| [l[2 * i], l[2 * i + 1]])),
            };
            let finite = |known: &FacePlace| {
                let points = known.landmarks.iter().flatten().flatten();
                known
                    .bbox
                    .iter()
                    .flatten()
                    .chain(points)
                    .all(|v| v.is_finite())
            };
            if !finite(&known) {
                bail!(Argument, "faces[{at}]: expected finite pixels");
            }
            Ok((face.image, known))
        })
        .collect()
}

/// Checks that the objects of a call are of one context, because its thread owns them all.
pub fn same_context(
    name: &str,
    ours: &std::sync::Arc<crate::worker::Worker>,
    other: &std::sync::Arc<crate::worker::Worker>,
) -> Result<()> {
    if !std::sync::Arc::ptr_eq(ours, other) {
        bail!(Argument, "{name}: belongs to another context");
    }
    Ok(())
}
