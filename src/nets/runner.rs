//! Runs a recogniser's ONNX file, in libtorch or in ONNX Runtime.

use super::onnxruntime::Session;
use super::{OnnxGraph, engine, foreign};
use crate::config::{BackboneConfig, Runtime};
use crate::error::{Result, bail};
use crate::tensor::{to_host, upload};
use crate::weights::onnx;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// An ONNX file, loaded into its engine.
pub enum Runner {
    /// libtorch, through which the gradient flows.
    Graph(Box<OnnxGraph>),
    /// ONNX Runtime, which ends the gradient.
    Session(RefCell<Session>),
}

impl Runner {
    /// Loads an ONNX file into its engine. The returned text names the engine.
    pub fn open(
        config: &BackboneConfig,
        model: &onnx::Model,
        device: Device,
        kind: Kind,
        runtime: &Runtime,
    ) -> Result<(Runner, String)> {
        foreign::interface(model, &config.path)?;
        let torch = || {
            let graph = OnnxGraph::new(model, device, kind)?;
            Ok(Runner::Graph(Box::new(graph)))
        };
        let ort = || {
            if kind != Kind::Float {
                bail!(
                    Config,
                    "backbone config: dtype: ONNX Runtime runs the file in its own f32; leave dtype out, or use \
                     `engine`: \"torch\""
                );
            }
            OnnxGraph::check_constants(model)?;
            let session = Session::open(&config.path, runtime, device)?;
            let library = session.library();
            Ok((Runner::Session(RefCell::new(session)), library))
        };
        let (runner, engine) = engine::open(runtime, device, torch, ort)?;
        Ok((runner, format!("ONNX on {engine}")))
    }

    /// The outputs for `x`, whose rows are crops.
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let count = x.size()[0];
        let outputs = match self {
            Runner::Graph(graph) => graph.forward(&[x])?,
            Runner::Session(session) => {
                let values: Vec<f32> =
                    Vec::try_from(to_host(x)?.f_contiguous()?.f_reshape([-1i64])?)?;
                let outputs = session.borrow_mut().run(&values, &x.size())?;
                let tensor = |(shape, values): (Vec<i64>, Vec<f32>)| -> Result<Tensor> {
                    Ok(upload(&values, x.device())?.f_view(shape.as_slice())?)
                };
                outputs
                    .into_iter()
                    .map(tensor)
                    .collect::<Result<Vec<_>>>()?
            }
        };
        match outputs.first() {
            // Exporters leave further dimensions behind the embedding, as [N,D,1,1].
            Some(output) => match output.size().as_slice() {
                &[rows, _, ..] if rows == count => Ok(outputs),
                other => bail!(
                    Weights,
                    "the model yields a value of shape {other:?} for {count} crops; a recogniser yields [{count}, D], \
                     one embedding each"
                ),
            },
            None => bail!(Weights, "the model yields nothing"),
        }
    }
}
