//! The loss as a node of a graph.

use super::Loss;
use super::group::FaceGroup;
use crate::batch::{Report, Targets};
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
    let (samples, found) = lock(loss)
        .prepare(graph.value(images)?, targets)
        .map_err(|e| e.context("face_loss"))?;
    let (groups, finite) = found.in_whole_images();
    let report = Arc::new(Mutex::new(Report {
        samples,
        ..Report::default()
    }));
    let operation = FaceLoss {
        loss: loss.clone(),
        groups,
        finite,
        report: report.clone(),
        gradient: None,
    };
    let node = graph.apply(Box::new(operation), &[images])?;
    let report = std::mem::take(&mut *lock(&report));
    report.warn(|at| targets.number(at));
    Ok((node, report))
}

/// `images → loss`, a scalar: the comparison of faces that are found already. The value and the gradient are computed
/// together, because a sample whose gradient is not finite is left out of both.
struct FaceLoss {
    loss: Shared<Loss>,
    groups: Vec<FaceGroup>,
    finite: Option<Tensor>,
    report: Shared<Report>,
    gradient: Option<Tensor>,
}

impl Operation for FaceLoss {
    fn name(&self) -> &'static str {
        "face_loss"
    }

    fn forward(&mut self, inputs: &[&Tensor], needs_gradient: bool) -> Result<Tensor> {
        let mut report = lock(&self.report);
        let samples = std::mem::take(&mut report.samples);
        let finite = self.finite.as_ref();
        let (told, gradients) =
            lock(&self.loss).compare_now(&self.groups, inputs, samples, finite, needs_gradient)?;
        *report = told;
        self.gradient = gradients.map(|mut all| all.swap_remove(0));
        Ok(Tensor::f_full(
            [],
            report.loss,
            (Kind::Float, inputs[0].device()),
        )?)
    }

    fn vjp(&mut self, _: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(own) = &self.gradient else {
            return Ok(vec![None]);
        };
        Ok(vec![Some(own.f_mul(&gradient.f_to_kind(own.kind())?)?)])
    }
}
