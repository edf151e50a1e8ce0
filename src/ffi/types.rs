//! The structs, constants and handle types of the C ABI. Their docstrings are the header's.
#![allow(non_camel_case_types)]

use super::read::Versioned;
use crate::tensor::RawTensor;
use std::ffi::{c_char, c_void};

/// What every fallible function returns: `FACEGRAD_OK` or one of `FACEGRAD_ERR_*`.
/// 1–99: the caller's error; 100–199: a file; 200–299: device and runtimes; 900–: a defect here.
pub type facegrad_status = i32;

/// The call did what it says.
pub const FACEGRAD_OK: facegrad_status = 0;
/// A required pointer is NULL.
pub const FACEGRAD_ERR_NULL: facegrad_status = 1;
/// A value is outside what the function takes.
pub const FACEGRAD_ERR_ARGUMENT: facegrad_status = 2;
/// What was asked for does not exist here: a struct of a newer version sets a field that this library does not know, a
/// VAE's class is not implemented, or a decoder that shows none of its layers has no windows.
pub const FACEGRAD_ERR_UNSUPPORTED: facegrad_status = 3;
/// A tensor's dtype.
pub const FACEGRAD_ERR_DTYPE: facegrad_status = 4;
/// A tensor's rank or size.
pub const FACEGRAD_ERR_SHAPE: facegrad_status = 5;
/// A tensor's strides, offset or alignment.
pub const FACEGRAD_ERR_LAYOUT: facegrad_status = 6;
/// A tensor on another device than the context, or a device that is not there.
pub const FACEGRAD_ERR_DEVICE: facegrad_status = 7;
/// A configuration that is not JSON, or has an unknown key or value.
pub const FACEGRAD_ERR_CONFIG: facegrad_status = 8;
/// A handle that was freed, is of another type, or never was one.
pub const FACEGRAD_ERR_HANDLE: facegrad_status = 9;
/// A callback called back into the library.
pub const FACEGRAD_ERR_REENTRANT: facegrad_status = 10;
/// The context was made before this process was forked.
pub const FACEGRAD_ERR_FORKED: facegrad_status = 11;
/// An earlier call on this context ended in `FACEGRAD_ERR_PANIC`.
pub const FACEGRAD_ERR_POISONED: facegrad_status = 12;
/// A callback threw a C++ exception during the call, or a function of the host failed. Do not use the outputs.
pub const FACEGRAD_ERR_CALLBACK: facegrad_status = 13;
/// The process is ending: `exit` was called, or the main program has returned.
pub const FACEGRAD_ERR_EXITING: facegrad_status = 14;
/// A file cannot be found or read.
pub const FACEGRAD_ERR_IO: facegrad_status = 100;
/// A file is of the wrong kind, or damaged.
pub const FACEGRAD_ERR_FORMAT: facegrad_status = 101;
/// A file asks for more than the reader's limits allow.
pub const FACEGRAD_ERR_LIMIT: facegrad_status = 102;
/// A file's tensors are not those of the network.
pub const FACEGRAD_ERR_WEIGHTS: facegrad_status = 103;
/// A model uses an operator that is not implemented; the text names it.
pub const FACEGRAD_ERR_OPERATOR: facegrad_status = 104;
/// The device is out of memory. Nothing is leaked, and a smaller call works.
pub const FACEGRAD_ERR_OUT_OF_MEMORY: facegrad_status = 200;
/// libtorch reported an error.
pub const FACEGRAD_ERR_TORCH: facegrad_status = 201;
/// ONNX Runtime is missing or reported an error.
pub const FACEGRAD_ERR_ONNXRUNTIME: facegrad_status = 202;
/// A defect of this library.
pub const FACEGRAD_ERR_INTERNAL: facegrad_status = 900;
/// A defect of this library that ended in a panic. The context is poisoned: free it.
pub const FACEGRAD_ERR_PANIC: facegrad_status = 901;

/// `facegrad_sample.outcome`: the sample counts.
pub const FACEGRAD_SAMPLE_COUNTED: i32 = 0;
/// `use_face_loss` is false.
pub const FACEGRAD_SAMPLE_DISABLED: i32 = 1;
/// Its `data_type` is not among `face_types`.
pub const FACEGRAD_SAMPLE_DATA_TYPE: i32 = 2;
/// Its weight is 0.
pub const FACEGRAD_SAMPLE_ZERO_WEIGHT: i32 = 3;
/// No face was found in the reference.
pub const FACEGRAD_SAMPLE_NO_REFERENCE_FACE: i32 = 4;
/// No face was found in the generated image.
pub const FACEGRAD_SAMPLE_NO_FACE: i32 = 5;
/// Its landmarks or box span no area.
pub const FACEGRAD_SAMPLE_DEGENERATE: i32 = 6;
/// Its image, loss or gradient is not finite.
pub const FACEGRAD_SAMPLE_NON_FINITE: i32 = 7;
/// Its noise level lies outside `t_min` to `t_max`.
pub const FACEGRAD_SAMPLE_TIME: i32 = 8;
/// The number of the step is not a multiple of `every_n_steps`.
pub const FACEGRAD_SAMPLE_STEP: i32 = 9;

