//! The device of the numeric suite: `FACEGRAD_TEST_DEVICE`, which is `cpu` (the default), `cuda` or `cuda:N`.

use facegrad::tensor::parse_device;
use std::sync::LazyLock;
use tch::Device;

static DEVICE: LazyLock<Device> = LazyLock::new(|| {
    let asked = std::env::var("FACEGRAD_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let device = parse_device(&asked).unwrap_or_else(|e| panic!("FACEGRAD_TEST_DEVICE: {e}"));
    let whole = std::env::var("NVIDIA_TF32_OVERRIDE").is_ok_and(|value| value == "0");
    assert!(
        device == Device::Cpu || whole,
        "set NVIDIA_TF32_OVERRIDE=0: torch lets cuDNN compute in TF32, and the bounds are those of float32"
    );
    device
});

/// Where every tensor and every network of the numeric suite is. libtorch looks for its CUDA half once, so this comes
/// before anything else of libtorch.
pub fn device() -> Device {
    *DEVICE
}

/// How far results may be off on the device, by how far they may be off on the CPU. On a GPU the sums of many threads come
/// in another order every time, so what is computed twice may differ too. The numbers are those of `tests/on_device.py`.
pub mod bound {
    use tch::Device;

    /// Of values.
    pub fn value(on_cpu: f64) -> f64 {
        wider(on_cpu, 1e-4)
    }

    /// Of gradients.
    pub fn gradient(on_cpu: f64) -> f64 {
        wider(on_cpu, 1e-3)
    }

    fn wider(on_cpu: f64, on_gpu: f64) -> f64 {
        match super::device() {
            Device::Cpu => on_cpu,
            _ => on_cpu.max(on_gpu),
        }
    }
}
