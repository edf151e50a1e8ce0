//! Frozen networks. Over libtorch the gradient flows through them to their input, never into them; over
//! ONNX Runtime there is none.

pub mod engine;
mod foreign;
mod iresnet;
mod levels;
pub mod onnx_graph;
pub mod onnxruntime;
mod recogniser;
mod runner;
pub mod vae;

pub use iresnet::IResNet;
pub use levels::Levels;
pub use onnx_graph::OnnxGraph;
pub use recogniser::{EMBEDDING, Recogniser};
