//! The score without a gradient.

use crate::common::{Tensors, fixture};
use crate::host::*;
use facegrad::ffi::types::*;
use std::ffi::CString;
use std::ptr::{null, null_mut};

#[test]
fn an_evaluator_finds_compares_and_refuses() {
    let mut context = null_mut();
    // SAFETY: every pointer is a local, a string or NULL, and tells its size.
    unsafe {
        assert_eq!((api().context_new)(null(), &mut context), 0);
        let mut evaluator = null_mut();
        let status = (api().evaluator_new)(context, c"{}".as_ptr(), &mut evaluator);
        expect(status, 8, "expected `detector` and `recogniser`");
        assert!(evaluator.is_null());
        let json = format!(
            r#"{{"detector": {{"path": {:?}, "det_sizes": [128], "engine": "torch"}}, "recogniser": {:?}, "engine": "torch"}}"#,
            fixture("detect/detector_9.onnx"),
            fixture("nets/small.onnx")
        );
        let json = CString::new(json).unwrap();
        let status = (api().evaluator_new)(context, json.as_ptr(), &mut evaluator);
        assert_eq!(status, 0, "{}", last_error());
        let picture = Tensors::open("detect/synthetic.safetensors").get("image");
        let shape = picture.size();
        let floats: Vec<f32> = Vec::try_from(picture.f_reshape([-1i64]).unwrap()).unwrap();
        let image = tensor(floats, &shape);

        // Counting, then faces with embeddings and crops.
        let mut count = 0;
        let status = (api().evaluator_faces)(
            evaluator,
            &image.raw,
            null_mut(),
            0,
            null(),
            &mut count,
            null_mut(),
        );
        assert_eq!(status, 0, "{}", last_error());
        assert!(count > 2);
        let mut faces = vec![std::mem::zeroed::<facegrad_face>(); 2];
        faces[0].struct_size = size_of::<facegrad_face>();
        let rows = tensor(vec![9.0; 2 * 32], &[2, 32]);
        let status = (api().evaluator_faces)(
            evaluator,
            &image.raw,
            faces.as_mut_ptr(),
            2,
            &rows.raw,
            &mut count,
            null_mut(),
        );
        assert_eq!(status, 0, "{}", last_error());
        let norm: f32 = rows.data[..32].iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-4 && faces[0].score >= faces[1].score);
        let narrow = tensor(vec![0.0; 2 * 31], &[2, 31]);
        let status = (api().evaluator_faces)(
            evaluator,
            &image.raw,
            faces.as_mut_ptr(),
            2,
            &narrow.raw,
            &mut count,
            null_mut(),
        );
        expect(status, 5, "embeddings: expected the shape [2, 32]");
        let crops = tensor(vec![0.0; 2 * 3 * 112 * 112], &[2, 3, 112, 112]);
        let status = (api().evaluator_align)(
            evaluator,
            &image.raw,
            faces.as_ptr(),
            2,
            &crops.raw,
            null_mut(),
        );
        assert_eq!(status, 0, "{}", last_error());
        assert!(crops.data.iter().any(|&v| v > 0.5));

        // The image compared with itself, by image and by id.
        let mut targets: facegrad_targets = std::mem::zeroed();
        targets.struct_size = size_of::<facegrad_targets>();
        let mut sample: facegrad_sample = std::mem::zeroed();
        sample.struct_size = size_of::<facegrad_sample>();
        let mut result: facegrad_result = std::mem::zeroed();
        result.struct_size = size_of::<facegrad_result>();
        let status = (api().evaluator_compare)(
            evaluator,
            &image.raw,
            &targets,
            &mut sample,
            1,
            &mut result,
            null_mut(),
        );
        expect(status, 2, "has no reference");
        targets.references = &image.raw;
        let status = (api().evaluator_compare)(
            evaluator,
            &image.raw,
            &targets,
            &mut sample,
            1,
            &mut result,
            null_mut(),
        );
        assert_eq!(status, 0, "{}", last_error());
        assert!((sample.similarity - 1.0).abs() < 1e-5 && result.counted == 1);
        let ids = [c"anna".as_ptr()];
        let status = (api().evaluator_find)(
            evaluator,
            &image.raw,
            ids.as_ptr(),
            1,
            &mut sample,
            1,
            &mut result,
            null_mut(),
        );
        expect(status, 2, "\"anna\" was not registered");
        let status =
            (api().evaluator_set_reference)(evaluator, ids[0], &image.raw, null(), null_mut());
        assert_eq!(status, 0, "{}", last_error());
        let status = (api().evaluator_find)(
            evaluator,
            &image.raw,
            ids.as_ptr(),
            1,
            &mut sample,
            0,
            &mut result,
            null_mut(),
        );
        expect(status, 2, "samples_capacity");
        let status = (api().evaluator_find)(
            evaluator,
            &image.raw,
            ids.as_ptr(),
            1,
            &mut sample,
            1,
            &mut result,
            null_mut(),
        );
        assert_eq!(status, 0, "{}", last_error());
        assert!(sample.similarity > 0.999 && sample.outcome == FACEGRAD_SAMPLE_COUNTED);
        assert_eq!((api().evaluator_remove_reference)(evaluator, ids[0]), 0);
        expect(
            (api().evaluator_remove_reference)(evaluator, ids[0]),
            2,
            "not registered",
        );
        let status = (api().evaluator_faces)(
            context.cast(),
            &image.raw,
            null_mut(),
            0,
            null(),
            &mut count,
            null_mut(),
        );
        expect(
            status,
            9,
            "expected a facegrad_evaluator, got a facegrad_context",
        );
        (api().evaluator_free)(evaluator);
        (api().evaluator_free)(evaluator);
        (api().context_free)(context);
    }
}
