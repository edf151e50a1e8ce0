//! Panics, forks, threads, callbacks, and what is alive when all is done.

use crate::host::*;
use facegrad::ffi::api::facegrad_get_api;
use facegrad::ffi::types::*;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;

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
