//! What a host may get wrong.

use crate::host::*;
use facegrad::ffi::types::*;
use facegrad::tensor::RawTensor;
use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

#[test]
fn bad_tensors_are_refused_and_outputs_stay_untouched() {
    let (host, batch) = (Host::new(), Batch::new());
    let targets = batch.targets();
    let with = |change: &dyn Fn(&mut RawTensor)| {
        let mut raw = batch.images.raw;
        change(&mut raw);
        raw
    };
    let shape = [3i64, 3, 96, 0];
    let huge = [i64::MAX, 3, 96, 80];
    let minus = [-1i64, 3, 96, 80];
    let backwards = [23040i64, 7680, 80, -1];
    let cases: Vec<(RawTensor, i32, &str)> = vec![
        (
            with(&|t| t.ndim = 3),
            FACEGRAD_ERR_SHAPE,
            "images: expected [N,3,H,W]",
        ),
        (with(&|t| t.ndim = 99), FACEGRAD_ERR_SHAPE, "99"),
        (with(&|t| t.ndim = -1), FACEGRAD_ERR_SHAPE, "-1"),
        (with(&|t| t.dtype_bits = 64), FACEGRAD_ERR_DTYPE, "Double"),
        (with(&|t| t.dtype_lanes = 4), FACEGRAD_ERR_DTYPE, "4 lanes"),
        (
            with(&|t| t.dtype_code = 0),
            FACEGRAD_ERR_DTYPE,
            "expected float32",
        ),
        (with(&|t| t.device_type = 2), FACEGRAD_ERR_DEVICE, "cuda:0"),
        (with(&|t| t.device_type = 13), FACEGRAD_ERR_DEVICE, "13"),
        (
            with(&|t| t.data = null_mut()),
            FACEGRAD_ERR_NULL,
            "data is NULL",
        ),
        (
            with(&|t| t.shape = null_mut()),
            FACEGRAD_ERR_NULL,
            "shape is NULL",
        ),
        (with(&|t| t.byte_offset = 2), FACEGRAD_ERR_LAYOUT, "aligned"),
        (
            with(&|t| t.byte_offset = u64::MAX - 3),
            FACEGRAD_ERR_LAYOUT,
            "byte_offset",
        ),
        (
            with(&|t| t.shape = shape.as_ptr().cast_mut()),
            FACEGRAD_ERR_SHAPE,
            "no pixels",
        ),
        (
            with(&|t| t.shape = huge.as_ptr().cast_mut()),
            FACEGRAD_ERR_SHAPE,
            "more bytes",
        ),
        (
            with(&|t| t.shape = minus.as_ptr().cast_mut()),
            FACEGRAD_ERR_SHAPE,
            "negative",
        ),
        (
            with(&|t| t.strides = backwards.as_ptr().cast_mut()),
            FACEGRAD_ERR_LAYOUT,
            "negative stride",
        ),
    ];
    for (raw, status, words) in &cases {
        expect(batch.run(&host, &targets, raw).0, *status, words);
        assert!(
            batch.gradient.data.iter().all(|g| *g == 7.0),
            "{words}: the output was touched"
        );
    }
    // A stream on the CPU, and an output that does not fit.
    let mut result = result();
    // SAFETY: every pointer but the stream is to a local; the stream is refused unread.
    unsafe {
        let stream = std::ptr::without_provenance_mut::<c_void>(0x10);
        let status = (api().loss_images)(
            host.loss,
            &batch.images.raw,
            &targets,
            null(),
            null_mut(),
            0,
            &mut result,
            stream,
        );
        expect(
            status,
            FACEGRAD_ERR_DEVICE,
            "expected NULL for a CPU context",
        );
        let status = (api().loss_images)(
            host.loss,
            &batch.images.raw,
            &targets,
            &batch.landmarks.raw,
            null_mut(),
            0,
            &mut result,
            null_mut(),
        );
        expect(
            status,
            FACEGRAD_ERR_SHAPE,
            "gradient: expected the shape [3, 3, 96, 80]",
        );
    }
    assert_eq!(result.loss, -1.0, "outputs stay untouched");
    batch.good(&host);
}

