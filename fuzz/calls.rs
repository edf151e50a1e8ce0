//! Fuzz target: sequences of calls of the C ABI on handles that live, were freed, are of another type, or never
//! were. No call may panic, and all that was made can be freed.

use super::choices::Choices;
use super::held::Held;
use facegrad::ffi::api::{facegrad_api, facegrad_get_api};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

const CONFIGS: [&CStr; 8] = [
    c"",
    c"{}",
    c"{\"device\": \"cpu\"}",
    c"{\"device\": \"cuda:77\"}",
    c"{\"kind\": \"epsilon\", \"time\": \"sigma\"}",
    c"{\"kind\": \"v\"}",
    c"{\"path\": \"/dev/zero\"}",
    c"{\"path\": \"nowhere\", \"treshold\": 1}",
];

/// The handles of one sequence, whatever they are of, and an address that never was one.
struct Handles(Vec<*mut c_void>);

impl Handles {
    /// One of them as a handle of any type; what the library makes of it is the question.
    fn any<T>(&self, choices: &mut Choices) -> *mut T {
        choices.of(&self.0).cast()
    }
}

/// How many objects of a type live; NULL stands for every type.
fn live(api: &facegrad_api, kind: *const c_char) -> i64 {
    let mut count = 0;
    // SAFETY: the type is NULL or a string; the count is a local.
    let status = unsafe { (api.debug_live)(kind, &mut count) };
    assert_eq!(status, 0);
    count
}

thread_local! {
    /// A context that outlives a sequence unless it frees it: most of a campaign's time went into starting and ending the
    /// thread of a context.
    static KEPT: Cell<*mut c_void> = const { Cell::new(null_mut()) };
}

/// The context that is kept, which is made where there is none.
fn kept(api: &facegrad_api) -> *mut c_void {
    if KEPT.get().is_null() {
        let mut made = null_mut::<c_void>();
        // SAFETY: NULL stands for the defaults; the place is a local.
        let status = unsafe { (api.context_new)(std::ptr::null(), (&raw mut made).cast()) };
        assert_eq!(status, 0);
        KEPT.set(made);
    }
    KEPT.get()
}

/// Up to forty calls.
pub fn calls(data: &[u8]) {
    // SAFETY: the table is static.
    let api = unsafe { facegrad_get_api(1).as_ref() }.expect("the table of version 1");
    let choices = &mut Choices(data);
    let kept = kept(api);
    let before = live(api, std::ptr::null());
    let mut handles = Handles(vec![
        null_mut(),
        std::ptr::without_provenance_mut(0x10),
        kept,
    ]);
    let mut nodes = vec![-1, 0, 1, i64::MAX];
    for _ in 0..40 {
        let config = choices.of(&CONFIGS).as_ptr();
        let (mut made, mut node) = (null_mut::<c_void>(), -1);
        let mut held = Held::any(choices);
        let raw = held.raw();
        let at = *choices.of(&nodes);
        let stream = null_mut();
        // SAFETY: handles may be anything; every other pointer is to a local or a string, and a tensor's memory
        // outlives the call.
        let status = unsafe {
            match choices.byte() % 16 {
                0 => break,
                1 if handles.0.len() < 7 => (api.context_new)(config, (&raw mut made).cast()),
                2..=4 => (api.graph_new)(handles.any(choices), (&raw mut made).cast()),
                5 => (api.detector_new)(handles.any(choices), config, (&raw mut made).cast()),
                6 => (api.backbone_new)(handles.any(choices), config, (&raw mut made).cast()),
                7 => (api.vae_new)(handles.any(choices), config, (&raw mut made).cast()),
                8 | 9 => {
                    let wanted = i32::from(choices.byte() % 2);
                    (api.graph_input)(handles.any(choices), &raw, wanted, &mut node, stream)
                }
                10 => {
                    let other = *choices.of(&nodes);
                    (api.graph_predict_x0)(
                        handles.any(choices),
                        at,
                        other,
                        &raw,
                        config,
                        &mut node,
                        stream,
                    )
                }
                11 => {
                    let (mut sizes, mut ndim) = ([0; 8], 0);
                    let capacity = usize::from(choices.byte() % 9);
                    (api.graph_shape)(
                        handles.any(choices),
                        at,
                        sizes.as_mut_ptr(),
                        capacity,
                        &mut ndim,
                    )
                }
                12 => (api.graph_read)(handles.any(choices), at, &raw, stream),
                13 => (api.graph_backward)(handles.any(choices), at, &raw, stream),
                14 => (api.graph_gradient)(handles.any(choices), at, &raw, stream),
                _ => {
                    (api.graph_free)(handles.any(choices));
                    (api.context_free)(handles.any(choices));
                    let (mut text, mut needed) = ([0 as c_char; 64], 0);
                    let capacity = usize::from(choices.byte() % 65);
                    (api.last_error)(text.as_mut_ptr(), capacity, &mut needed)
                }
            }
        };
        // Poisoned, internal, panic: never, whatever a host does.
        assert!(![12, 900, 901].contains(&status), "status {status}");
        assert!(
            made.is_null() || status == 0,
            "status {status} with a handle"
        );
        if !made.is_null() {
            handles.0.push(made);
        }
        if node >= 0 {
            nodes.push(node);
        }
    }
    for handle in handles.0 {
        (api.graph_free)(handle.cast());
        if handle != kept {
            (api.context_free)(handle.cast());
        }
    }
    let freed = 1 - live(api, c"context".as_ptr());
    assert!(matches!(freed, 0 | 1), "a context was leaked");
    if freed == 1 {
        KEPT.set(null_mut());
    }
    assert_eq!(
        live(api, std::ptr::null()),
        before - freed,
        "a handle was leaked"
    );
}
