//! Detectors.

use super::boundary::{call, copy_text};
use super::context::{Context, Model, make};
use super::handle::{self, Object};
use super::read::{output, struct_size, text, write_versioned};
use super::types::*;
use super::views;
use crate::config::{DetectorConfig, parse};
use crate::detect::Detector;
use crate::error::Result;
use crate::face::Face;
use crate::tensor::{RawTensor, Stream};
use crate::worker::{Owned, Worker};
use std::ffi::{c_char, c_void};
use std::sync::Arc;

impl Object for Model<Detector> {
    const NAME: &'static str = "detector";
}

/// Loads a detector on a worker.
pub(super) fn load(worker: &Arc<Worker>, config: DetectorConfig) -> Result<Model<Detector>> {
    let owned = Owned::build(worker, move |device| Detector::new(&config, device))?;
    let info = owned.with(Stream::default(), |detector| Ok(detector.description()))?;
    Ok(Model::new(owned, info))
}

/// Loads an SCRFD face detector (InsightFace's det_10g.onnx, det_500m.onnx, scrfd_10g_bnkps.onnx, …).
///
/// @param[in] config JSON, with defaults in parentheses: `path` (required); `engine` "auto" | "ort" | "torch"
/// ("auto"); `det_sizes` sides of the detection canvases, or pairs [width, height], in pixels, multiples of 32
/// ([640]), the faces of all sizes are merged; `threshold` the least score of a face, in (0, 1) (0.5);
/// `nms_threshold` the intersection over union above which the weaker of two boxes is dropped, in (0, 1) (0.4);
/// `onnxruntime` the path of ONNX Runtime's library or folder; `providers` its execution providers, best first,
/// as `facegrad_evaluator_new` lists them, a provider that is missing is an error; `min_size` the least length
/// of a face's shorter side, pixels (0); `retry_sizes` sizes to try one after the other where `det_sizes` find
/// no face ([]); `retry_padding` after these, `det_sizes` again with a black border of this part of the image's
/// longer side (0: no)
/// @param[out] out the new detector; NULL on failure
///
/// Errors: `IO`, `FORMAT`, `LIMIT`, `WEIGHTS` for a model that is no SCRFD, `OPERATOR`, `ONNXRUNTIME`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_detector_new(
    context: *const facegrad_context,
    config: *const c_char,
    out: *mut *mut facegrad_detector,
) -> facegrad_status {
    let body = || {
        let context = handle::get::<Context, _>("context", context)?;
        // SAFETY: the host promises a string.
        let json = unsafe { text("config", config) }?;
        load(&context.worker, parse("detector config", &json)?)
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

/// Finds the faces of a batch of images, ordered by image and then by falling score, without a gradient.
///
/// @param[in] images `[N,3,H,W]` RGB: uint8, or float32, float16 or bfloat16 in [0, 1]. Floats are rounded to
/// 8 bits, because the detectors were trained on 8-bit images. An image with NaN or infinity has no faces.
/// @param[out] faces receives the first `capacity` faces; the first element's `struct_size` must be
/// set; NULL with `capacity` 0 only counts
/// @param[out] count the number of faces, which may be larger than `capacity`
/// @param[in] stream cudaStream_t that `images` is ready on; NULL on a CPU. The call waits for the result.
///
/// Errors: `LIMIT` for more than 2^28 pixels in an image or 2^30 in the batch, `ONNXRUNTIME`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_detector_detect(
    detector: *mut facegrad_detector,
    images: *const RawTensor,
    faces: *mut facegrad_face,
    capacity: usize,
    count: *mut usize,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let detector = handle::get::<Model<Detector>, _>("detector", detector)?;
        let count = output("count", count)?;
        let owned = &detector.owned;
        // SAFETY: the host's promises are those of `View::read` and `struct_size`.
        let (images, stride) = unsafe {
            let device = owned.worker().device();
            let images = views::pictures("images", images, device)?;
            let stride = match capacity {
                0 => 0,
                _ => struct_size("faces", faces)?,
            };
            (images, stride)
        };
        let watch = detector.watch.clone();
        let found = owned.with(Stream::new(stream), move |detector| {
            let images = images.borrow()?;
            watch.look("images", &images)?;
            detector.detect(&images)
        })?;
        let all = found
            .iter()
            .enumerate()
            .flat_map(|(image, faces)| faces.iter().map(move |face| c_face(image as i64, face)));
        let mut total = 0;
        for (at, face) in all.enumerate() {
            total += 1;
            if at < capacity {
                // SAFETY: the host promises `capacity` structs, `stride` bytes apart.
                unsafe {
                    let pointer = faces.cast::<u8>().add(at * stride).cast();
                    write_versioned(pointer, stride, &face);
                }
            }
        }
        // SAFETY: not NULL, and the host promises that it is writable.
        unsafe { count.write(total) };
        Ok(())
    })
}

/// Describes the detector in one line of text: file, engine and why, detection sizes, thresholds.
///
/// @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
/// @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_detector_info(
    detector: *const facegrad_detector,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> facegrad_status {
    call(|| {
        let detector = handle::get::<Model<Detector>, _>("detector", detector)?;
        // SAFETY: the host's promise is `copy_text`'s.
        unsafe { copy_text(&detector.info, buffer, capacity, needed) };
        Ok(())
    })
}

/// Frees a detector. A loss that was made with it keeps what it needs.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_detector_free(detector: *mut facegrad_detector) {
    call(|| {
        handle::remove::<Model<Detector>, _>(detector);
        Ok(())
    });
}

/// A face as the struct of the C ABI.
pub(super) fn c_face(image: i64, face: &Face) -> facegrad_face {
    facegrad_face {
        struct_size: size_of::<facegrad_face>(),
        image,
        bbox: face.bbox.map(|v| v as f32),
        score: face.score as f32,
        has_landmarks: face.landmarks.is_some() as i32,
        landmarks: flat(face.landmarks.as_ref()),
    }
}

/// Landmarks as the array of the C ABI; zeros where there are none.
pub(super) fn flat(landmarks: Option<&crate::face::Landmarks>) -> [f32; 10] {
    let points = landmarks.copied().unwrap_or_default();
    std::array::from_fn(|i| points[i / 2][i % 2] as f32)
}
