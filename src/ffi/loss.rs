//! Losses.

use super::boundary::{call, copy_text};
use super::context::{Context, Model, make};
use super::detector::{self, flat};
use super::handle::{self, Object};
use super::read::{optional_text, struct_size, text, versioned, write_versioned};
use super::types::*;
use super::{backbone, views};
use crate::config::{BackboneConfig, DetectorChoice, LossConfig, parse};
use crate::detect::Detector;
use crate::error::{Result, bail};
use crate::graph::Graph;
use crate::loss::{FaceLoss, Loss, Pipeline, Report, Sample, Targets};
use crate::tensor::{RawTensor, Stream, Use, View};
use crate::worker::{Owned, Worker, lock};
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use tch::Device;

impl Object for Model<Loss> {
    const NAME: &'static str = "loss";
}

/// Makes a loss. Networks may be handed over, and shared between losses, or named in the
/// configuration; without any detector the host has to say where every face is.
///
/// @param[in] detector NULL: loaded from the config's `detector`, where there is one
/// @param[in] backbone NULL: loaded from the config's `arcface_weights`
/// @param[in] config JSON, all keys optional: `use_face_loss` (true); `face_loss_weight` (0.1; usually
/// 0.05–0.2); `face_align_mode` "bbox" (default) | "kps" (recommended); `face_loss_type`
/// "differentiable"; `face_types` (["person", "person_head"]); `arcface_weights`, `arcface_model` as
/// `path`, `model` of `facegrad_backbone_new`; `detector` a path or the object of
/// `facegrad_detector_new`; `landmarks` "detect" | "reference" | "detect_or_reference"; `face_choice`
/// "score" | "largest" | "center" | "index" with `face_index`; `target_similarity` (1);
/// `reference_mode` "mean" | "best"; `reference_cache` (4096 faces)
/// @param[out] out the new loss; NULL on failure
///
/// Errors: `CONFIG`, `ARGUMENT` (objects of another context), and those of the networks' constructors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_new(
    context: *const facegrad_context,
    detector: *const facegrad_detector,
    backbone: *const facegrad_backbone,
    config: *const c_char,
    out: *mut *mut facegrad_loss,
) -> facegrad_status {
    let body = || {
        let context = handle::get::<Context, _>("context", context)?;
        let detector = handle::get_optional::<Model<Detector>, _>("detector", detector)?;
        let backbone = handle::get_optional::<backbone::Backbone, _>("backbone", backbone)?;
        // SAFETY: the host promises NULL or a string.
        let json = unsafe { optional_text("config", config) }?.unwrap_or_default();
        build(
            &context.worker,
            detector,
            backbone,
            LossConfig::parse(&json)?,
        )
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

fn build(
    worker: &Arc<Worker>,
    detector: Option<Arc<Model<Detector>>>,
    backbone: Option<Arc<backbone::Backbone>>,
    config: LossConfig,
) -> Result<Model<Loss>> {
    let detector = match (detector, &config.detector) {
        (Some(_), Some(_)) => bail!(
            Config,
            "loss config: a detector was handed over and `detector` names another; give one of them"
        ),
        (Some(detector), None) => Some(detector),
        (None, None) => None,
        (None, Some(choice)) => {
            let config = match choice.clone() {
                DetectorChoice::Config(config) => *config,
                DetectorChoice::Path(path) => {
                    let json = serde_json::json!({ "path": path }).to_string();
                    parse("detector config", &json)?
                }
            };
            Some(Arc::new(detector::load(worker, config)?))
        }
    };
    let backbone = match (backbone, &config.arcface_weights) {
        (Some(_), Some(_)) => bail!(
            Config,
            "loss config: a backbone was handed over and `arcface_weights` names another; give one of them"
        ),
        (Some(backbone), None) => backbone,
        (None, Some(path)) => Arc::new(backbone::load(
            worker,
            BackboneConfig {
                path: path.clone(),
                model: config.arcface_model.clone(),
                input_size: None,
                mean: None,
                std: None,
                color: None,
                dtype: None,
            },
        )?),
        (None, None) => bail!(
            Config,
            "loss config: no recogniser: hand over a backbone, or set `arcface_weights` to its file"
        ),
    };
    if let Some(detector) = &detector {
        views::same_context("detector", worker, detector.owned.worker())?;
    }
    views::same_context("backbone", worker, backbone.owned.worker())?;
    let info = serde_json::json!({
        "detector": detector.as_ref().map(|d| d.info.clone()),
        "backbone": backbone.description(),
        "face_align_mode": format!("{:?}", config.face_align_mode).to_lowercase(),
        "face_loss_weight": config.face_loss_weight,
        "face_types": config.face_types,
    })
    .to_string();
    let pipeline = Pipeline {
        detector: detector.map(|d| d.owned.share()),
        recogniser: backbone.owned.share(),
        align_mode: config.face_align_mode,
        choice: config.face_choice,
        index: config.face_index,
    };
    let owned = Owned::build(worker, move |_| Ok(Loss::new(config, pipeline)))?;
    Ok(Model { owned, info })
}

/// Registers a reference person under an id, replacing an earlier one. Images without a face are
/// left out with a warning; it is an error when none has one.
///
/// @param[in] id any UTF-8 text
/// @param[in] images `[K,3,H,W]` RGB in [0, 1], K ≥ 1
/// @param[in] landmarks `[K,5,2]` where the faces are, pixels, rows of NaN for not known; NULL: detected
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_set_reference(
    loss: *mut facegrad_loss,
    id: *const c_char,
    images: *const RawTensor,
    landmarks: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<Model<Loss>, _>("loss", loss)?;
        // SAFETY: the host's promises are those of `text` and `View::read`.
        let (id, images, landmarks) = unsafe {
            let device = loss.owned.worker().device();
            let images = views::images("images", images, Use::Input, device)?;
            let landmarks = views::optional_numbers("landmarks", landmarks, 10)?;
            (text("id", id)?, images, landmarks)
        };
        let count = images.shape()[0];
        if landmarks.as_ref().is_some_and(|l| l.shape()[0] != count) {
            bail!(Shape, "landmarks: expected {count} rows, one per image");
        }
        loss.owned.with(Stream::new(stream), move |loss| {
            let mut known = views::places(landmarks.as_ref(), None)?;
            known.resize(count as usize, Default::default());
            loss.set_reference(&id, &images.borrow()?, &known)?;
            Ok(())
        })
    })
}

