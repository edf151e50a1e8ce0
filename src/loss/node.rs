//! The loss as a node of a graph.

use super::Loss;
use super::group::FaceGroup;
use crate::batch::{Report, Sample, Targets};
use crate::error::Result;
use crate::graph::{Graph, NodeId, Operation};
use crate::shared::{Shared, lock};
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};

/// Adds the loss of a node of images `[N,3,H,W]` to its graph: a scalar float32 node. The report says what
/// happened to every sample.
///
/// # Errors
/// As [`Loss::evaluate`].
pub fn face_loss(
    graph: &mut Graph,
    images: NodeId,
    loss: &Shared<Loss>,
    targets: &Targets,
) -> Result<(NodeId, Report)> {
    let (samples, faces) = lock(loss)
        .prepare(graph.value(images)?, targets)
        .map_err(|e| e.context("face_loss"))?;
    let groups = vec![FaceGroup::whole_images(faces)];
    let (node, report) = FaceLoss::apply(graph, &[images], loss, groups, samples)?;
    report.warn(|at| targets.number(at));
    Ok((node, report))
}

/// `images, … → loss`, a scalar: the comparison of faces that are found already, one input per group. The value
/// and the gradient are computed together, because a sample whose gradient is not finite is left out of both.
pub(crate) struct FaceLoss {
    loss: Shared<Loss>,
    groups: Vec<FaceGroup>,
    report: Shared<Report>,
    gradients: Option<Vec<Tensor>>,
}

impl FaceLoss {
    /// Adds the node to a graph. `inputs` are the images of each group; `samples` are those that the faces
    /// belong to.
    pub(crate) fn apply(
        graph: &mut Graph,
        inputs: &[NodeId],
        loss: &Shared<Loss>,
        groups: Vec<FaceGroup>,
        samples: Vec<Sample>,
    ) -> Result<(NodeId, Report)> {
        let report = Arc::new(Mutex::new(Report {
            samples,
            ..Report::default()
        }));
        let operation = FaceLoss {
            loss: loss.clone(),
            groups,
            report: report.clone(),
            gradients: None,
        };
        let node = graph.apply(Box::new(operation), inputs)?;
        let report = std::mem::take(&mut *lock(&report));
        Ok((node, report))
    }
}

impl Operation for FaceLoss {
    fn name(&self) -> &'static str {
        "face_loss"
    }

    fn forward(&mut self, inputs: &[&Tensor], needs_gradient: bool) -> Result<Tensor> {
        let mut report = lock(&self.report);
        let loss = lock(&self.loss);
        self.gradients = loss.compare(&self.groups, inputs, &mut report, needs_gradient)?;
        let device = inputs[0].device();
        Ok(Tensor::f_full([], report.loss, (Kind::Float, device))?)
    }

    fn vjp(&mut self, inputs: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(gradients) = &self.gradients else {
            return Ok(inputs.iter().map(|_| None).collect());
        };
        let scaled = |own: &Tensor| Ok(Some(own.f_mul(&gradient.f_to_kind(own.kind())?)?));
        gradients.iter().map(scaled).collect()
    }
}
