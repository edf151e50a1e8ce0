//! What runs a detector's network.

use super::decode::Output;
use super::ort;
use crate::config::{DetectorConfig, Engine};
use crate::error::{Result, bail};
use crate::nets::OnnxGraph;
use crate::weights::onnx::Model;
use tch::{Device, Kind, Tensor};

/// A network in its engine.
pub enum Network {
    /// libtorch, on the context's device.
    Torch(Box<OnnxGraph>),
    /// ONNX Runtime, on the CPU.
    Ort(ort::Session),
}

/// Loads the model; the text says which engine and why.
pub fn open(config: &DetectorConfig, model: &Model, device: Device) -> Result<(Network, String)> {
    let torch = |why: &str| -> Result<(Network, String)> {
        let graph = OnnxGraph::new(model, device, Kind::Float)?;
        Ok((Network::Torch(Box::new(graph)), format!("libtorch{why}")))
    };
    match config.engine {
        Engine::Torch => torch(""),
        Engine::Ort => {
            let session = ort::Session::open(&config.path, config.onnxruntime.as_deref())?;
            let engine = session.library();
            Ok((Network::Ort(session), engine))
        }
        Engine::Auto if device != Device::Cpu => torch(" (the context is on CUDA)"),
        // A path that was given must work: falling back would hide a mistake.
        Engine::Auto if config.onnxruntime.is_some() || ort::available() => {
            let session = ort::Session::open(&config.path, config.onnxruntime.as_deref())?;
            let engine = session.library();
            Ok((Network::Ort(session), engine))
        }
        Engine::Auto => torch(" (ONNX Runtime's library was not found)"),
    }
}

impl Network {
    /// The raw outputs for one normalised canvas `[1,3,S,S]`.
    pub fn run(&mut self, canvas: &Tensor) -> Result<Vec<Output>> {
        match self {
            Network::Torch(graph) => graph.forward(&[canvas])?.into_iter().map(host).collect(),
            Network::Ort(session) => {
                let flat = canvas
                    .f_to_device(Device::Cpu)?
                    .f_contiguous()?
                    .f_reshape([-1i64])?;
                session.run(Vec::try_from(flat)?, canvas.size())
            }
        }
    }
}

fn host(output: Tensor) -> Result<Output> {
    let Some(&width) = output.size().last() else {
        bail!(Weights, "a detector output without dimensions");
    };
    let flat = output
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_reshape([-1i64])?;
    Ok(Output {
        width: width as usize,
        values: Vec::try_from(flat)?,
    })
}