/// Forgets a registered reference.
///
/// Errors: `ARGUMENT` where the id was not registered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_remove_reference(
    loss: *mut facegrad_loss,
    id: *const c_char,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<Model<Loss>, _>("loss", loss)?;
        // SAFETY: the host promises a string.
        let id = unsafe { text("id", id) }?;
        loss.owned.with(Stream::default(), move |loss| {
            if !loss.remove_reference(&id) {
                bail!(Argument, "id: \"{id}\" is not registered");
            }
            Ok(())
        })
    })
}

/// The loss of a batch of images and its gradient, in one call.
///
/// A sample that cannot count (gated, no face, not finite) counts nothing, has a gradient of exactly
/// zero and says why; when all are out, loss and gradient are 0 and the call succeeds.
///
/// @param[in] images `[N,3,H,W]` RGB, nominally in [0, 1], float32, float16 or bfloat16; not clamped
/// @param[in] targets references and per-sample facts
/// @param[out] gradient of `result->loss` with respect to `images`: the same shape, any float dtype;
/// NULL: not computed
/// @param[out] samples N reports; the first element's `struct_size` must be set; may be NULL
/// @param[in] samples_capacity elements of `samples`, at least N unless it is NULL
/// @param[out] result may be NULL; its `struct_size` must be set
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU. `samples` and `result` are
/// ready on return, `gradient` in the stream's order.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_images(
    loss: *mut facegrad_loss,
    images: *const RawTensor,
    targets: *const facegrad_targets,
    gradient: *const RawTensor,
    samples: *mut facegrad_sample,
    samples_capacity: usize,
    result: *mut facegrad_result,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<Model<Loss>, _>("loss", loss)?;
        let device = loss.owned.worker().device();
        // SAFETY: the host's promises are those of the functions called.
        let (images, targets, gradient, sink) = unsafe {
            let images = views::images("images", images, Use::Input, device)?;
            let targets = RawTargets::read(targets, device, images.shape()[0])?;
            let gradient = match gradient.is_null() {
                true => None,
                false => Some(views::output("gradient", gradient, images.shape(), device)?),
            };
            let sink = ReportSink::read(samples, samples_capacity, result, images.shape()[0])?;
            (images, targets, gradient, sink)
        };
        let shared = loss.owned.share();
        let report = loss.owned.worker().run(Stream::new(stream), move || {
            let operation = FaceLoss::new(shared, targets.into_targets()?);
            let report = operation.report();
            let mut graph = Graph::new();
            let input = graph.input(images.borrow()?, gradient.is_some());
            let value = graph.apply(Box::new(operation), &[input])?;
            if let Some(output) = gradient {
                graph.backward(value, None)?;
                output.write(&graph.gradient(input)?)?;
            }
            let report = std::mem::take(&mut *lock(&report));
            Ok(report)
        })?;
        // SAFETY: `read` checked the pointers, and the host promises that they are writable.
        unsafe { sink.write(&report) };
        Ok(())
    })
}

