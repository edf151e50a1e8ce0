//! The C ABI as a host meets it: bad input, lifetimes, panics, forks, growing structs. Called through
//! the table of functions, as a plugin host does.
#![cfg(feature = "torch")]

#[path = "../common/mod.rs"]
mod common;
mod evaluator;
mod host;
mod host_vae;
mod lifetimes;
mod refusals;
mod state;

use facegrad::ffi::types::*;
use host::*;
use std::ptr::{null, null_mut};

#[test]
fn value_gradient_and_report_come_back() {
    let (host, batch) = (Host::new(), Batch::new());
    let mut samples = [facegrad_sample {
        struct_size: size_of::<facegrad_sample>(),
        // SAFETY: numbers.
        ..unsafe { std::mem::zeroed() }
    }; 3];
    let mut result = result();
    // SAFETY: every pointer is to a local.
    let status = unsafe {
        (api().loss_images)(
            host.loss,
            &batch.images.raw,
            &batch.targets(),
            &batch.gradient.raw,
            samples.as_mut_ptr(),
            3,
            &mut result,
            null_mut(),
        )
    };
    assert_eq!(status, 0, "{}", last_error());
    assert_eq!((result.counted, result.samples), (3, 3));
    for (got, want) in samples.iter().zip(batch.want.numbers("similarity")) {
        assert!((f64::from(got.similarity) - want).abs() < 1e-5);
        assert_eq!(
            (got.outcome, got.alignment),
            (FACEGRAD_SAMPLE_COUNTED, FACEGRAD_ALIGNMENT_KPS)
        );
    }
    let worst = batch
        .gradient
        .data
        .iter()
        .zip(batch.want.numbers("gradient"))
        .map(|(g, w)| (f64::from(*g) - w).abs());
    assert!(worst.fold(0.0, f64::max) < 1e-7);
    batch.good(&host);
}

#[test]
fn the_graph_gives_the_same_numbers() {
    let (host, batch) = (Host::new(), Batch::new());
    batch.good(&host);
    let fused = batch.gradient.data.clone();
    let (mut graph, mut input, mut node) = (null_mut(), -1, -1);
    let value = tensor(vec![0.0], &[]);
    let (mut shape, mut ndim) = ([0i64; 4], 0);
    // SAFETY: every pointer is to a local.
    unsafe {
        assert_eq!((api().graph_new)(host.context, &mut graph), 0);
        assert_eq!(
            (api().graph_input)(graph, &batch.images.raw, 1, &mut input, null_mut()),
            0,
            "{}",
            last_error()
        );
        let status = (api().graph_face_loss)(
            graph,
            input,
            host.loss,
            &batch.targets(),
            null_mut(),
            0,
            null_mut(),
            &mut node,
            null_mut(),
        );
        assert_eq!(status, 0, "{}", last_error());
        assert_eq!(
            (api().graph_read)(graph, node, &value.raw, null_mut()),
            0,
            "{}",
            last_error()
        );
        assert_eq!(
            (api().graph_shape)(graph, input, shape.as_mut_ptr(), 4, &mut ndim),
            0
        );
        assert_eq!((shape, ndim), ([3, 3, 96, 80], 4));
        assert_eq!(
            (api().graph_backward)(graph, node, null(), null_mut()),
            0,
            "{}",
            last_error()
        );
        assert_eq!(
            (api().graph_gradient)(graph, input, &batch.gradient.raw, null_mut()),
            0,
            "{}",
            last_error()
        );
        expect(
            (api().graph_read)(graph, 9, &value.raw, null_mut()),
            FACEGRAD_ERR_ARGUMENT,
            "2 node(s)",
        );
        expect(
            (api().graph_read)(graph, input, &value.raw, null_mut()),
            FACEGRAD_ERR_SHAPE,
            "shape of node 0",
        );
    }
    assert!((f64::from(value.data[0]) - batch.want.numbers("loss")[0]).abs() < 1e-6);
    assert_eq!(batch.gradient.data, fused);
    (api().graph_free)(graph);
}
