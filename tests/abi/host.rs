//! A host with a loss, and a batch for it.

use crate::common::{Tensors, fixture};
use facegrad::ffi::api::{facegrad_api, facegrad_get_api};
use facegrad::ffi::types::*;
use facegrad::tensor::RawTensor;
use std::ffi::{CStr, CString, c_char};
use std::ptr::{null, null_mut};

pub fn api() -> &'static facegrad_api {
    // SAFETY: the table is static.
    unsafe { facegrad_get_api(1).as_ref() }.unwrap()
}
/// A tensor over a vector.
pub struct Held {
    pub data: Vec<f32>,
    pub shape: Vec<i64>,
    pub raw: RawTensor,
}

pub fn tensor(data: Vec<f32>, shape: &[i64]) -> Box<Held> {
    let mut held = Box::new(Held {
        data,
        shape: shape.to_vec(),
        // SAFETY: numbers and NULL pointers.
        raw: unsafe { std::mem::zeroed() },
    });
    held.raw.data = held.data.as_mut_ptr().cast();
    held.raw.shape = held.shape.as_mut_ptr();
    held.raw.device_type = 1;
    held.raw.ndim = shape.len() as i32;
    (
        held.raw.dtype_code,
        held.raw.dtype_bits,
        held.raw.dtype_lanes,
    ) = (2, 32, 1);
    held
}

pub fn last_error() -> String {
    let mut needed = 0;
    let mut buffer = vec![0 as c_char; 4096];
    // SAFETY: the buffer has the length that is told.
    unsafe {
        (api().last_error)(buffer.as_mut_ptr(), buffer.len(), &mut needed);
        CStr::from_ptr(buffer.as_ptr())
            .to_string_lossy()
            .into_owned()
    }
}

pub fn expect(status: i32, want: i32, words: &str) {
    let text = last_error();
    assert_eq!(status, want, "{text}");
    assert!(text.contains(words), "expected \"{words}\" in: {text}");
}

pub struct Host {
    pub context: *mut facegrad_context,
    pub backbone: *mut facegrad_backbone,
    pub loss: *mut facegrad_loss,
}

impl Host {
    pub fn new() -> Host {
        let (mut context, mut backbone, mut loss) = (null_mut(), null_mut(), null_mut());
        let path = fixture("nets/small.safetensors");
        let json = CString::new(format!(r#"{{"path": {path:?}}}"#)).unwrap();
        // SAFETY: every pointer is a local or a string.
        unsafe {
            assert_eq!(
                (api().context_new)(null(), &mut context),
                0,
                "{}",
                last_error()
            );
            assert_eq!(
                (api().backbone_new)(context, json.as_ptr(), &mut backbone),
                0,
                "{}",
                last_error()
            );
            let config = cr#"{"face_align_mode": "kps"}"#;
            let status = (api().loss_new)(
                context,
                null(),
                backbone,
                null(),
                config.as_ptr(),
                &mut loss,
            );
            assert_eq!(status, 0, "{}", last_error());
        }
        Host {
            context,
            backbone,
            loss,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        (api().context_free)(self.context);
        (api().backbone_free)(self.backbone);
        (api().loss_free)(self.loss);
    }
}

pub struct Batch {
    pub images: Box<Held>,
    pub references: Box<Held>,
    pub landmarks: Box<Held>,
    pub reference_landmarks: Box<Held>,
    pub weights: Box<Held>,
    pub gradient: Box<Held>,
    pub want: Tensors,
}

impl Batch {
    pub fn new() -> Batch {
        let want = Tensors::open("chain/chain.safetensors");
        let floats = |name: &str| want.numbers(name).into_iter().map(|v| v as f32).collect();
        let shape = |name: &str| want.get(name).size();
        let take = |name: &str| tensor(floats(name), &shape(name));
        Batch {
            images: take("images"),
            references: take("references"),
            landmarks: take("landmarks"),
            reference_landmarks: take("reference_landmarks"),
            weights: take("weights"),
            gradient: tensor(vec![7.0; want.get("images").numel()], &shape("images")),
            want,
        }
    }

    pub fn targets(&self) -> facegrad_targets {
        // SAFETY: numbers and NULL pointers.
        let mut targets: facegrad_targets = unsafe { std::mem::zeroed() };
        targets.struct_size = size_of::<facegrad_targets>();
        targets.references = &self.references.raw;
        targets.landmarks = &self.landmarks.raw;
        targets.reference_landmarks = &self.reference_landmarks.raw;
        targets.sample_weights = &self.weights.raw;
        targets
    }

    /// One call with a gradient.
    pub fn run(
        &self,
        host: &Host,
        targets: *const facegrad_targets,
        images: *const RawTensor,
    ) -> (i32, f64) {
        let mut result = result();
        // SAFETY: the batch outlives the call.
        let status = unsafe {
            (api().loss_images)(
                host.loss,
                images,
                targets,
                &self.gradient.raw,
                null_mut(),
                0,
                &mut result,
                null_mut(),
            )
        };
        (status, result.loss)
    }

    pub fn good(&self, host: &Host) {
        let (status, loss) = self.run(host, &self.targets(), &self.images.raw);
        assert_eq!(status, 0, "{}", last_error());
        let want = self.want.numbers("loss")[0];
        assert!((loss - want).abs() <= 1e-5 * want, "{loss} for {want}");
    }
}

pub fn result() -> facegrad_result {
    facegrad_result {
        struct_size: size_of::<facegrad_result>(),
        loss: -1.0,
        mean_distance: -1.0,
        counted: -1,
        samples: -1,
        exact_passes: -1,
        audit_cosine: -1.0,
        audit_norm_ratio: -1.0,
        levels: 0,
        level_distances: [0.0; 8],
    }
}