/// `facegrad_sample.located`: the generated face was not found or not looked for.
pub const FACEGRAD_LOCATED_NOWHERE: i32 = 0;
/// By detection on the generated image.
pub const FACEGRAD_LOCATED_DETECTED: i32 = 1;
/// The host gave its landmarks or box.
pub const FACEGRAD_LOCATED_GIVEN: i32 = 2;
/// At the place of the face in the reference image.
pub const FACEGRAD_LOCATED_REFERENCE: i32 = 3;

/// `facegrad_sample.alignment`: the face was not aligned.
pub const FACEGRAD_ALIGNMENT_NONE: i32 = 0;
/// By the five landmarks.
pub const FACEGRAD_ALIGNMENT_KPS: i32 = 1;
/// By the box, as configured.
pub const FACEGRAD_ALIGNMENT_BBOX: i32 = 2;
/// By the box, because the face has no usable landmarks.
pub const FACEGRAD_ALIGNMENT_BBOX_FALLBACK: i32 = 3;

/// `facegrad_sample.decoded`: the sample was gated out, or came as an image, so nothing was decoded.
pub const FACEGRAD_DECODED_NOTHING: i32 = 0;
/// Its whole image was decoded with a gradient.
pub const FACEGRAD_DECODED_FULL: i32 = 1;
/// A window was decoded whose pixels are those of the whole image. In decoders that have GroupNorm, its gradient leaves
/// out the part that flows through GroupNorm's statistics.
pub const FACEGRAD_DECODED_WINDOW_EXACT: i32 = 2;
/// A window was decoded with GroupNorm statistics from earlier steps.
pub const FACEGRAD_DECODED_WINDOW_CACHED: i32 = 3;
/// A window was decoded with the GroupNorm statistics of that window.
pub const FACEGRAD_DECODED_WINDOW: i32 = 4;
/// A window was decoded with GroupNorm statistics that a model predicted.
pub const FACEGRAD_DECODED_WINDOW_PREDICTED: i32 = 5;

/// Something failed that the caller may not see otherwise.
pub const FACEGRAD_LOG_ERROR: i32 = 1;
/// A sample was skipped or a fallback was used. Training can go on.
pub const FACEGRAD_LOG_WARN: i32 = 2;
/// A message about something that happens once.
pub const FACEGRAD_LOG_INFO: i32 = 3;
/// Details for finding a fault.
pub const FACEGRAD_LOG_DEBUG: i32 = 4;

/// A device, and the thread on which all work of its objects runs. Any thread may use it. Calls on one
/// context run one after the other; different contexts are independent.
pub struct facegrad_context {
    _opaque: [u8; 0],
}

/// A face detector (SCRFD). Any thread may use it.
pub struct facegrad_detector {
    _opaque: [u8; 0],
}

/// A frozen face recogniser. Any thread may use it.
pub struct facegrad_backbone {
    _opaque: [u8; 0],
}

/// A frozen VAE decoder. Any thread may use it.
pub struct facegrad_vae {
    _opaque: [u8; 0],
}

/// A loss: configuration, networks and remembered references. Any thread may use it.
pub struct facegrad_loss {
    _opaque: [u8; 0],
}

/// A graph of operations with gradients, whose nodes are numbers. Any thread may use it.
pub struct facegrad_graph {
    _opaque: [u8; 0],
}

/// A detector and a recogniser for scores without a gradient, and registered people. Any thread may use it.
pub struct facegrad_evaluator {
    _opaque: [u8; 0],
}

/// Receives a message. `message` is UTF-8 and valid until the callback returns. The callback may run on any
/// thread, also on several at once. It must not call facegrad (`FACEGRAD_ERR_REENTRANT`), must not longjmp, and
/// should not throw: the library catches a C++ exception, and the call that sent the message then fails with
/// `FACEGRAD_ERR_CALLBACK`.
pub type facegrad_log_callback =
    Option<unsafe extern "C" fn(level: i32, message: *const c_char, user_data: *mut c_void)>;

