//! Comparing: similarities, the loss, and its gradient with respect to the images.

use super::Loss;
use super::group::{FaceCrop, FaceGroup};
use crate::batch::{Outcome, Report};
use crate::error::Result;
use crate::tensor::{finite_rows, flags, place_rows, select_rows, vjp};
use tch::{Device, Kind, Tensor};

impl Loss {
    /// Fills in the report's similarities and sums. `images` holds the pixels of each group. Where asked for, the
    /// gradient of `report.loss` with respect to each group's images, in their dtype; `None` where no sample
    /// counts. A sample whose loss or gradient is not finite is left out of both.
    pub(super) fn compare(
        &self,
        groups: &[FaceGroup],
        images: &[&Tensor],
        report: &mut Report,
        with_gradient: bool,
    ) -> Result<Option<Vec<Tensor>>> {
        let faces: Vec<&FaceCrop> = groups.iter().flat_map(|group| &group.faces).collect();
        if faces.is_empty() {
            return Ok(None);
        }
        let leaf = |images: &&Tensor| -> Result<Tensor> {
            let leaf = images.detach().f_to_kind(Kind::Float)?;
            Ok(leaf.f_set_requires_grad(with_gradient)?)
        };
        let leaves = images.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let embeddings = self.embed(groups, &leaves)?;
        let similarities = similarities(&embeddings, &faces)?;
        let weights: Vec<f32> = faces
            .iter()
            .map(|face| report.samples[face.sample].weight as f32)
            .collect();
        let weights = Tensor::f_from_slice(&weights)?.f_to_device(embeddings.device())?;
        let capped = similarities.f_clamp_max(self.config.target_similarity)?;
        let losses = weights.f_mul(&capped.f_neg()?.f_add_scalar(1.0)?)?;

        let mut finite = losses.f_isfinite()?;
        let mut gradients = vec![];
        if with_gradient {
            let ones = losses.f_ones_like()?;
            let scale = self.config.face_loss_weight / faces.len() as f64;
            let all = vjp(&losses, &leaves.iter().collect::<Vec<_>>(), &ones, false)?;
            let mut own = vec![];
            for ((raw, images), group) in all.into_iter().zip(images).zip(groups) {
                let gradient = raw.f_mul_scalar(scale)?.f_to_kind(images.kind())?;
                own.push(select_rows(&finite_rows(&gradient)?, &group.rows())?);
                gradients.push(gradient);
            }
            finite = finite.f_logical_and(&Tensor::f_cat(&own, 0)?)?;
        }
        let cosines = similarities.detach().f_to_device(Device::Cpu)?;
        let cosines: Vec<f64> = Vec::try_from(cosines.f_to_kind(Kind::Double)?)?;
        for ((face, finite), cosine) in faces.iter().zip(flags(&finite)?).zip(cosines) {
            let sample = &mut report.samples[face.sample];
            sample.similarity = cosine;
            if !finite {
                sample.outcome = Outcome::NonFinite;
            }
        }
        self.total(report);
        let counted = report.counted() as f64;
        if counted == 0.0 || !with_gradient {
            return Ok(None);
        }
        // The gradients are those of the mean over all faces; the mean is over the samples that count.
        let factor = faces.len() as f64 / counted;
        let dropped = finite.f_logical_not()?;
        let mut first = 0;
        for (gradient, group) in gradients.iter_mut().zip(groups) {
            let count = group.faces.len() as i64;
            let none = Tensor::f_zeros(gradient.size()[0], (Kind::Bool, gradient.device()))?;
            let dropped = place_rows(&none, &group.rows(), &dropped.f_narrow(0, first, count)?)?;
            let cleared = gradient.f_masked_fill(&dropped.f_view([-1, 1, 1, 1])?, 0.0)?;
            *gradient = cleared.f_mul_scalar(factor)?;
            first += count;
        }
        Ok(Some(gradients))
    }

    /// Computes the report's sums from its samples.
    pub(crate) fn total(&self, report: &mut Report) {
        report.total(self.config.face_loss_weight, self.config.target_similarity);
    }
}

/// `[M]` cosines of every embedding with its reference: the largest over the reference's rows.
fn similarities(embeddings: &Tensor, faces: &[&FaceCrop]) -> Result<Tensor> {
    let single = |face: &&FaceCrop| face.reference.embeddings.size()[0] == 1;
    if faces.iter().all(single) {
        let rows: Vec<&Tensor> = faces.iter().map(|f| &f.reference.embeddings).collect();
        let references = Tensor::f_cat(&rows, 0)?;
        let products = embeddings.f_mul(&references)?;
        return Ok(products.f_sum_dim_intlist([-1i64].as_slice(), false, None)?);
    }
    let cosines: Result<Vec<Tensor>> = (0i64..)
        .zip(faces)
        .map(|(row, face)| {
            let one = embeddings.f_select(0, row)?;
            Ok(face.reference.embeddings.f_mv(&one)?.f_max()?)
        })
        .collect();
    Ok(Tensor::f_stack(&cosines?, 0)?)
}
