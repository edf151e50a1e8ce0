//! Comparing: similarities, the loss, and its gradient with respect to the images.

use super::Loss;
use super::group::{FaceCrop, FaceGroup};
use crate::batch::{Outcome, Report};
use crate::error::{Result, bail};
use crate::nets::Levels;
use crate::tensor::{finite_rows, numbers, place_rows, select_rows, upload, vjp};
use tch::{Kind, Tensor};

impl Loss {
    /// Fills in the report's similarities and sums. `images` holds the pixels of each group. Returns the gradient of
    /// `report.loss` with respect to each group's images, in their dtype, where it is asked for; `None` where no sample
    /// counts. A sample whose loss or gradient is not finite is left out of both.
    pub(super) fn compare(
        &self,
        groups: &[FaceGroup],
        images: &[&Tensor],
        report: &mut Report,
        with_gradient: bool,
    ) -> Result<Option<Vec<Tensor>>> {
        self.allow_gradient(with_gradient)?;
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
        let levels = &self.pipeline.levels;
        let similarities = similarities(levels, &embeddings, &faces)?;
        let weights: Vec<f32> = faces
            .iter()
            .map(|face| report.samples[face.sample].weight as f32)
            .collect();
        let weights = upload(&weights, embeddings.device())?;
        let caps = upload(&self.caps(), embeddings.device())?;
        let distances = similarities.f_minimum(&caps)?.f_neg()?.f_add_scalar(1.0)?;
        let parts = upload(levels.weights(), embeddings.device())?.f_to_kind(Kind::Float)?;
        let losses = weights.f_mul(&distances.f_mv(&parts)?)?;

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
        // One row per face: its cosines, and whether all of its numbers are finite. Reading all rows at once waits for
        // the device only once.
        let told = [
            similarities.detach().f_to_kind(Kind::Double)?,
            finite.f_to_kind(Kind::Double)?.f_unsqueeze(1)?,
        ];
        let told = numbers(&Tensor::f_cat(&told, 1)?)?;
        let count = levels.weights().len();
        for (face, told) in faces.iter().zip(told.chunks(count + 1)) {
            let (cosines, finite) = (&told[..count], told[count] != 0.0);
            let sample = &mut report.samples[face.sample];
            sample.similarity = cosines[levels.embedding()];
            if levels.several() {
                sample.levels = cosines.to_vec();
            }
            if !finite {
                sample.outcome = Outcome::NonFinite;
            }
        }
        self.total(report);
        let counted = report.counted() as f64;
        if counted == 0.0 || !with_gradient {
            return Ok(None);
        }
        // The gradients so far are those of the mean over all faces. The loss is the mean over the samples that count.
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

    /// Fails where a gradient is asked for and there is none.
    ///
    /// # Errors
    /// `Argument`.
    pub(crate) fn allow_gradient(&self, wanted: bool) -> Result<()> {
        if wanted && self.pipeline.is_score {
            bail!(
                Argument,
                "gradient: face_loss_type is \"non_differentiable\", a score without a gradient; expected NULL. Set \
                 face_loss_type to \"differentiable\" to train with the loss"
            );
        }
        Ok(())
    }

    /// Computes the report's sums from its samples.
    pub(crate) fn total(&self, report: &mut Report) {
        let caps = self.caps().into_iter().map(f64::from);
        let levels: Vec<(f64, f64)> = caps
            .zip(self.pipeline.levels.weights().iter().copied())
            .collect();
        report.total(self.config.face_loss_weight, &levels);
    }

    /// Per level the cosine from which on there is no gradient. Only the embedding has one below 1.
    fn caps(&self) -> Vec<f32> {
        let levels = &self.pipeline.levels;
        let mut caps = vec![1.0; levels.weights().len()];
        caps[levels.embedding()] = self.config.target_similarity as f32;
        caps
    }
}

/// `[M,L]` cosines of every face with its reference on every level: those of the reference's row whose weighted sum is
/// largest.
fn similarities(levels: &Levels, features: &Tensor, faces: &[&FaceCrop]) -> Result<Tensor> {
    let single = |face: &&FaceCrop| face.reference.embeddings.size()[0] == 1;
    if faces.iter().all(single) {
        let rows: Vec<&Tensor> = faces.iter().map(|f| &f.reference.embeddings).collect();
        let references = Tensor::f_cat(&rows, 0)?;
        return levels.cosines(&features.f_mul(&references)?);
    }
    let weights = upload(levels.weights(), features.device())?.f_to_kind(Kind::Float)?;
    let best = |(row, face): (i64, &&FaceCrop)| -> Result<Tensor> {
        let one = features.f_narrow(0, row, 1)?;
        let cosines = levels.cosines(&one.f_mul(&face.reference.embeddings)?)?;
        let nearest = cosines.detach().f_mv(&weights)?.f_argmax(0, true)?;
        Ok(cosines.f_index_select(0, &nearest)?)
    };
    let cosines = (0i64..).zip(faces).map(best);
    Ok(Tensor::f_cat(&cosines.collect::<Result<Vec<_>>>()?, 0)?)
}