/// A function of the host that decodes latents.
///
/// `latents` is `[B,C,h,w]`, float32 and compact, and valid until the function returns. The function fills in `image`
/// with the description of an image `[B,3,H,W]`, float32, float16 or bfloat16, on the same device. The memory of the
/// image must stay valid until the next call of this function or of the `facegrad_vjp_function` with the same
/// `user_data`. If `ticket` is not 0, the host keeps what the gradient needs under that number; one call of the
/// `facegrad_vjp_function` uses it.
///
/// The function runs on the context's thread, with the caller's CUDA stream current there. It must not call facegrad
/// with objects of the same context, must not longjmp and should not throw. It returns 0, or another number where it
/// failed; the call that needed the image then fails with `FACEGRAD_ERR_CALLBACK`.
pub type facegrad_decode_function = Option<
    unsafe extern "C" fn(
        latents: *const RawTensor,
        ticket: u64,
        image: *mut RawTensor,
        user_data: *mut c_void,
    ) -> i32,
>;

/// A function of the host that computes the gradient with respect to the latents of a ticket.
///
/// `gradient` is the gradient with respect to their image, `[B,3,H,W]`, float32 and compact. The function fills in
/// `latents_gradient`, `[B,C,h,w]`, as `facegrad_decode_function` fills in `image`, and forgets the ticket. If
/// `gradient` is NULL, it only forgets the ticket, which may be forgotten already. All other rules are those of
/// `facegrad_decode_function`.
pub type facegrad_vjp_function = Option<
    unsafe extern "C" fn(
        ticket: u64,
        gradient: *const RawTensor,
        latents_gradient: *mut RawTensor,
        user_data: *mut c_void,
    ) -> i32,
>;

/// A face in an image. Places are in pixels, with pixel centres at integers: (0, 0) is the centre of the first
/// pixel.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct facegrad_face {
    /// `sizeof(facegrad_face)`; in an array, the first element's is the distance between elements.
    pub struct_size: usize,
    /// Index of the image in its batch.
    pub image: i64,
    /// x1, y1, x2, y2.
    pub bbox: [f32; 4],
    /// Detection score in [0, 1].
    pub score: f32,
    /// 1 where `landmarks` is set.
    pub has_landmarks: i32,
    /// Five pairs x, y: left eye, right eye, nose, left and right mouth corner. Left and right are those of the image.
    pub landmarks: [f32; 10],
}

/// What the host says about a batch of N generated images. Zero every field that is not used.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct facegrad_targets {
    /// `sizeof(facegrad_targets)`.
    pub struct_size: usize,
    /// Reference images `[N,3,H,W]`, or `[1,3,H,W]` for all samples; RGB in [0, 1]; any H and W.
    pub references: *const RawTensor,
    /// N ids that `facegrad_loss_set_reference` registered. A NULL entry means that the sample uses its
    /// reference image. NULL: every sample uses its reference image.
    pub reference_ids: *const *const c_char,
    /// N `data_type`s: only samples whose type is among the configured `face_types` count. NULL: every sample counts.
    pub data_types: *const *const c_char,
    /// `[N,5,2]` landmarks of the generated faces, pixels, in the order of `facegrad_face`. A sample whose row is NaN
    /// is detected. NULL: all samples are detected. This tensor and those below may be on any device, also in float64.
    pub landmarks: *const RawTensor,
    /// `[N,4]` boxes of the generated faces (x1, y1, x2, y2), pixels; rows of NaN and NULL as above.
    pub boxes: *const RawTensor,
    /// `[R,5,2]` landmarks of the faces in the R `references`, pixels; rows of NaN and NULL as above.
    pub reference_landmarks: *const RawTensor,
    /// `[R,4]` boxes of the faces in the R `references`, pixels; rows of NaN and NULL as above.
    pub reference_boxes: *const RawTensor,
    /// `[N]` weights of the samples in the mean, from 0 to 1e30. NULL: 1 each.
    pub sample_weights: *const RawTensor,
    /// N names, each unique in the training set, under which `norm_stats` remembers statistics. A sample without a
    /// name (a NULL entry, or NULL) is identified by its reference image.
    pub sample_ids: *const *const c_char,
}

/// What happened to one sample.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct facegrad_sample {
    /// `sizeof(facegrad_sample)`; in an array, the first element's is the distance between elements.
    pub struct_size: usize,
    /// `FACEGRAD_SAMPLE_*`.
    pub outcome: i32,
    /// `FACEGRAD_LOCATED_*`.
    pub located: i32,
    /// `FACEGRAD_ALIGNMENT_*`.
    pub alignment: i32,
    /// 1 where `bbox` is set.
    pub has_bbox: i32,
    /// 1 where `landmarks` is set.
    pub has_landmarks: i32,
    /// Cosine similarity to the reference in [-1, 1]; NaN where none was computed.
    pub similarity: f32,
    /// The sample's weight in the mean.
    pub weight: f32,
    /// Detection score in [0, 1]; NaN where the face was not detected.
    pub score: f32,
    /// The generated face's box x1, y1, x2, y2, pixels.
    pub bbox: [f32; 4],
    /// The generated face's landmarks, pixels, in the order of `facegrad_face`.
    pub landmarks: [f32; 10],
    /// `FACEGRAD_DECODED_*`.
    pub decoded: i32,
    /// 1 where the whole image was decoded without a gradient, for detection or for GroupNorm's statistics.
    pub exact_pass: i32,
    /// The cosine between the gradients through the window and through the whole image; NaN at steps without an audit.
    pub audit_cosine: f32,
    /// The norm of the gradient through the window, divided by that through the whole image; NaN at steps without an
    /// audit.
    pub audit_norm_ratio: f32,
}

