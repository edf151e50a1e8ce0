//! Frozen networks. With libtorch, the gradient flows through them to their input; their weights have none. With ONNX
//! Runtime there is no gradient.

pub mod engine;
mod foreign;
mod iresnet;
mod levels;
mod normalisation;
pub mod onnx_graph;
pub mod onnxruntime;
mod recogniser;
mod runner;
pub mod vae;

pub use iresnet::IResNet;
pub use levels::Levels;
pub use onnx_graph::OnnxGraph;
pub use recogniser::{EMBEDDING, Recogniser};
