//! What a host says about the samples of a batch.

use super::read::{optional_text, text, versioned};
use super::types::*;
use super::views;
use super::watch::Watch;
use crate::batch::Targets;
use crate::error::{Result, bail};
use crate::face::FacePlace;
use crate::tensor::{RawTensor, Stream, View};
use crate::worker::Owned;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use tch::{Device, Tensor};

/// `facegrad_targets`, validated but not yet read: the numbers may lie on a GPU.
pub(super) struct RawTargets {
    references: Option<View>,
    reference_ids: Vec<Option<String>>,
    data_types: Vec<String>,
    landmarks: Option<View>,
    boxes: Option<View>,
    reference_landmarks: Option<View>,
    reference_boxes: Option<View>,
    weights: Option<View>,
    sample_ids: Vec<Option<String>>,
}

impl RawTargets {
    /// # Safety
    /// `targets` is NULL or a `facegrad_targets` whose pointers are as its fields' docs say, for a
    /// batch of `samples`.
    pub unsafe fn read(
        targets: *const facegrad_targets,
        device: Device,
        samples: i64,
    ) -> Result<RawTargets> {
        // SAFETY: the caller's promise is the same.
        let targets = unsafe { Self::read_pictures(targets, device, samples) }?;
        if let Some(references) = &targets.references {
            references.expect_float()?;
        }
        Ok(targets)
    }

    /// The same, where the references may be uint8 too.
    ///
    /// # Safety
    /// As for [`RawTargets::read`].
    pub unsafe fn read_pictures(
        targets: *const facegrad_targets,
        device: Device,
        samples: i64,
    ) -> Result<RawTargets> {
        // SAFETY: every call below asks for what the caller promises.
        unsafe {
            let raw = versioned("targets", targets)?;
            Ok(RawTargets {
                references: match raw.references.is_null() {
                    true => None,
                    false => Some(views::pictures("references", raw.references, device)?),
                },
                reference_ids: texts("reference_ids", raw.reference_ids, samples)?,
                data_types: required("data_types", texts("data_types", raw.data_types, samples)?)?,
                landmarks: views::optional_numbers("landmarks", raw.landmarks, 10)?,
                boxes: views::optional_numbers("boxes", raw.boxes, 4)?,
                reference_landmarks: views::optional_numbers(
                    "reference_landmarks",
                    raw.reference_landmarks,
                    10,
                )?,
                reference_boxes: views::optional_numbers(
                    "reference_boxes",
                    raw.reference_boxes,
                    4,
                )?,
                weights: views::optional_numbers("sample_weights", raw.sample_weights, 1)?,
                sample_ids: texts("sample_ids", raw.sample_ids, samples)?,
            })
        }
    }

    /// Reads the numbers. It runs on the worker, because they may lie on a GPU.
    pub fn into_targets(self, watch: &Watch) -> Result<Targets> {
        let references = self.references.as_ref().map(View::borrow).transpose()?;
        if let Some(references) = &references {
            watch.look("references", references)?;
        }
        Ok(Targets {
            references,
            reference_ids: self.reference_ids,
            data_types: self.data_types,
            faces: views::places(self.landmarks.as_ref(), self.boxes.as_ref())?,
            reference_faces: views::places(
                self.reference_landmarks.as_ref(),
                self.reference_boxes.as_ref(),
            )?,
            weights: match &self.weights {
                Some(view) => views::numbers(view)?,
                None => vec![],
            },
            numbers: vec![],
            sample_ids: self.sample_ids,
        })
    }
}

/// The arguments of a `set_reference` call, validated but not yet read.
pub(super) struct RawReference {
    pub id: String,
    pub images: View,
    landmarks: Option<View>,
}

impl RawReference {
    /// # Safety
    /// `id` is NULL or a string; `landmarks` as for [`View::read`].
    pub unsafe fn read(
        id: *const c_char,
        images: View,
        landmarks: *const RawTensor,
    ) -> Result<RawReference> {
        // SAFETY: the caller's promises are the same.
        let (id, landmarks) = unsafe {
            let landmarks = views::optional_numbers("landmarks", landmarks, 10)?;
            (text("id", id)?, landmarks)
        };
        let count = images.shape()[0];
        if count == 0 {
            bail!(
                Shape,
                "images: expected at least one image, got {:?}",
                images.shape()
            );
        }
        if landmarks.as_ref().is_some_and(|l| l.shape()[0] != count) {
            bail!(Shape, "landmarks: expected {count} rows, one per image");
        }
        Ok(RawReference {
            id,
            images,
            landmarks,
        })
    }

    /// Calls `register` with the person's id, images and places on the worker of `owned`.
    pub fn register<T: Send + 'static>(
        self,
        owned: &Owned<T>,
        watch: &Arc<Watch>,
        stream: *mut c_void,
        register: fn(&mut T, &str, &Tensor, &[FacePlace]) -> Result<usize>,
    ) -> Result<()> {
        let watch = watch.clone();
        owned.with(Stream::new(stream), move |value| {
            let images = self.images.borrow()?;
            watch.look(&format!("reference \"{}\"", self.id), &images)?;
            register(value, &self.id, &images, &self.places()?)?;
            Ok(())
        })
    }

    /// The place of the face in every image, empty where it is to be detected. It runs on the worker.
    fn places(&self) -> Result<Vec<FacePlace>> {
        let mut places = views::places(self.landmarks.as_ref(), None)?;
        places.resize(self.images.shape()[0] as usize, FacePlace::default());
        Ok(places)
    }
}

/// Forgets the person that is registered under `id`.
///
/// # Safety
/// `id` is NULL or a NUL-terminated string.
pub(super) unsafe fn remove<T: Send + 'static>(
    owned: &Owned<T>,
    id: *const c_char,
    remove: fn(&mut T, &str) -> bool,
) -> Result<()> {
    // SAFETY: the caller's promise is the same.
    let id = unsafe { text("id", id) }?;
    owned.with(Stream::default(), move |value| {
        if !remove(value, &id) {
            bail!(Argument, "id: \"{id}\" is not registered");
        }
        Ok(())
    })
}

/// An array of `count` strings, some of them NULL; empty for a NULL array.
unsafe fn texts(
    name: &'static str,
    array: *const *const c_char,
    count: i64,
) -> Result<Vec<Option<String>>> {
    if array.is_null() {
        return Ok(vec![]);
    }
    (0..count as usize)
        // SAFETY: the caller promises `count` pointers, each NULL or a string.
        .map(|at| unsafe { optional_text(name, array.add(at).read()) })
        .collect()
}

fn required(name: &str, texts: Vec<Option<String>>) -> Result<Vec<String>> {
    let mut all = vec![];
    for (at, text) in texts.into_iter().enumerate() {
        match text {
            Some(text) => all.push(text),
            None => bail!(Null, "{name}[{at}]: expected a string, got NULL"),
        }
    }
    Ok(all)
}
