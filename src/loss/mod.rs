//! The identity loss on images. One file per stage, in this order: `gate`, `locate`, `crop`, `embed`,
//! `compare`. `node` makes the loss a node of a graph.

mod compare;
mod crop;
mod embed;
mod gate;
mod images;
mod locate;
mod node;

pub(crate) use crop::{FaceCrop, FaceGroup};
pub(crate) use images::GeneratedImages;
pub(crate) use node::FaceLoss;
pub use node::face_loss;

use crate::batch::{Report, Sample, Targets};
use crate::config::LossConfig;
use crate::error::{Result, bail};
use crate::face::FacePlace;
use crate::pipeline::Pipeline;
use crate::reference::References;
use tch::Tensor;

/// A loss on images: its configuration, its networks and its references.
pub struct Loss {
    config: LossConfig,
    pipeline: Pipeline,
    references: References,
}

impl Loss {
    /// A loss over networks that are already loaded.
    pub fn new(config: LossConfig, pipeline: Pipeline) -> Self {
        Self {
            references: References::new(config.reference_mode, config.reference_cache),
            config,
            pipeline,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &LossConfig {
        &self.config
    }

    /// The networks.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    pub(crate) fn references(&self) -> &References {
        &self.references
    }

    pub(crate) fn references_mut(&mut self) -> &mut References {
        &mut self.references
    }

    /// Registers `id` with the faces of `images` `[K,3,H,W]` (RGB in [0, 1]) and replaces an earlier one.
    /// `places` is empty or says per image where its face is. Returns how many images are used.
    ///
    /// # Errors
    /// `Argument` where no image has a face.
    pub fn set_reference(
        &mut self,
        id: &str,
        images: &Tensor,
        places: &[FacePlace],
    ) -> Result<usize> {
        self.references.register(&self.pipeline, id, images, places)
    }

    /// Removes a registered id; false where it was not registered.
    pub fn remove_reference(&mut self, id: &str) -> bool {
        self.references.remove(id)
    }

    /// The loss of `images` `[N,3,H,W]` (RGB, any float dtype, nominally in [0, 1]) and, where asked for, its
    /// gradient with respect to them, in their dtype. The gradient of a sample that does not count is zero.
    ///
    /// # Errors
    /// `Shape` and `Argument` for images and targets that do not fit each other or the configuration;
    /// `OutOfMemory`.
    pub fn evaluate(
        &mut self,
        images: &Tensor,
        targets: &Targets,
        with_gradient: bool,
    ) -> Result<(Report, Option<Tensor>)> {
        let (samples, faces) = self.prepare(images, targets)?;
        let mut report = Report {
            samples,
            ..Report::default()
        };
        let groups = [FaceGroup::whole_images(faces)];
        let gradients = self.compare(&groups, &[images], &mut report, with_gradient)?;
        report.warn(|at| targets.number(at));
        let gradient = match gradients {
            _ if !with_gradient => None,
            Some(mut gradients) => Some(gradients.swap_remove(0)),
            None => Some(images.f_zeros_like()?),
        };
        Ok((report, gradient))
    }

    /// Everything before the comparison: checks and gates the samples of `images` and finds their faces.
    fn prepare(
        &mut self,
        images: &Tensor,
        targets: &Targets,
    ) -> Result<(Vec<Sample>, Vec<FaceCrop>)> {
        let &[count, 3, _, _] = images.size().as_slice() else {
            bail!(Shape, "images: expected [N,3,H,W], got {:?}", images.size());
        };
        targets.check(count as usize)?;
        let mut samples = self.gate(targets, count as usize);
        let faces = self.find_faces(&mut images.detach(), targets, &mut samples)?;
        Ok((samples, faces))
    }

    /// The crop and the reference of every sample that counts. A sample without one of them is marked as left
    /// out.
    pub(crate) fn find_faces(
        &mut self,
        images: &mut dyn GeneratedImages,
        targets: &Targets,
        samples: &mut [Sample],
    ) -> Result<Vec<FaceCrop>> {
        let located = self.locate(images, targets, samples)?;
        self.crop(located, samples)
    }
}