/// What the loss uses, as a JSON object: `detector`, `backbone`, `face_align_mode`,
/// `face_loss_weight`, `face_types`.
///
/// @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
/// @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_info(
    loss: *const facegrad_loss,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<Model<Loss>, _>("loss", loss)?;
        // SAFETY: the host's promise is `copy_text`'s.
        unsafe { copy_text(&loss.info, buffer, capacity, needed) };
        Ok(())
    })
}

/// Frees a loss.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_loss_free(loss: *mut facegrad_loss) {
    call(|| {
        handle::remove::<Model<Loss>, _>(loss);
        Ok(())
    });
}

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
        // SAFETY: every call below asks for what the caller promises.
        unsafe {
            let raw = versioned("targets", targets)?;
            Ok(RawTargets {
                references: views::optional_images("references", raw.references, device)?,
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
            })
        }
    }

    /// Reads the numbers; on the worker.
    pub fn into_targets(self) -> Result<Targets> {
        Ok(Targets {
            references: self.references.as_ref().map(View::borrow).transpose()?,
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
        })
    }
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

/// Where a report goes.
pub(super) struct ReportSink {
    samples: Option<(*mut facegrad_sample, usize)>,
    result: Option<(*mut facegrad_result, usize)>,
}

impl ReportSink {
    /// # Safety
    /// `samples` is NULL or points to `capacity` structs, `result` is NULL or points to one; both are
    /// as long as their `struct_size` says.
    pub unsafe fn read(
        samples: *mut facegrad_sample,
        capacity: usize,
        result: *mut facegrad_result,
        count: i64,
    ) -> Result<ReportSink> {
        if !samples.is_null() && (capacity as u64) < count as u64 {
            bail!(
                Argument,
                "samples_capacity: expected at least {count}, one per image, got {capacity}"
            );
        }
        // SAFETY: the caller's promise is the same.
        unsafe {
            Ok(ReportSink {
                samples: match samples.is_null() || count == 0 {
                    true => None,
                    false => Some((samples, struct_size("samples", samples)?)),
                },
                result: match result.is_null() {
                    true => None,
                    false => Some((result, struct_size("result", result)?)),
                },
            })
        }
    }

    /// # Safety
    /// The pointers that `read` got are still writable.
    pub unsafe fn write(&self, report: &Report) {
        if let Some((samples, stride)) = self.samples {
            for (at, sample) in report.samples.iter().enumerate() {
                // SAFETY: `read` checked that there are as many elements as samples.
                unsafe {
                    let pointer = samples.cast::<u8>().add(at * stride).cast();
                    write_versioned(pointer, stride, &c_sample(sample));
                }
            }
        }
        if let Some((result, size)) = self.result {
            let value = facegrad_result {
                struct_size: size,
                loss: report.loss,
                mean_distance: report.mean_distance,
                counted: report.counted() as i64,
                samples: report.samples.len() as i64,
            };
            // SAFETY: the caller's promise is the same.
            unsafe { write_versioned(result, size, &value) };
        }
    }
}

fn c_sample(sample: &Sample) -> facegrad_sample {
    facegrad_sample {
        struct_size: size_of::<facegrad_sample>(),
        outcome: sample.outcome as i32,
        located: sample.located as i32,
        alignment: sample.alignment as i32,
        has_bbox: sample.bbox.is_some() as i32,
        has_landmarks: sample.landmarks.is_some() as i32,
        similarity: sample.similarity as f32,
        weight: sample.weight as f32,
        score: sample.score as f32,
        bbox: sample.bbox.unwrap_or_default().map(|v| v as f32),
        landmarks: flat(sample.landmarks.as_ref()),
    }
}