#[test]
fn structs_grow_both_ways() {
    let (host, batch) = (Host::new(), Batch::new());
    let good = batch.targets();
    // An older host: a struct that ends before the weights.
    let mut older = good;
    older.struct_size = std::mem::offset_of!(facegrad_targets, sample_weights);
    let (status, loss) = batch.run(&host, &older, &batch.images.raw);
    assert_eq!(status, 0, "{}", last_error());
    assert!(
        (loss - batch.want.numbers("loss")[0]).abs() > 1e-7,
        "the weights were not read"
    );
    // A newer host: fields that this library does not know, zero and not.
    #[repr(C)]
    struct Newer {
        known: facegrad_targets,
        extra: [usize; 2],
    }
    let mut newer = Newer {
        known: good,
        extra: [0; 2],
    };
    newer.known.struct_size = size_of::<Newer>();
    let (status, _) = batch.run(&host, (&raw const newer).cast(), &batch.images.raw);
    assert_eq!(status, 0, "{}", last_error());
    newer.extra[1] = 1;
    let (status, _) = batch.run(&host, (&raw const newer).cast(), &batch.images.raw);
    expect(status, FACEGRAD_ERR_UNSUPPORTED, "update facegrad");
    for size in [0, 3, usize::MAX] {
        let mut wrong = good;
        wrong.struct_size = size;
        expect(
            batch.run(&host, &wrong, &batch.images.raw).0,
            FACEGRAD_ERR_ARGUMENT,
            "struct_size",
        );
    }
    batch.good(&host);
}

#[test]
fn handles_that_are_none_are_errors_and_never_crashes() {
    let (host, batch) = (Host::new(), Batch::new());
    let other = Host::new();
    let freed = other.loss;
    drop(other);
    let targets = batch.targets();
    let run = |loss: *mut facegrad_loss| {
        // SAFETY: every pointer but the handle is to a local.
        unsafe {
            (api().loss_images)(
                loss,
                &batch.images.raw,
                &targets,
                null(),
                null_mut(),
                0,
                null_mut(),
                null_mut(),
            )
        }
    };
    expect(run(freed), FACEGRAD_ERR_HANDLE, "freed or never was");
    expect(
        run(host.context.cast()),
        FACEGRAD_ERR_HANDLE,
        "got a facegrad_context",
    );
    expect(
        run(std::ptr::without_provenance_mut(0xdead_beef)),
        FACEGRAD_ERR_HANDLE,
        "never was",
    );
    expect(
        run(null_mut()),
        FACEGRAD_ERR_NULL,
        "loss: expected a facegrad_loss",
    );
    // Freeing NULL, twice, or as another type does nothing.
    (api().loss_free)(null_mut());
    (api().loss_free)(freed);
    (api().detector_free)(host.loss.cast());
    batch.good(&host);
}

