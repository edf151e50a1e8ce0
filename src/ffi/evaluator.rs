//! Evaluators.

use super::boundary::{call, copy_text};
use super::context::{Context, make};
use super::detector::c_face;
use super::handle::{self, Object};
use super::read::{output, struct_size, text, write_versioned};
use super::report::ReportSink;
use super::targets::{RawReference, RawTargets};
use super::types::*;
use super::watch::Watch;
use super::{targets, views};
use crate::batch::Report;
use crate::config::{EvaluatorConfig, parse};
use crate::error::{Result, bail};
use crate::score::{EmbeddedFace, Evaluator};
use crate::tensor::{RawTensor, Stream, View};
use crate::worker::Owned;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use tch::Tensor;

/// An evaluator, and what its calls check on the caller's thread.
struct EvaluatorObject {
    owned: Owned<Evaluator>,
    watch: Arc<Watch>,
    dim: i64,
    size: i64,
    info: String,
}

impl Object for EvaluatorObject {
    const NAME: &'static str = "evaluator";
}

impl EvaluatorObject {
    /// Runs `score` on the worker and gives its report to the host.
    fn report(
        &self,
        images: View,
        sink: ReportSink,
        stream: *mut c_void,
        score: impl FnOnce(&mut Evaluator, &Tensor) -> Result<Report> + Send + 'static,
    ) -> Result<()> {
        let watch = self.watch.clone();
        let report = self.owned.with(Stream::new(stream), move |evaluator| {
            let images = images.borrow()?;
            watch.look("images", &images)?;
            score(evaluator, &images)
        })?;
        // SAFETY: `read` checked the pointers, and the host promises that they are writable.
        unsafe { sink.write(&report) };
        Ok(())
    }
}

/// Makes an evaluator. It computes faces, embeddings and similarities as insightface's FaceAnalysis does, from
/// 8-bit pixels, without a gradient.
///
/// @param[in] config JSON: `detector` (required) the path of an SCRFD ONNX, or the object of
/// `facegrad_detector_new` with its own `engine`, `providers` and `onnxruntime`; `recogniser` (required) the
/// path of a recogniser's ONNX or weights, or the object of `facegrad_backbone_new`; `engine` "auto" | "ort" |
/// "torch"; `providers` ONNX Runtime's execution providers, best first: "cpu" | "cuda" | "tensorrt" | "rocm" |
/// "migraphx" | "openvino" | "coreml" | "directml", a provider that is missing is an error; `onnxruntime` the
/// path of its library or folder; `face_choice` which of several faces counts, "score" | "largest" | "center" |
/// "index" with `face_index`; `pooling` of several reference images of one person, "centroid" (the cosine with
/// their normalised mean) | "mean" (the mean of the cosines) | "max" (the largest cosine); `face_types` the data
/// types that count (all)
/// @param[out] out the new evaluator; NULL on failure
///
/// Errors: `ONNXRUNTIME` and those of `facegrad_detector_new` and `facegrad_backbone_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_evaluator_new(
    context: *const facegrad_context,
    config: *const c_char,
    out: *mut *mut facegrad_evaluator,
) -> facegrad_status {
    let body = || {
        let context = handle::get::<Context, _>("context", context)?;
        // SAFETY: the host promises a string.
        let json = unsafe { text("config", config) }?;
        let config: EvaluatorConfig = parse("evaluator config", &json)?;
        let owned = Owned::build(&context.worker, move |device| {
            Evaluator::new(config, device)
        })?;
        let (dim, size, info) = owned.with(Stream::default(), |evaluator| {
            let recogniser = evaluator.recogniser();
            let info = serde_json::json!({
                "detector": evaluator.detector().description(),
                "recogniser": recogniser.description(),
                "dim": recogniser.dim(),
                "input_size": recogniser.input_size(),
                "settings": evaluator.settings(),
            });
            Ok((recogniser.dim(), recogniser.input_size(), info.to_string()))
        })?;
        Ok(EvaluatorObject {
            owned,
            watch: Arc::new(Watch::new()),
            dim,
            size,
            info,
        })
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

/// Finds and embeds all faces of a batch of images, ordered by image and then by falling score.
///
/// @param[in] images `[N,3,H,W]` RGB: uint8, or float32, float16 or bfloat16 in [0, 1], rounded to 8 bits. An
/// image with NaN or infinity has no faces.
/// @param[out] faces receives the first `capacity` faces; the first element's `struct_size` must be set; NULL
/// with `capacity` 0 only counts
/// @param[out] embeddings `[capacity,D]`, any float dtype: row i belongs to face i and has length 1, or is NaN
/// where the face spans no area; rows after the last face are not written; NULL: not wanted
/// @param[out] count the number of faces, which may be larger than `capacity`
/// @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. The call waits for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_evaluator_faces(
    evaluator: *mut facegrad_evaluator,
    images: *const RawTensor,
    faces: *mut facegrad_face,
    capacity: usize,
    embeddings: *const RawTensor,
    count: *mut usize,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let evaluator = handle::get::<EvaluatorObject, _>("evaluator", evaluator)?;
        let count = output("count", count)?;
        let (device, dim) = (evaluator.owned.worker().device(), evaluator.dim);
        // SAFETY: the host's promises are those of `View::read` and `struct_size`.
        let (images, embeddings, stride) = unsafe {
            let images = views::pictures("images", images, device)?;
            let shape = [capacity as i64, dim];
            let embeddings = views::optional_output("embeddings", embeddings, &shape, device)?;
            let stride = match capacity {
                0 => 0,
                _ => struct_size("faces", faces)?,
            };
            (images, embeddings, stride)
        };
        let watch = evaluator.watch.clone();
        let found = evaluator
            .owned
            .with(Stream::new(stream), move |evaluator| {
                let images = images.borrow()?;
                watch.look("images", &images)?;
                let found = evaluator.faces(&images, embeddings.is_some())?;
                if let Some(view) = embeddings {
                    write_rows(&view, &found, dim as usize)?;
                }
                Ok(found)
            })?;
        let all = found
            .iter()
            .enumerate()
            .flat_map(|(image, faces)| faces.iter().map(move |f| c_face(image as i64, &f.face)));
        let mut total = 0;
        for (at, face) in all.enumerate() {
            total += 1;
            if at >= capacity {
                continue;
            }
            // SAFETY: the host promises `capacity` structs, `stride` bytes apart.
            unsafe {
                let pointer = faces.cast::<u8>().add(at * stride).cast();
                write_versioned(pointer, stride, &face);
            }
        }
        // SAFETY: not NULL, and the host promises that it is writable.
        unsafe { count.write(total) };
        Ok(())
    })
}

