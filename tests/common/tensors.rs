//! Tensors of fixtures, random ones, and how tests compare them.

use super::{device, fixture};
use facegrad::tensor::from_array;
use facegrad::weights::{self, Weights};
use std::path::Path;
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// The tensors of a safetensors fixture.
pub struct Tensors(Weights);

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
        from_array(&self.0[name], device()).unwrap()
    }

    /// As 64-bit floats, row after row.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        numbers(&self.get(name))
    }
}

pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor
        .f_to_kind(Kind::Double)
        .unwrap()
        .f_reshape([-1i64])
        .unwrap();
    Vec::try_from(flat).unwrap()
}

/// The largest difference of two tensors.
pub fn max_abs(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let pairs = numbers(a).into_iter().zip(numbers(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

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

/// The length of a tensor taken as a vector.
pub fn norm(tensor: &Tensor) -> f64 {
    numbers(tensor).iter().map(|n| n * n).sum::<f64>().sqrt()
}

/// The cosine of two tensors taken as vectors.
pub fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let dot: f64 = numbers(a).iter().zip(numbers(b)).map(|(a, b)| a * b).sum();
    dot / (norm(a) * norm(b))
}

/// Normally distributed numbers, the same in every run and on every device: tests share libtorch's generator and run side
/// by side.
pub fn randn(seed: i64, size: &[i64]) -> Tensor {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let device = device();
    let _mine = GENERATOR.lock().unwrap();
    tch::manual_seed(seed);
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_device(device)
}

/// The tensors of a safetensors file or of an npz file, with their names.
pub fn read(path: &Path) -> Vec<(String, Tensor)> {
    let device = device();
    let read = match path.extension().and_then(|suffix| suffix.to_str()) {
        Some("npz") => Tensor::read_npz(path),
        _ => Tensor::read_safetensors(path),
    };
    let moved = read.unwrap().into_iter();
    moved.map(|(name, x)| (name, x.to_device(device))).collect()
}

/// Numbers as a tensor `[n]`.
pub fn row(values: &[f32]) -> Tensor {
    Tensor::from_slice(values).to_device(device())
}
