//! What a loss remembers, saved and restored.

use crate::host::*;
use facegrad::ffi::types::*;
use facegrad::weights::{self, Array, Dtype, Weights};
use std::ffi::CString;
use std::path::Path;
use std::ptr::null_mut;

fn restore(host: &Host, path: &Path) -> i32 {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a string.
    unsafe { (api().loss_restore)(host.loss, path.as_ptr()) }
}

/// A loss that knows Anna, and its state.
fn saved(folder: &Path) -> (Host, Batch, std::path::PathBuf) {
    let (host, batch) = (Host::new(), Batch::new());
    batch.good(&host);
    let path = folder.join("loss.state");
    let name = CString::new(path.to_str().unwrap()).unwrap();
    let (images, landmarks) = (&batch.references.raw, &batch.reference_landmarks.raw);
    // SAFETY: strings, and tensors of the batch.
    unsafe {
        let status =
            (api().loss_set_reference)(host.loss, c"anna".as_ptr(), images, landmarks, null_mut());
        assert_eq!(status, 0, "{}", last_error());
        assert_eq!(
            (api().loss_save)(host.loss, name.as_ptr()),
            0,
            "{}",
            last_error()
        );
    }
    (host, batch, path)
}

fn forget_anna(host: &Host) -> i32 {
    // SAFETY: a string.
    unsafe { (api().loss_remove_reference)(host.loss, c"anna".as_ptr()) }
}

#[test]
fn a_restored_loss_knows_its_people() {
    let folder = tempfile::tempdir().unwrap();
    let (_, batch, path) = saved(folder.path());
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 1, "no half-written file is left");
    let other = Host::new();
    assert_ne!(forget_anna(&other), 0);
    assert_eq!(restore(&other, &path), 0, "{}", last_error());
    batch.good(&other);
    assert_eq!(forget_anna(&other), 0, "{}", last_error());
    // What it learned since is forgotten, what it forgot is back.
    assert_eq!(restore(&other, &path), 0, "{}", last_error());
    assert_eq!(forget_anna(&other), 0, "{}", last_error());
}

#[test]
fn other_files_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (host, batch, path) = saved(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let other = folder.path().join("other");
    for length in (0..whole.len()).step_by(whole.len() / 50) {
        std::fs::write(&other, &whole[..length]).unwrap();
        assert_ne!(
            restore(&host, &other),
            0,
            "{length} of {} bytes",
            whole.len()
        );
    }
    let good = weights::load(&path, &|_| true).unwrap();
    let index = String::from_utf8(good["index"].data.clone()).unwrap();
    let with_index = |old: &str, new: &str| {
        assert!(index.contains(old), "{old} in {index}");
        let data = index.replacen(old, new, 1).into_bytes();
        let mut file = good.clone();
        file.insert(
            "index".into(),
            Array {
                dtype: Dtype::U8,
                shape: vec![data.len()],
                data,
            },
        );
        file
    };
    let with_halved = |name: &str| {
        let mut file = good.clone();
        let array = file.get_mut(name).unwrap();
        array.data.truncate(array.data.len() / 2);
        array.shape[1] /= 2;
        file
    };
    let without = |name: &str| {
        let mut file = good.clone();
        file.remove(name).unwrap();
        file
    };
    let mut negated = good.clone();
    for value in negated
        .get_mut("recogniser")
        .unwrap()
        .data
        .chunks_exact_mut(4)
    {
        value[3] ^= 0x80;
    }
    let cases: Vec<(Weights, i32, &str)> = vec![
        (
            without("index"),
            FACEGRAD_ERR_FORMAT,
            "not the state of a loss",
        ),
        (
            without("embeddings"),
            FACEGRAD_ERR_FORMAT,
            "embeddings: expected",
        ),
        (
            without("recogniser"),
            FACEGRAD_ERR_ARGUMENT,
            "another recogniser",
        ),
        (negated, FACEGRAD_ERR_ARGUMENT, "another recogniser"),
        (
            with_halved("recogniser"),
            FACEGRAD_ERR_ARGUMENT,
            "another recogniser",
        ),
        (
            with_halved("embeddings"),
            FACEGRAD_ERR_FORMAT,
            "embeddings: expected",
        ),
        (
            with_index("\"version\":1", "\"version\":2"),
            FACEGRAD_ERR_UNSUPPORTED,
            "update facegrad",
        ),
        (
            with_index("[\"anna\",1]", "[\"anna\",-1]"),
            FACEGRAD_ERR_FORMAT,
            "embeddings: expected",
        ),
        (
            with_index("[\"anna\",1]", "[\"anna\",9223372036854775807]"),
            FACEGRAD_ERR_FORMAT,
            "embeddings: expected",
        ),
        (
            with_index(
                "\"samples\":[]",
                "\"samples\":[[[{\"Name\":\"a\"},[8,8]],[[0.5,0]]]]",
            ),
            FACEGRAD_ERR_FORMAT,
            "statistics: expected",
        ),
        (
            with_index("\"trust\"", "\"mistrust\""),
            FACEGRAD_ERR_FORMAT,
            "not the state of a loss",
        ),
    ];
    for (file, status, words) in cases {
        weights::write(&other, &file).unwrap();
        expect(restore(&host, &other), status, words);
    }
    batch.good(&host);
    assert_eq!(forget_anna(&host), 0, "{}", last_error());
}