/// Writes the embeddings, face after face, to as many rows as the view has.
fn write_rows(view: &View, found: &[Vec<EmbeddedFace>], dim: usize) -> Result<()> {
    let missing = vec![f32::NAN; dim];
    let rows: Vec<&[f32]> = found
        .iter()
        .flatten()
        .map(|f| f.embedding.as_ref().unwrap_or(&missing).as_slice())
        .take(view.shape()[0] as usize)
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let flat = Tensor::f_from_slice(&rows.concat())?.f_view([-1, dim as i64])?;
    let mut target = view.borrow()?.f_narrow(0, 0, rows.len() as i64)?;
    target.f_copy_(&flat)?;
    Ok(())
}

/// Returns the crops that the recogniser sees, as insightface's `norm_crop` makes them: by landmarks where a
/// face has them, else by its box.
///
/// @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
/// @param[in] faces `count` faces in them
/// @param[out] crops `[count,3,S,S]` in [0, 1], any float dtype; S is the `input_size` of
/// `facegrad_evaluator_info`
/// @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. The call waits for the result.
///
/// Errors: `ARGUMENT` for an image that is not finite, or a face that spans no area.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_evaluator_align(
    evaluator: *mut facegrad_evaluator,
    images: *const RawTensor,
    faces: *const facegrad_face,
    count: usize,
    crops: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let evaluator = handle::get::<EvaluatorObject, _>("evaluator", evaluator)?;
        let (device, size) = (evaluator.owned.worker().device(), evaluator.size);
        // SAFETY: the host's promises are those of the functions called.
        let (images, faces, crops) = unsafe {
            let images = views::pictures("images", images, device)?;
            let faces = views::faces(faces, count, images.shape()[0])?;
            let crops = views::output("crops", crops, &[count as i64, 3, size, size], device)?;
            (images, faces, crops)
        };
        evaluator.owned.with(Stream::new(stream), move |evaluator| {
            crops.write(&evaluator.align(&images.borrow()?, &faces)?)
        })
    })
}

/// Registers a person under an id by the chosen face of every image. A person that was registered under the same
/// id before is replaced. Images without a face are left out with a warning.
///
/// @param[in] id any UTF-8 text
/// @param[in] images `[K,3,H,W]` RGB, uint8 or float in [0, 1], K ≥ 1
/// @param[in] landmarks `[K,5,2]` pixels, NaN in the rows that are not known: of several detected faces the one
/// nearest to them counts; NULL: `face_choice` decides
/// @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU
///
/// Errors: `ARGUMENT` where no image has a face.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_evaluator_set_reference(
    evaluator: *mut facegrad_evaluator,
    id: *const c_char,
    images: *const RawTensor,
    landmarks: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let evaluator = handle::get::<EvaluatorObject, _>("evaluator", evaluator)?;
        // SAFETY: the host's promises are those of `View::read` and `RawReference::read`.
        let reference = unsafe {
            let images = views::pictures("images", images, evaluator.owned.worker().device())?;
            RawReference::read(id, images, landmarks)?
        };
        reference.register(
            &evaluator.owned,
            &evaluator.watch,
            stream,
            Evaluator::register,
        )
    })
}

