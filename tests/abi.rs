//! The C ABI as a host meets it: bad input, lifetimes, panics, forks, growing structs. Called through
//! the table of functions, as a plugin host does.
#![cfg(feature = "torch")]

mod common;

use common::{Tensors, fixture};
use facegrad::ffi::api::{facegrad_api, facegrad_get_api};
use facegrad::ffi::types::*;
use facegrad::tensor::RawTensor;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;

fn api() -> &'static facegrad_api {
    // SAFETY: the table is static.
    unsafe { facegrad_get_api(1).as_ref() }.unwrap()
}

/// Panics of one test poison nothing of another: every test has a context of its own. Only the count of
/// live handles is shared, so the tests that look at it hold this.
static COUNTING: Mutex<()> = Mutex::new(());

/// A tensor over a vector.
struct Held {
    data: Vec<f32>,
    shape: Vec<i64>,
    raw: RawTensor,
}

fn tensor(data: Vec<f32>, shape: &[i64]) -> Box<Held> {
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

fn last_error() -> String {
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

fn expect(status: i32, want: i32, words: &str) {
    let text = last_error();
    assert_eq!(status, want, "{text}");
    assert!(text.contains(words), "expected \"{words}\" in: {text}");
}

struct Host {
    context: *mut facegrad_context,
    backbone: *mut facegrad_backbone,
    loss: *mut facegrad_loss,
}

impl Host {
    fn new() -> Host {
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

struct Batch {
    images: Box<Held>,
    references: Box<Held>,
    landmarks: Box<Held>,
    reference_landmarks: Box<Held>,
    weights: Box<Held>,
    gradient: Box<Held>,
    want: Tensors,
}

impl Batch {
    fn new() -> Batch {
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

    fn targets(&self) -> facegrad_targets {
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
    fn run(
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

    fn good(&self, host: &Host) {
        let (status, loss) = self.run(host, &self.targets(), &self.images.raw);
        assert_eq!(status, 0, "{}", last_error());
        let want = self.want.numbers("loss")[0];
        assert!((loss - want).abs() <= 1e-5 * want, "{loss} for {want}");
    }
}

fn result() -> facegrad_result {
    facegrad_result {
        struct_size: size_of::<facegrad_result>(),
        loss: -1.0,
        mean_distance: -1.0,
        counted: -1,
        samples: -1,
        exact_passes: -1,
        audit_cosine: -1.0,
        audit_norm_ratio: -1.0,
    }
}

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
        let cases: [(&str, i32); 30] = [
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

#[test]
fn a_panic_is_a_status_and_poisons_only_its_context() {
    let (host, batch) = (Host::new(), Batch::new());
    let bystander = Host::new();
    expect(
        (api().debug_panic)(host.context),
        FACEGRAD_ERR_PANIC,
        "debug_panic was called",
    );
    let (status, _) = batch.run(&host, &batch.targets(), &batch.images.raw);
    expect(status, FACEGRAD_ERR_POISONED, "make a new one");
    batch.good(&bystander);
    drop(host);
    batch.good(&Host::new());
}

#[test]
fn a_forked_child_is_told_and_does_not_hang() {
    let (host, batch) = (Host::new(), Batch::new());
    batch.good(&host);
    // SAFETY: the child makes one call, which must fail before touching a lock of the parent's worker,
    // and leaves by _exit.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let (status, _) = batch.run(&host, &batch.targets(), &batch.images.raw);
            libc::_exit(if status == FACEGRAD_ERR_FORKED { 0 } else { 1 });
        }
        let mut status = -1;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert_eq!(status, 0, "the child did not get FACEGRAD_ERR_FORKED");
    }
    batch.good(&host);
}

#[test]
fn messages_reach_the_host_and_callbacks_may_not_call_back() {
    static SEEN: Mutex<Vec<(i32, String, i32)>> = Mutex::new(vec![]);
    unsafe extern "C" fn log(level: i32, message: *const c_char, user_data: *mut c_void) {
        assert_eq!(user_data.addr(), 42);
        let mut graph = null_mut();
        // SAFETY: the message is a string; the context is not looked at.
        let (text, status) = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            (
                text,
                (api().graph_new)(std::ptr::without_provenance(1), &mut graph),
            )
        };
        SEEN.lock().unwrap().push((level, text, status));
    }
    let (host, batch) = (Host::new(), Batch::new());
    let mut targets = batch.targets();
    // The second face's landmarks coincide.
    let mut flat = batch.landmarks.data.clone();
    flat[10..20].fill(5.0);
    let flat = tensor(flat, &[3, 5, 2]);
    targets.landmarks = &flat.raw;
    // SAFETY: the callback and its data are static.
    unsafe { (api().set_log_callback)(Some(log), std::ptr::without_provenance_mut(42), 2) };
    let (status, _) = batch.run(&host, &targets, &batch.images.raw);
    // SAFETY: as above.
    unsafe { (api().set_log_callback)(None, null_mut(), 4) };
    assert_eq!(status, 0, "{}", last_error());
    let seen = SEEN.lock().unwrap();
    let mine = seen.iter().find(|(_, text, _)| text.contains("sample 1"));
    let (level, _, status) = mine.unwrap_or_else(|| panic!("{seen:?}"));
    assert_eq!(
        (*level, *status),
        (FACEGRAD_LOG_WARN, FACEGRAD_ERR_REENTRANT)
    );
}

#[test]
fn threads_share_a_context() {
    let host = Host::new();
    struct Everywhere(Host);
    // SAFETY: handles may be used from any thread; that is what is tested.
    unsafe impl Sync for Everywhere {}
    let host = Everywhere(host);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let all: &Everywhere = &host;
                let batch = Batch::new();
                for _ in 0..3 {
                    batch.good(&all.0);
                }
            });
        }
    });
}

#[test]
fn nothing_stays_alive() {
    let _alone = COUNTING.lock();
    let live = |kind: &CStr| {
        let mut count = -1;
        // SAFETY: a string and a local.
        unsafe { (api().debug_live)(kind.as_ptr(), &mut count) };
        count
    };
    let host = Host::new();
    assert!(live(c"loss") >= 1 && live(c"context") >= 1);
    let (loss, context) = (host.loss, host.context);
    drop(host);
    let targets = Batch::new().targets();
    // SAFETY: the handles are gone, which is what is looked at.
    unsafe {
        let status = (api().loss_images)(
            loss,
            null(),
            &targets,
            null(),
            null_mut(),
            0,
            null_mut(),
            null_mut(),
        );
        assert_eq!(status, FACEGRAD_ERR_HANDLE);
        assert_eq!((api().debug_panic)(context), FACEGRAD_ERR_HANDLE);
        expect(
            (api().debug_live)(c"losses".as_ptr(), &mut 0),
            FACEGRAD_ERR_ARGUMENT,
            "expected one of",
        );
    }
    // SAFETY: an unknown version has no table.
    assert!(facegrad_get_api(99).is_null());
}

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
