//! Where tests find fixtures and real data, and how they compare tensors.
#![allow(dead_code)]

#[cfg(feature = "torch")]
use facegrad::tensor::from_array;
#[cfg(feature = "torch")]
use facegrad::weights::{self, Weights};
use std::path::{Path, PathBuf};
#[cfg(feature = "torch")]
use tch::{Device, Kind, Tensor};

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

#[cfg(feature = "torch")]
/// The tensors of a safetensors fixture.
pub struct Tensors(Weights);

#[cfg(feature = "torch")]
impl Tensors {
    pub fn open(name: &str) -> Tensors {
        Tensors(weights::load(&fixture(name), &|_| true).unwrap())
    }

    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn get(&self, name: &str) -> Tensor {
        from_array(&self.0[name], Device::Cpu).unwrap()
    }

    /// As 64-bit floats, row after row.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        numbers(&self.get(name))
    }
}

#[cfg(feature = "torch")]
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor
        .f_to_kind(Kind::Double)
        .unwrap()
        .f_reshape([-1i64])
        .unwrap();
    Vec::try_from(flat).unwrap()
}

#[cfg(feature = "torch")]
/// The largest difference of two tensors.
pub fn max_abs(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let pairs = numbers(a).into_iter().zip(numbers(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[cfg(feature = "torch")]
/// ‖got − want‖ / ‖want‖. Pass everything that is compared as one tensor: a part that is zero in exact arithmetic holds
/// only rounding, which differs between processors, so no part is measured by its own norm.
pub fn relative(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    let difference = got.f_sub(want).unwrap();
    let (difference, norm) = (norm(&difference), norm(want));
    assert!(
        norm > 0.0,
        "what is zero has no relative size: compare with an absolute bound"
    );
    difference / norm
}

#[cfg(feature = "torch")]
fn norm(tensor: &Tensor) -> f64 {
    numbers(tensor).iter().map(|n| n * n).sum::<f64>().sqrt()
}

#[cfg(feature = "torch")]
/// The cosine of two tensors taken as vectors.
pub fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let dot: f64 = numbers(a).iter().zip(numbers(b)).map(|(a, b)| a * b).sum();
    dot / (norm(a) * norm(b))
}
