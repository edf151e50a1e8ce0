//! What the C ABI itself costs: calls whose samples are all gated, so that no network runs. A call goes
//! through validation, the registry, the worker thread, the gate, the report, and back.

use criterion::{Criterion, criterion_group, criterion_main};
use facegrad::ffi::api::{facegrad_api, facegrad_get_api};
use facegrad::ffi::types::*;
use facegrad::tensor::RawTensor;
use std::ffi::CString;
use std::hint::black_box;
use std::ptr::{null, null_mut};

fn api() -> &'static facegrad_api {
    // SAFETY: the table is static.
    unsafe { facegrad_get_api(1).as_ref() }.expect("ABI version 1")
}

fn image(data: &mut [f32], shape: &mut [i64; 4]) -> RawTensor {
    RawTensor {
        data: data.as_mut_ptr().cast(),
        device_type: 1,
        device_id: 0,
        ndim: 4,
        dtype_code: 2,
        dtype_bits: 32,
        dtype_lanes: 1,
        shape: shape.as_mut_ptr(),
        strides: null_mut(),
        byte_offset: 0,
    }
}

fn calls(c: &mut Criterion) {
    let assets = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/demo_assets/recogniser.safetensors"
    );
    let config = CString::new(format!(
        r#"{{"arcface_weights": "{assets}", "face_align_mode": "kps"}}"#
    ))
    .unwrap();
    let (mut context, mut loss, mut graph) = (null_mut(), null_mut(), null_mut());
    // SAFETY: strings and locals.
    unsafe {
        assert_eq!((api().context_new)(null(), &mut context), 0);
        assert_eq!(
            (api().loss_new)(context, null(), null(), null(), config.as_ptr(), &mut loss),
            0
        );
        assert_eq!((api().graph_new)(context, &mut graph), 0);
    }
    let (mut data, mut shape) = (vec![0.5f32; 3 * 64 * 64], [1, 3, 64, 64]);
    let raw = image(&mut data, &mut shape);
    let (mut out, mut out_shape) = (vec![0f32; 3 * 64 * 64], [1, 3, 64, 64]);
    let gradient = image(&mut out, &mut out_shape);
    let types = [c"landscape".as_ptr()];
    // SAFETY: numbers and NULL pointers.
    let mut targets: facegrad_targets = unsafe { std::mem::zeroed() };
    targets.struct_size = size_of::<facegrad_targets>();
    targets.references = &raw;
    targets.data_types = types.as_ptr();

    c.bench_function("loss_images, every sample gated", |b| {
        b.iter(|| {
            // SAFETY: every pointer is to a local.
            let status = unsafe {
                (api().loss_images)(
                    loss,
                    &raw,
                    &targets,
                    &gradient,
                    null_mut(),
                    0,
                    null_mut(),
                    null_mut(),
                )
            };
            assert_eq!(black_box(status), 0);
        })
    });
    c.bench_function("graph_shape of an unknown node (an error)", |b| {
        b.iter(|| {
            let mut ndim = 0;
            // SAFETY: every pointer is to a local.
            let status = unsafe { (api().graph_shape)(graph, 7, null_mut(), 0, &mut ndim) };
            assert_eq!(black_box(status), FACEGRAD_ERR_ARGUMENT);
        })
    });
    (api().graph_free)(graph);
    (api().loss_free)(loss);
    (api().context_free)(context);
}

criterion_group!(benches, calls);
criterion_main!(benches);
