use serde::Deserialize;
use std::path::PathBuf;

/// What runs a network that needs no gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// On a CPU, ONNX Runtime where its library is found, else libtorch. On CUDA, libtorch. If `providers` are named,
    /// ONNX Runtime. If none are named and the engine refuses a file, the other engine.
    #[default]
    Auto,
    /// ONNX Runtime; a missing library is an error.
    Ort,
    /// libtorch, on the context's device.
    Torch,
}

/// An execution provider of ONNX Runtime. Naming one that the library lacks is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// NVIDIA CUDA, on the context's device; device 0 where the context is on the CPU.
    Cuda,
    /// NVIDIA TensorRT.
    Tensorrt,
    /// AMD ROCm.
    Rocm,
    /// AMD MIGraphX.
    Migraphx,
    /// Intel OpenVINO.
    Openvino,
    /// Apple CoreML.
    Coreml,
    /// Microsoft DirectML.
    Directml,
}

/// What runs a network and with which library.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Runtime {
    /// ONNX Runtime or libtorch.
    pub engine: Engine,
    /// ONNX Runtime's providers, best first; empty: the CPU.
    pub providers: Vec<Provider>,
    /// ONNX Runtime's library or its folder.
    pub library: Option<PathBuf>,
}
