//! Comparing: similarities, the loss, and its gradient with respect to the images.

use super::Loss;
use super::group::{FaceCrop, FaceGroup};
use crate::batch::{Outcome, Report, Sample};
use crate::error::{Result, bail};
use crate::nets::Levels;
use crate::tensor::{finite_rows, numbers, place_rows, select_rows, upload, vjp};
use tch::{Kind, Tensor};

/// A comparison whose numbers are still on their device: nothing has waited for it.
pub(crate) struct Comparison {
    /// The index of every face's sample.
    samples: Vec<usize>,
    /// `[M,L+1]`, f64: one row per face, which holds its cosines, and 1 where all of its numbers are finite.
    told: Tensor,
    /// Per group the gradient of the mean loss of all M faces with respect to its images, in their dtype; zero for
    /// a face whose numbers are not all finite. Empty unless asked for.
    pub gradients: Vec<Tensor>,
}

impl Comparison {
    /// How many faces the mean is over.
    pub(crate) fn faces(&self) -> usize {
        self.samples.len()
    }
}

impl Loss {
    /// Compares faces and waits for nothing. `images` holds the pixels of each group; `finite` says per sample whether its
    /// image is finite, where that is not known. `None` where there is no face.
    pub(crate) fn compare(
        &self,
        groups: &[FaceGroup],
        images: &[&Tensor],
        samples: &[Sample],
        finite: Option<&Tensor>,
        with_gradient: bool,
    ) -> Result<Option<Comparison>> {
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
            .map(|face| samples[face.sample].weight as f32)
            .collect();
        let weights = upload(&weights, embeddings.device())?;
        let caps = upload(&self.caps(), embeddings.device())?;
        let distances = similarities.f_minimum(&caps)?.f_neg()?.f_add_scalar(1.0)?;
        let parts = upload(levels.weights(), embeddings.device())?.f_to_kind(Kind::Float)?;
        let losses = weights.f_mul(&distances.f_mv(&parts)?)?;

        let samples: Vec<usize> = faces.iter().map(|face| face.sample).collect();
        let images_finite = finite.map(|finite| select_rows(finite, &samples));
        let mut finite = losses.f_isfinite()?;
        if let Some(images_finite) = images_finite {
            finite = finite.f_logical_and(&images_finite?)?;
        }
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
            clear(&mut gradients, groups, &finite.f_logical_not()?)?;
        }
        let told = [
            similarities.detach().f_to_kind(Kind::Double)?,
            finite.f_to_kind(Kind::Double)?.f_unsqueeze(1)?,
        ];
        Ok(Some(Comparison {
            samples,
            told: Tensor::f_cat(&told, 1)?,
            gradients,
        }))
    }

    /// Fills in the report's similarities and sums. A sample whose loss or gradient is not finite is left out.
    /// `later` says per sample of the report whether what was computed after the comparison is finite, `[N]` of
    /// bool; the same comes back. Waits for the device once.
    pub(crate) fn read(
        &self,
        comparison: &Comparison,
        later: Option<&Tensor>,
        report: &mut Report,
    ) -> Result<Vec<bool>> {
        let mut all = vec![comparison.told.f_reshape([-1i64])?];
        if let Some(later) = later {
            all.push(later.f_to_kind(Kind::Double)?);
        }
        let all = numbers(&Tensor::f_cat(&all, 0)?)?;
        let levels = &self.pipeline.levels;
        let count = levels.weights().len();
        let (told, later) = all.split_at(comparison.faces() * (count + 1));
        for (&at, told) in comparison.samples.iter().zip(told.chunks(count + 1)) {
            // The product of two rows of length 1 may be rounded to more than 1.
            let cosines: Vec<f64> = told[..count].iter().map(|x| x.clamp(-1.0, 1.0)).collect();
            let finite = told[count] != 0.0;
            let sample = &mut report.samples[at];
            sample.similarity = cosines[levels.embedding()];
            if levels.several() {
                sample.levels = cosines;
            }
            if !finite {
                sample.outcome = Outcome::NonFinite;
            }
        }
        let later: Vec<bool> = later.iter().map(|&finite| finite != 0.0).collect();
        for (sample, _) in report
            .samples
            .iter_mut()
            .zip(&later)
            .filter(|(_, finite)| !**finite)
        {
            sample.outcome = Outcome::NonFinite;
        }
        self.total(report);
        Ok(later)
    }

    /// Compares faces and reads the result. The gradients are those of `report.loss`; `None` where no sample counts, or
    /// where they are not asked for.
    pub(super) fn compare_now(
        &self,
        groups: &[FaceGroup],
        images: &[&Tensor],
        samples: Vec<Sample>,
        finite: Option<&Tensor>,
        with_gradient: bool,
    ) -> Result<(Report, Option<Vec<Tensor>>)> {
        let comparison = self.compare(groups, images, &samples, finite, with_gradient)?;
        let mut report = Report {
            samples,
            ..Report::default()
        };
        let Some(mut comparison) = comparison else {
            return Ok((report, None));
        };
        self.read(&comparison, None, &mut report)?;
        let counted = report.counted();
        if counted == 0 || !with_gradient {
            return Ok((report, None));
        }
        // The gradients so far are those of the mean over all faces. The loss is the mean over the samples that count.
        if counted != comparison.faces() {
            let factor = comparison.faces() as f64 / counted as f64;
            for gradient in &mut comparison.gradients {
                *gradient = gradient.f_mul_scalar(factor)?;
            }
        }
        Ok((report, Some(comparison.gradients)))
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

/// Sets the gradients of some faces to zero; `dropped`: `[M]` of bool.
fn clear(gradients: &mut [Tensor], groups: &[FaceGroup], dropped: &Tensor) -> Result<()> {
    let mut first = 0;
    for (gradient, group) in gradients.iter_mut().zip(groups) {
        let count = group.faces.len() as i64;
        let none = Tensor::f_zeros(gradient.size()[0], (Kind::Bool, gradient.device()))?;
        let dropped = place_rows(&none, &group.rows(), &dropped.f_narrow(0, first, count)?)?;
        *gradient = gradient.f_masked_fill(&dropped.f_view([-1, 1, 1, 1])?, 0.0)?;
        first += count;
    }
    Ok(())
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