/// Forgets a registered person.
///
/// Errors: `ARGUMENT` where the id was not registered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_evaluator_remove_reference(
    evaluator: *mut facegrad_evaluator,
    id: *const c_char,
) -> facegrad_status {
    call(|| {
        let evaluator = handle::get::<EvaluatorObject, _>("evaluator", evaluator)?;
        // SAFETY: the host promises a string.
        unsafe { targets::remove(&evaluator.owned, id, Evaluator::remove) }
    })
}

/// Compares one face of every image with its reference, without a gradient.
///
/// A sample whose face or reference is not found does not count, and its report says why. If no sample counts,
/// the loss is 0 and the call succeeds.
///
/// @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
/// @param[in] targets references (uint8 or float) and per-sample facts. Landmarks and boxes say which face is
/// meant: the detected face that is nearest to them is compared.
/// @param[out] samples N reports; the first element's `struct_size` must be set; may be NULL
/// @param[in] samples_capacity elements of `samples`, at least N unless it is NULL
/// @param[out] result `loss` is `Σ wᵢ·(1 − cosᵢ) / counted`; may be NULL; its `struct_size` must be set
/// @param[in] stream cudaStream_t that the tensors are ready on; NULL on a CPU. The call waits for the result.
///
/// Errors: `ARGUMENT` for an id that was not registered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_evaluator_compare(
    evaluator: *mut facegrad_evaluator,
    images: *const RawTensor,
    targets: *const facegrad_targets,
    samples: *mut facegrad_sample,
    samples_capacity: usize,
    result: *mut facegrad_result,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let evaluator = handle::get::<EvaluatorObject, _>("evaluator", evaluator)?;
        let device = evaluator.owned.worker().device();
        // SAFETY: the host's promises are those of the functions called.
        let (images, targets, sink) = unsafe {
            let images = views::pictures("images", images, device)?;
            let count = images.shape()[0];
            let targets = RawTargets::read_pictures(targets, device, count)?;
            let sink = ReportSink::read(samples, samples_capacity, result, count)?;
            (images, targets, sink)
        };
        let watch = evaluator.watch.clone();
        evaluator.report(images, sink, stream, move |evaluator, images| {
            evaluator.compare(images, &targets.into_targets(&watch)?)
        })
    })
}

/// Finds several registered people in every image. People and faces are matched one to one so that the sum of
/// their similarities is largest (the Hungarian method).
///
/// @param[in] images `[N,3,H,W]` RGB, uint8 or float in [0, 1], rounded to 8 bits
/// @param[in] ids `people` ids that `facegrad_evaluator_set_reference` registered
/// @param[in] people how many `ids` there are
/// @param[out] samples `N · people` reports, image after image, the people in the order of `ids`; a person
/// without a face is `FACEGRAD_SAMPLE_NO_FACE`. The first element's `struct_size` must be set; may be NULL
/// @param[in] samples_capacity elements of `samples`, at least `N · people` unless it is NULL
/// @param[out] result the sums over all of these samples; may be NULL; its `struct_size` must be set
/// @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. The call waits for the result.
///
/// Errors: `ARGUMENT` for an id that was not registered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_evaluator_find(
    evaluator: *mut facegrad_evaluator,
    images: *const RawTensor,
    ids: *const *const c_char,
    people: usize,
    samples: *mut facegrad_sample,
    samples_capacity: usize,
    result: *mut facegrad_result,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let evaluator = handle::get::<EvaluatorObject, _>("evaluator", evaluator)?;
        if ids.is_null() {
            bail!(Null, "ids: expected an array, got NULL");
        }
        if people == 0 {
            bail!(
                Argument,
                "people: expected at least one registered id, got 0"
            );
        }
        // SAFETY: the host's promises are those of the functions called; `ids` has `people` strings.
        let (images, ids, sink) = unsafe {
            let images = views::pictures("images", images, evaluator.owned.worker().device())?;
            let ids = (0..people)
                .map(|at| text("ids", ids.add(at).read()))
                .collect::<Result<Vec<_>>>()?;
            let Some(count) = images.shape()[0].checked_mul(people as i64) else {
                bail!(Argument, "people: {people} are more than there can be");
            };
            let sink = ReportSink::read(samples, samples_capacity, result, count)?;
            (images, ids, sink)
        };
        evaluator.report(images, sink, stream, move |evaluator, images| {
            evaluator.find(images, &ids)
        })
    })
}

/// Describes the evaluator as a JSON object: `detector` and `recogniser` (file, engine and why), `dim` (the
/// length of an embedding), `input_size` (side of a crop, pixels), `settings` (keys of the config with their values).
///
/// @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
/// @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_evaluator_info(
    evaluator: *const facegrad_evaluator,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> facegrad_status {
    call(|| {
        let evaluator = handle::get::<EvaluatorObject, _>("evaluator", evaluator)?;
        // SAFETY: the host's promise is `copy_text`'s.
        unsafe { copy_text(&evaluator.info, buffer, capacity, needed) };
        Ok(())
    })
}

/// Frees an evaluator.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_evaluator_free(evaluator: *mut facegrad_evaluator) {
    call(|| {
        handle::remove::<EvaluatorObject, _>(evaluator);
        Ok(())
    });
}
