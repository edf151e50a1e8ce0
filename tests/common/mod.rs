//! Where tests find fixtures and real data.
#![allow(dead_code)]

#[cfg(feature = "torch")]
mod device;
#[cfg(feature = "torch")]
mod tensors;

use std::path::{Path, PathBuf};
#[cfg(feature = "torch")]
#[allow(unused_imports)] // Not every program compares tensors.
pub use {device::*, tensors::*};

/// A file that `tests/fixtures/make.py` wrote.
pub fn fixture(name: &str) -> PathBuf {
    let folder = std::env::var_os("FACEGRAD_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fixtures"),
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing; run `make fixtures`",
        path.display()
    );
    path
}

/// A real model or photograph; `None`, with one line, where the folder is not there. Under CI that is
/// a failure.
pub fn data(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FACEGRAD_TEST_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        PathBuf::from,
    );
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    let text = format!("{} is missing: set FACEGRAD_TEST_DATA", path.display());
    assert!(std::env::var_os("CI").is_none(), "{text}");
    println!("skipped: {text}");
    None
}

/// ONNX Runtime's library: `FACEGRAD_ORT`, else that of the wheel in `.venv`.
pub fn onnxruntime() -> PathBuf {
    if let Some(path) = std::env::var_os("FACEGRAD_ORT") {
        return path.into();
    }
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib");
    let pythons = std::fs::read_dir(&lib).expect(".venv is missing; run `make setup`");
    pythons
        .flatten()
        .map(|python| python.path().join("site-packages/onnxruntime/capi"))
        .find(|capi| capi.exists())
        .expect("onnxruntime is not in .venv; run `make setup`")
}
