//! The loss as a node of the graph.

use super::pictures::Shown;
use super::{Candidate, Loss, Report, Targets};
use crate::align::Frame;
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

/// `windows, … → loss`, a scalar, over faces that are found already: one input a group of windows, or one
/// input with whole pictures.
pub(super) struct CompareFaces {
    loss: Shared<Loss>,
    faces: Faces,
    report: Shared<Report>,
    gradients: Option<Vec<Tensor>>,
}

/// Where the inputs of [`CompareFaces`] show faces.
pub(super) enum Faces {
    /// In windows that lie in their pictures as the frames say.
    Windows(Vec<(Vec<Frame>, Vec<Candidate>)>),
    /// One in every picture.
    Whole(Vec<Candidate>),
}

impl CompareFaces {
    /// A node that is not computed yet; `report` holds the samples that the faces belong to.
    pub(super) fn new(loss: Shared<Loss>, faces: Faces, report: Shared<Report>) -> Self {
        Self {
            loss,
            faces,
            report,
            gradients: None,
        }
    }
}

impl Operation for CompareFaces {
    fn name(&self) -> &'static str {
        "face_loss"
    }

    fn forward(&mut self, inputs: &[&Tensor], needs_gradient: bool) -> Result<Tensor> {
        let shown: Vec<Shown> = match &self.faces {
            Faces::Windows(groups) => groups
                .iter()
                .zip(inputs)
                .map(|((frames, candidates), images)| Shown {
                    images: images.shallow_clone(),
                    frames: frames.clone(),
                    candidates: candidates.clone(),
                })
                .collect(),
            Faces::Whole(candidates) => vec![Shown {
                images: inputs[0].shallow_clone(),
                frames: vec![],
                candidates: candidates.clone(),
            }],
        };
        let mut report = lock(&self.report);
        self.gradients = lock(&self.loss).compare(&shown, &mut report, needs_gradient)?;
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
