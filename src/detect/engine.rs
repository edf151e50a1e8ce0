//! What runs a detector's network.

use super::decode::Output;
use super::letterbox::Canvas;
use crate::config::{DetectionSize, DetectorConfig};
use crate::error::{Result, bail};
use crate::nets::{OnnxGraph, engine, onnxruntime};
use crate::tensor::{to_host, upload};
use crate::weights::onnx::Model;
use tch::{Device, Kind, Tensor};

/// A network in its engine.
pub enum Network {
    /// libtorch, on the context's device.
    Torch(Box<OnnxGraph>, Device),
    /// ONNX Runtime.
    Ort(onnxruntime::Session),
}

/// Loads the model. The returned text names the engine and why it was chosen.
pub fn open(config: &DetectorConfig, model: &Model, device: Device) -> Result<(Network, String)> {
    let runtime = config.runtime();
    let torch = || {
        let graph = OnnxGraph::new(model, device, Kind::Float)?;
        Ok(Network::Torch(Box::new(graph), device))
    };
    let ort = || {
        OnnxGraph::check_constants(model)?;
        let session = onnxruntime::Session::open(&config.path, &runtime, device)?;
        let engine = session.library();
        Ok((Network::Ort(session), engine))
    };
    engine::open(&runtime, device, torch, ort)
}

impl Network {
    /// The network's outputs for one normalised canvas `[1,3,H,W]`.
    pub fn run(&mut self, canvas: &Canvas, size: DetectionSize) -> Result<Vec<Output>> {
        let shape = [1, 3, i64::from(size.height), i64::from(size.width)];
        match self {
            Network::Torch(graph, device) => {
                let input = match canvas {
                    Canvas::Host(values) => upload(values, *device)?.f_view(shape)?,
                    Canvas::Device(canvas) => canvas.shallow_clone(),
                };
                graph.forward(&[&input])?.into_iter().map(host).collect()
            }
            Network::Ort(session) => {
                let outputs = match canvas {
                    Canvas::Host(values) => session.run(values, &shape)?,
                    Canvas::Device(canvas) => {
                        let flat = to_host(canvas)?.f_reshape([-1i64])?;
                        session.run(&Vec::<f32>::try_from(flat)?, &shape)?
                    }
                };
                outputs
                    .into_iter()
                    .map(|(shape, values)| output(&shape, values))
                    .collect()
            }
        }
    }
}

fn output(shape: &[i64], values: Vec<f32>) -> Result<Output> {
    let Some(&width) = shape.last() else {
        bail!(Weights, "a detector output without dimensions");
    };
    Ok(Output {
        width: width as usize,
        values,
    })
}

fn host(tensor: Tensor) -> Result<Output> {
    let flat = to_host(&tensor)?
        .f_to_kind(Kind::Float)?
        .f_reshape([-1i64])?;
    output(&tensor.size(), Vec::try_from(flat)?)
}
