//! A decoder of the host's, and levels, through C.

use crate::host::*;
use facegrad::ffi::types::*;
use facegrad::tensor::RawTensor;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

/// A host whose pictures are half its latents. It counts the tickets that are open.
struct Halving {
    image: Box<Held>,
    fails: bool,
    open: Vec<u64>,
}

unsafe extern "C" fn decode(
    latents: *const RawTensor,
    ticket: u64,
    image: *mut RawTensor,
    user_data: *mut c_void,
) -> i32 {
    // SAFETY: the test's own memory, and the library's for the time of the call.
    unsafe {
        let host = &mut *user_data.cast::<Halving>();
        let latents = &*latents;
        let shape = std::slice::from_raw_parts(latents.shape, latents.ndim as usize);
        let count = shape.iter().product::<i64>() as usize;
        let values = std::slice::from_raw_parts(latents.data.cast::<f32>(), count);
        host.image = tensor(values.iter().map(|v| v / 2.0).collect(), shape);
        image.write(host.image.raw);
        if ticket != 0 {
            host.open.push(ticket);
        }
        host.fails as i32
    }
}

unsafe extern "C" fn vjp(
    ticket: u64,
    gradient: *const RawTensor,
    latents: *mut RawTensor,
    user_data: *mut c_void,
) -> i32 {
    // SAFETY: as above.
    unsafe {
        let host = &mut *user_data.cast::<Halving>();
        host.open.retain(|open| *open != ticket);
        if !gradient.is_null() {
            return decode(gradient, 0, latents, user_data);
        }
    }
    0
}

#[test]
fn a_hosts_decoder_and_its_gradient() {
    let host = Host::new();
    let mut halving = Halving {
        image: tensor(vec![], &[0]),
        fails: false,
        open: vec![],
    };
    let user_data = (&raw mut halving).cast::<c_void>();
    let latents = tensor((0..48).map(|v| v as f32 / 48.0).collect(), &[1, 3, 4, 4]);
    let out = tensor(vec![0.0; 48], &[1, 3, 4, 4]);
    let (mut vae, mut graph, mut input, mut image) = (null_mut(), null_mut(), -1, -1);
    let config = cr#"{"image_range": "unit"}"#.as_ptr();
    // SAFETY: every pointer is to a local.
    unsafe {
        let make = api().vae_new_from_functions;
        let status = make(host.context, None, Some(vjp), user_data, config, &mut vae);
        expect(status, FACEGRAD_ERR_NULL, "two functions");
        let wrong = cr#"{"image_rnge": "unit"}"#.as_ptr();
        let status = make(
            host.context,
            Some(decode),
            Some(vjp),
            user_data,
            wrong,
            &mut vae,
        );
        expect(status, FACEGRAD_ERR_CONFIG, "did you mean `image_range`");
        let status = make(
            host.context,
            Some(decode),
            Some(vjp),
            user_data,
            config,
            &mut vae,
        );
        assert_eq!(status, 0, "{}", last_error());
        assert_eq!((api().graph_new)(host.context, &mut graph), 0);
        let input_of = api().graph_input;
        assert_eq!(input_of(graph, &latents.raw, 1, &mut input, null_mut()), 0);
        let decoded = api().graph_decode;
        let status = decoded(graph, input, vae, null(), &mut image, null_mut());
        assert_eq!(status, 0, "{}", last_error());
        assert_eq!((api().graph_read)(graph, image, &out.raw, null_mut()), 0);
        assert!(
            out.data
                .iter()
                .zip(&latents.data)
                .all(|(o, l)| *o == l / 2.0)
        );
        assert_eq!((*user_data.cast::<Halving>()).open.len(), 1);
        assert_eq!((api().graph_backward)(graph, image, null(), null_mut()), 0);
        assert_eq!(
            (api().graph_gradient)(graph, input, &out.raw, null_mut()),
            0
        );
        assert!(out.data[1..].iter().all(|g| *g == 0.5), "{:?}", out.data);
        // A picture that nobody asks the gradient of is let go with its tape.
        assert_eq!(
            decoded(graph, input, vae, null(), &mut image, null_mut()),
            0
        );
        (*user_data.cast::<Halving>()).fails = true;
        let status = decoded(graph, input, vae, null(), &mut image, null_mut());
        expect(status, FACEGRAD_ERR_CALLBACK, "decoder failed with 1");
        (api().graph_free)(graph);
        (api().vae_free)(vae);
    }
    drop(host);
    assert!(halving.open.is_empty(), "{:?}", halving.open);
}

#[test]
fn levels_and_their_distances() {
    let (host, batch) = (Host::new(), Batch::new());
    let mut loss = null_mut();
    let mut result = result();
    let (mut graph, mut crops, mut node) = (null_mut(), -1, -1);
    let crop = tensor(vec![0.5; 3 * 112 * 112], &[1, 3, 112, 112]);
    let (mut shape, mut ndim) = ([0i64; 4], 0);
    // SAFETY: every pointer is to a local.
    unsafe {
        let made = |json: &std::ffi::CStr, loss: &mut *mut facegrad_loss| {
            let new = api().loss_new;
            new(
                host.context,
                null(),
                host.backbone,
                null(),
                json.as_ptr(),
                loss,
            )
        };
        let wrong = made(cr#"{"levels": {"layer9": 1}}"#, &mut loss);
        expect(wrong, FACEGRAD_ERR_CONFIG, "no \"layer9\", but layer1");
        let json = cr#"{"face_align_mode": "kps", "face_loss_weight": 1, "levels": {"layer4": 0.4, "embedding": 1}}"#;
        assert_eq!(made(json, &mut loss), 0, "{}", last_error());
        let status = (api().loss_images)(
            loss,
            &batch.images.raw,
            &batch.targets(),
            null(),
            null_mut(),
            0,
            &mut result,
            null_mut(),
        );
        assert_eq!(status, 0, "{}", last_error());
        assert_eq!(result.levels, 2);
        assert!((result.level_distances[1] - result.mean_distance).abs() < 1e-6);
        assert!(result.level_distances[0] > 0.0 && result.level_distances[2] == 0.0);
        assert_eq!((api().graph_new)(host.context, &mut graph), 0);
        let input = api().graph_input;
        assert_eq!(input(graph, &crop.raw, 1, &mut crops, null_mut()), 0);
        let features = api().graph_features;
        let level = c"layer4".as_ptr();
        let status = features(graph, crops, host.backbone, level, &mut node, null_mut());
        assert_eq!(status, 0, "{}", last_error());
        (api().graph_shape)(graph, node, shape.as_mut_ptr(), 4, &mut ndim);
        assert_eq!((shape, ndim), ([1, 24, 7, 7], 4));
        let status = features(graph, node, host.backbone, null(), &mut node, null_mut());
        expect(status, FACEGRAD_ERR_SHAPE, "[M,3,112,112]");
    }
    (api().graph_free)(graph);
    (api().loss_free)(loss);
}
