//! Samples of a step that are processed together, and their way to VAE-space latents.

use super::{Step, StepLoss};
use crate::batch::Targets;
use crate::error::Result;
use crate::graph::{Decode, Graph, NodeId, Unpacking, predict_x0, unpack};
use crate::loss::FaceGroup;
use crate::nets::vae::Decoder;
use crate::shared::{Shared, lock};
use crate::tensor::select_rows;

/// Samples of a step that are processed together. All of them have passed the gate.
pub(super) struct Chunk<'a> {
    pub decoder: &'a Shared<Decoder>,
    pub step: &'a Step,
    /// Their rows in the batch.
    pub rows: &'a [usize],
    /// The targets of these samples.
    pub targets: Targets,
    /// (a, b) of `x0 = a·x_t + b·prediction`, per sample.
    pub coefficients: Vec<(f64, f64)>,
    /// Noise levels, where known.
    pub levels: Option<Vec<f64>>,
    pub with_gradient: bool,
}

/// A graph from the samples' prediction to VAE-space latents.
pub(super) struct LatentGraph {
    pub graph: Graph,
    pub prediction: NodeId,
    pub latents: NodeId,
}

/// Faces, and the node of the images that show them.
pub(super) struct DecodedGroup {
    pub images: NodeId,
    pub group: FaceGroup,
}

impl StepLoss {
    /// x0 from the prediction, unpacked into VAE-space latents.
    pub(super) fn latent_graph(&self, chunk: &Chunk) -> Result<LatentGraph> {
        let unpacking = {
            let loss = lock(&self.loss);
            let config = loss.config();
            Unpacking {
                packing: config.packing,
                size: chunk.step.size,
                crop: config.latent_crop,
                format: config.latent_format.clone(),
            }
        };
        let mut graph = Graph::new();
        let prediction = select_rows(&chunk.step.prediction, chunk.rows)?;
        let prediction = graph.input(prediction, chunk.with_gradient);
        let mut inputs = vec![prediction];
        if let Some(x_t) = &chunk.step.x_t {
            inputs.insert(0, graph.input(select_rows(x_t, chunk.rows)?, false));
        }
        let x0 = graph.apply(predict_x0(chunk.coefficients.clone()), &inputs)?;
        let latents = graph.apply(unpack(unpacking, chunk.decoder)?, &[x0])?;
        Ok(LatentGraph {
            graph,
            prediction,
            latents,
        })
    }

    /// A node that decodes latents as configured.
    pub(super) fn decode(&self, chunk: &Chunk) -> Decode {
        let clamp = lock(&self.loss).config().clamp;
        Decode::new(chunk.decoder.clone(), clamp)
    }
}
