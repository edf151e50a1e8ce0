//! Frozen networks over libtorch: the gradient flows through them to their input, never into them.

mod iresnet;
pub mod onnx_graph;
mod recogniser;
pub mod vae;

pub use iresnet::IResNet;
pub use onnx_graph::OnnxGraph;
pub use recogniser::Recogniser;
