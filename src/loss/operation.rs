//! The loss as a node of the graph.

use super::{Loss, Report, Targets};
use crate::error::Result;
use crate::graph::Operation;
use crate::shared::{Shared, lock};
use tch::{Kind, Tensor};

/// `images → loss`, a scalar. Value and gradient are computed together, since the gradient decides
/// which samples count: one that is not finite is dropped from both.
pub struct FaceLoss {
    loss: Shared<Loss>,
    targets: Targets,
    report: Shared<Report>,
    gradient: Option<Tensor>,
}

impl FaceLoss {
    /// A node that is not computed yet.
    pub fn new(loss: Shared<Loss>, targets: Targets) -> Self {
        Self {
            loss,
            targets,
            report: Shared::default(),
            gradient: None,
        }
    }

    /// What every sample did: filled in when the node is computed.
    pub fn report(&self) -> Shared<Report> {
        self.report.clone()
    }
}

impl Operation for FaceLoss {
    fn name(&self) -> &'static str {
        "face_loss"
    }

    fn forward(&mut self, inputs: &[&Tensor], needs_gradient: bool) -> Result<Tensor> {
        let images = inputs[0];
        let (report, gradient) =
            lock(&self.loss).evaluate(images, &self.targets, needs_gradient)?;
        let value = Tensor::f_full([], report.loss, (Kind::Float, images.device()))?;
        *lock(&self.report) = report;
        self.gradient = gradient;
        Ok(value)
    }

    fn vjp(&mut self, _: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![match &self.gradient {
            Some(own) => Some(own.f_mul(&gradient.f_to_kind(own.kind())?)?),
            None => None,
        }])
    }
}
