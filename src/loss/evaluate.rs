//! The loss of a batch of images: all stages one after the other.

use super::Loss;
use super::group::FoundFaces;
use super::images::GeneratedImages;
use crate::batch::{Report, Sample, Targets};
use crate::error::{Result, bail};
use tch::Tensor;

impl Loss {
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
        self.allow_gradient(with_gradient)?;
        let (samples, found) = self.prepare(images, targets)?;
        let (groups, finite) = found.in_whole_images();
        let (report, gradients) =
            self.compare_now(&groups, &[images], samples, finite.as_ref(), with_gradient)?;
        report.warn(|at| targets.number(at));
        let gradient = match gradients {
            _ if !with_gradient => None,
            Some(mut gradients) => Some(gradients.swap_remove(0)),
            None => Some(images.f_zeros_like()?),
        };
        Ok((report, gradient))
    }

    /// Everything before the comparison: checks and gates the samples of `images` and finds their faces.
    pub(super) fn prepare(
        &mut self,
        images: &Tensor,
        targets: &Targets,
    ) -> Result<(Vec<Sample>, FoundFaces)> {
        let &[count, 3, _, _] = images.size().as_slice() else {
            bail!(Shape, "images: expected [N,3,H,W], got {:?}", images.size());
        };
        targets.check(count as usize)?;
        let mut samples = self.gate(targets, count as usize);
        let found = self.find_faces(&mut images.detach(), targets, &mut samples)?;
        Ok((samples, found))
    }

    /// The crop and the reference of every sample that counts. A sample without one of them is marked as left
    /// out.
    pub(crate) fn find_faces(
        &mut self,
        images: &mut dyn GeneratedImages,
        targets: &Targets,
        samples: &mut [Sample],
    ) -> Result<FoundFaces> {
        let (located, finite) = self.locate(images, targets, samples)?;
        let faces = self.crop(located, samples)?;
        Ok(FoundFaces { faces, finite })
    }
}