/// The value of a loss.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct facegrad_result {
    /// `sizeof(facegrad_result)`.
    pub struct_size: usize,
    /// `face_loss_weight · Σ wᵢ·(1 − min(cosᵢ, target_similarity)) / counted`: the value that is differentiated. With
    /// `levels`, the weighted sum of this over the levels. 0 where no sample counts.
    pub loss: f64,
    /// Mean of `1 − cos` over the counted samples, without weights, in [0, 2]; 0 where none counts.
    pub mean_distance: f64,
    /// How many samples count.
    pub counted: i64,
    /// How many samples there are.
    pub samples: i64,
    /// How many whole images were decoded without a gradient, for detection or for GroupNorm's statistics.
    pub exact_passes: i64,
    /// The smallest `audit_cosine` of all samples; NaN at steps without an audit.
    pub audit_cosine: f64,
    /// `audit_norm_ratio` of the same sample; NaN at steps without an audit.
    pub audit_norm_ratio: f64,
    /// How many of `level_distances` are set: one for each of the configured `levels`, then one for the embedding where
    /// it is not among them. 0 without `levels`, and where no sample counts.
    pub levels: i64,
    /// Per level the mean of `1 − cos` over the counted samples, in the order of the configuration.
    pub level_distances: [f64; 8],
}

/// What a trainer knows at one step, for a batch of N. Zero every field that is not used.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct facegrad_step {
    /// `sizeof(facegrad_step)`.
    pub struct_size: usize,
    /// The noisy latents in the prediction's layout; NULL where the model predicts x0 itself.
    pub x_t: *const RawTensor,
    /// The model's prediction, in its own packing; float32, float16 or bfloat16.
    pub prediction: *const RawTensor,
    /// `[N]` noise levels in the unit that the configuration's `prediction.time` says; on any device, also in float64.
    pub times: *const RawTensor,
    /// `[N,2]` pairs a, b of x0 = a·x_t + b·prediction, for `prediction.kind` "custom" alone; on any device.
    pub coefficients: *const RawTensor,
    /// Height of the unpacked latent in latent pixels. Packings of tokens need it; 0 elsewhere.
    pub latent_height: i64,
    /// Width of the unpacked latent, likewise.
    pub latent_width: i64,
    /// The number of the step, for `every_n_steps` and `audit_every`.
    pub number: u64,
    /// The norm of the main loss's gradient with respect to the prediction, for `gradient_limit`; 0: not known.
    pub gradient_norm: f64,
}

// SAFETY: all five are repr(C), start with `struct_size`, and hold only numbers and raw pointers,
// for which zero bytes are valid.
unsafe impl Versioned for facegrad_face {
    const NAME: &'static str = "facegrad_face";
}
// SAFETY: as above.
unsafe impl Versioned for facegrad_targets {
    const NAME: &'static str = "facegrad_targets";
}
// SAFETY: as above.
unsafe impl Versioned for facegrad_sample {
    const NAME: &'static str = "facegrad_sample";
}
// SAFETY: as above.
unsafe impl Versioned for facegrad_result {
    const NAME: &'static str = "facegrad_result";
}
// SAFETY: as above.
unsafe impl Versioned for facegrad_step {
    const NAME: &'static str = "facegrad_step";
}

// The layout of ABI version 1: growing is allowed, moving is not.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<RawTensor>() == 48 && offset_of!(RawTensor, byte_offset) == 40);
    assert!(size_of::<facegrad_face>() == 80 && offset_of!(facegrad_face, landmarks) == 40);
    assert!(size_of::<facegrad_targets>() == 80 && offset_of!(facegrad_targets, sample_ids) == 72);
    assert!(size_of::<facegrad_sample>() == 112 && offset_of!(facegrad_sample, decoded) == 96);
    assert!(size_of::<facegrad_step>() == 72 && offset_of!(facegrad_step, gradient_norm) == 64);
    assert!(size_of::<facegrad_result>() == 136 && offset_of!(facegrad_result, levels) == 64);
};