#[test]
fn null_is_refused_everywhere() {
    let (host, batch) = (Host::new(), Batch::new());
    let targets = batch.targets();
    let mut graph = null_mut();
    let a = api();
    // SAFETY: every pointer is NULL or to a local.
    unsafe {
        assert_eq!((a.graph_new)(host.context, &mut graph), 0);
        let mut node = 0i64;
        let mut count = 0usize;
        let (mut d, mut b, mut l, mut g) = (null_mut(), null_mut(), null_mut(), null_mut());
        let image = &raw const batch.images.raw;
        let times = &raw const batch.weights.raw;
        let cases: [(&str, i32); 37] = [
            ("out", (a.context_new)(null(), null_mut())),
            ("context", (a.detector_new)(null(), c"{}".as_ptr(), &mut d)),
            ("config", (a.detector_new)(host.context, null(), &mut d)),
            (
                "out",
                (a.detector_new)(host.context, c"{}".as_ptr(), null_mut()),
            ),
            (
                "detector",
                (a.detector_detect)(null_mut(), image, null_mut(), 0, &mut count, null_mut()),
            ),
            ("context", (a.backbone_new)(null(), c"{}".as_ptr(), &mut b)),
            ("config", (a.backbone_new)(host.context, null(), &mut b)),
            (
                "out",
                (a.backbone_new)(host.context, c"{}".as_ptr(), null_mut()),
            ),
            (
                "backbone",
                (a.backbone_embed)(null_mut(), image, null(), 0, image, null_mut()),
            ),
            (
                "images",
                (a.backbone_embed)(host.backbone, null(), null(), 0, image, null_mut()),
            ),
            (
                "faces",
                (a.backbone_embed)(host.backbone, image, null(), 2, image, null_mut()),
            ),
            (
                "faces",
                (a.backbone_align)(host.backbone, image, null(), 2, image, null_mut()),
            ),
            (
                "context",
                (a.loss_new)(null(), null(), host.backbone, null(), null(), &mut l),
            ),
            (
                "out",
                (a.loss_new)(
                    host.context,
                    null(),
                    host.backbone,
                    null(),
                    null(),
                    null_mut(),
                ),
            ),
            (
                "loss",
                (a.loss_set_reference)(null_mut(), c"x".as_ptr(), image, null(), null_mut()),
            ),
            (
                "id",
                (a.loss_set_reference)(host.loss, null(), image, null(), null_mut()),
            ),
            (
                "images",
                (a.loss_set_reference)(host.loss, c"x".as_ptr(), null(), null(), null_mut()),
            ),
            ("id", (a.loss_remove_reference)(host.loss, null())),
            ("path", (a.loss_save)(host.loss, null())),
            ("path", (a.loss_restore)(host.loss, null())),
            (
                "images",
                (a.loss_images)(
                    host.loss,
                    null(),
                    &targets,
                    null(),
                    null_mut(),
                    0,
                    null_mut(),
                    null_mut(),
                ),
            ),
            (
                "targets",
                (a.loss_images)(
                    host.loss,
                    image,
                    null(),
                    null(),
                    null_mut(),
                    0,
                    null_mut(),
                    null_mut(),
                ),
            ),
            (
                "context",
                (a.sampler_step)(
                    null(),
                    image,
                    image,
                    image,
                    image,
                    null(),
                    image,
                    null_mut(),
                ),
            ),
            (
                "x_t",
                (a.sampler_step)(
                    host.context,
                    null(),
                    image,
                    times,
                    times,
                    null(),
                    image,
                    null_mut(),
                ),
            ),
            (
                "next_times",
                (a.sampler_step)(
                    host.context,
                    image,
                    image,
                    times,
                    null(),
                    null(),
                    image,
                    null_mut(),
                ),
            ),
            (
                "next",
                (a.sampler_step)(
                    host.context,
                    image,
                    image,
                    times,
                    times,
                    null(),
                    null(),
                    null_mut(),
                ),
            ),
            (
                "node",
                (a.graph_sampler_step)(graph, 0, 0, times, times, null(), null_mut(), null_mut()),
            ),
            ("context", (a.graph_new)(null(), &mut g)),
            ("out", (a.graph_new)(host.context, null_mut())),
            (
                "graph",
                (a.graph_input)(null_mut(), image, 0, &mut node, null_mut()),
            ),
            (
                "tensor",
                (a.graph_input)(graph, null(), 0, &mut node, null_mut()),
            ),
            (
                "node",
                (a.graph_input)(graph, image, 0, null_mut(), null_mut()),
            ),
            (
                "loss",
                (a.graph_face_loss)(
                    graph,
                    0,
                    null_mut(),
                    &targets,
                    null_mut(),
                    0,
                    null_mut(),
                    &mut node,
                    null_mut(),
                ),
            ),
            ("ndim", (a.graph_shape)(graph, 0, null_mut(), 0, null_mut())),
            ("tensor", (a.graph_read)(graph, 0, null(), null_mut())),
            ("tensor", (a.graph_gradient)(graph, 0, null(), null_mut())),
            ("count", (a.debug_live)(null(), null_mut())),
        ];
        // Each failed before the next ran, so only the statuses are left to look at.
        for (at, (argument, status)) in cases.iter().enumerate() {
            assert_eq!(*status, FACEGRAD_ERR_NULL, "case {at}: {argument}");
        }
        assert!(d.is_null() && b.is_null() && l.is_null() && g.is_null());
        expect(
            (a.context_new)(null(), null_mut()),
            FACEGRAD_ERR_NULL,
            "out: expected a place",
        );
    }
    (a.graph_free)(graph);
    batch.good(&host);
}

#[test]
fn configurations_name_the_mistake() {
    let host = Host::new();
    let mut out = null_mut();
    let mut loss = |json: &CStr| {
        // SAFETY: strings and a local.
        unsafe {
            (api().loss_new)(
                host.context,
                null(),
                host.backbone,
                null(),
                json.as_ptr(),
                &mut out,
            )
        }
    };
    expect(
        loss(cr#"{"face_align_mod": "kps"}"#),
        FACEGRAD_ERR_CONFIG,
        "did you mean `face_align_mode`?",
    );
    expect(
        loss(cr#"{"face_align_mode": "kp"}"#),
        FACEGRAD_ERR_CONFIG,
        "did you mean `kps`?",
    );
    expect(loss(c"{"), FACEGRAD_ERR_CONFIG, "loss config");
    expect(loss(c"[]"), FACEGRAD_ERR_CONFIG, "loss config");
    expect(loss(c"\xff"), FACEGRAD_ERR_ARGUMENT, "UTF-8");
    expect(
        loss(cr#"{"arcface_weights": "x.pth"}"#),
        FACEGRAD_ERR_CONFIG,
        "give one of them",
    );
    let mut context = null_mut();
    // SAFETY: strings and a local.
    unsafe {
        expect(
            (api().context_new)(cr#"{"device": "tpu"}"#.as_ptr(), &mut context),
            FACEGRAD_ERR_CONFIG,
            "cuda:N",
        );
        expect(
            (api().loss_new)(host.context, null(), null(), null(), null(), &mut out),
            FACEGRAD_ERR_CONFIG,
            "arcface_weights",
        );
        let other = Host::new();
        let status = (api().loss_new)(
            other.context,
            null(),
            host.backbone,
            null(),
            null(),
            &mut out,
        );
        expect(status, FACEGRAD_ERR_ARGUMENT, "another context");
    }
    assert!(out.is_null() && context.is_null());
}
