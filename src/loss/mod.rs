//! The identity loss on images: gate, references, locate, align, embed, compare, differentiate; and
//! around it the fused step from a model's prediction. Beside it the score that needs no gradient.

mod audit;
mod evaluate;
mod operation;
mod pictures;
mod pipeline;
mod references;
mod report;
mod schedule;
mod state;
mod statistics;
mod step;
mod targets;
mod way;
mod window;

pub use evaluate::{Evaluator, Found};
pub use operation::FaceLoss;
pub use pipeline::{Pipeline, crop};
pub use report::{Alignment, Audit, Decoded, Located, Outcome, Report, Sample};
pub use step::{Step, step};
pub use targets::{Known, Targets};

use crate::config::{Locate, LossConfig};
use crate::error::{Result, bail};
use crate::tensor::vjp;
use audit::Trust;
use pictures::{Pictures, Shown, select_rows};
use references::{Reference, References};
use statistics::Remembered;
use tch::{Kind, Tensor};

/// A loss: its configuration, networks and what it remembers.
pub struct Loss {
    config: LossConfig,
    pipeline: Pipeline,
    references: References,
    statistics: Remembered,
    trust: Trust,
}

/// A live sample on its way through the loss.
#[derive(Clone)]
struct Candidate {
    sample: usize,
    reference: Reference,
    crop: crate::align::Crop,
}

impl Loss {
    /// A loss over networks that are already loaded.
    pub fn new(config: LossConfig, pipeline: Pipeline) -> Self {
        Self {
            references: References::new(config.reference_mode, config.reference_cache),
            statistics: Remembered::new(config.norm_stats_refresh, config.norm_stats_cache),
            trust: Trust::new(&config),
            config,
            pipeline,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &LossConfig {
        &self.config
    }

    /// Registers `id` with the faces of `images` `[K,3,H,W]` (RGB in [0, 1]); returns how many of
    /// them are used. `known` is empty or says for every image where its face is.
    pub fn set_reference(&mut self, id: &str, images: &Tensor, known: &[Known]) -> Result<usize> {
        self.references.register(&self.pipeline, id, images, known)
    }

    /// Forgets a registered id; false where it was not registered.
    pub fn remove_reference(&mut self, id: &str) -> bool {
        self.references.remove(id)
    }

    /// The value over `images` `[N,3,H,W]` (RGB, any float dtype, nominally in [0, 1]) and, where
    /// asked for, its gradient with respect to them in their own dtype. A sample that does not
    /// count has a gradient of exactly zero.
    pub fn evaluate(
        &mut self,
        images: &Tensor,
        targets: &Targets,
        with_gradient: bool,
    ) -> Result<(Report, Option<Tensor>)> {
        let &[count, 3, _, _] = images.size().as_slice() else {
            bail!(Shape, "images: expected [N,3,H,W], got {:?}", images.size());
        };
        targets.check(count as usize)?;
        let mut report = Report {
            samples: self.gate(targets, count as usize),
            ..Report::default()
        };
        let mut pictures = images.detach();
        let candidates = self.locate(&mut pictures, targets, &mut report.samples)?;
        let rows: Vec<i64> = candidates.iter().map(|c| c.sample as i64).collect();
        let shown = Shown {
            images: select_rows(&pictures, &rows)?,
            frames: vec![],
            candidates,
        };
        let gradient = self.compare(&[shown], &mut report, with_gradient)?;
        report.warn(|at| targets.number(at));
        if !with_gradient {
            return Ok((report, None));
        }
        let gradient = match gradient.map(|mut of_shown| of_shown.swap_remove(0)) {
            None => images.f_zeros_like()?,
            Some(gradient) if rows.len() == count as usize => gradient,
            Some(gradient) => {
                let index = Tensor::f_from_slice(&rows)?.f_to_device(images.device())?;
                images.f_zeros_like()?.f_index_copy(0, &index, &gradient)?
            }
        };
        Ok((report, Some(gradient)))
    }

    /// Decides what needs no network to be decided.
    fn gate(&self, targets: &Targets, count: usize) -> Vec<Sample> {
        (0..count)
            .map(|at| {
                let weight = targets.weights.get(at).copied().unwrap_or(1.0);
                let counts = |data_type: &String| self.config.face_types.contains(data_type);
                let outcome = if !self.config.use_face_loss {
                    Outcome::Disabled
                } else if !targets.data_types.get(at).is_none_or(counts) {
                    Outcome::DataType
                } else if weight == 0.0 {
                    Outcome::ZeroWeight
                } else {
                    Outcome::Counted
                };
                Sample {
                    outcome,
                    weight,
                    similarity: f64::NAN,
                    score: f64::NAN,
                    ..Sample::default()
                }
            })
            .collect()
    }

    /// Finds the reference and the generated face of every live sample; a sample without one of
    /// them is marked and left out.
    fn locate(
        &mut self,
        pictures: &mut dyn Pictures,
        targets: &Targets,
        samples: &mut [Sample],
    ) -> Result<Vec<Candidate>> {
        let live: Vec<usize> = (0..samples.len())
            .filter(|&at| samples[at].outcome == Outcome::Counted)
            .collect();
        let live = finite_rows(pictures, live, samples)?;
        let mut found = vec![];
        let references = self.references.resolve(&self.pipeline, targets, &live)?;
        for (at, reference) in live.into_iter().zip(references) {
            match reference {
                Some(reference) => found.push((at, reference)),
                None => samples[at].outcome = Outcome::NoReferenceFace,
            }
        }
        let places = self.places(pictures, targets, samples, &found)?;
        let mut candidates = vec![];
        for ((at, reference), place) in found.into_iter().zip(places) {
            let sample = &mut samples[at];
            let Some(place) = place else {
                sample.outcome = Outcome::NoFace;
                continue;
            };
            sample.bbox = place.bbox;
            sample.landmarks = place.landmarks;
            match self.pipeline.crop(at, &place)? {
                None => sample.outcome = Outcome::Degenerate,
                Some((crop, alignment)) => {
                    sample.alignment = alignment;
                    candidates.push(Candidate {
                        sample: at,
                        reference,
                        crop,
                    });
                }
            }
        }
        Ok(candidates)
    }

    /// Where the generated face of every entry of `found` is.
    fn places(
        &self,
        pictures: &mut dyn Pictures,
        targets: &Targets,
        samples: &mut [Sample],
        found: &[(usize, Reference)],
    ) -> Result<Vec<Option<Known>>> {
        let (height, width) = pictures.size();
        let (height, width) = (height as f64, width as f64);
        let in_reference = |reference: &Reference| {
            let face = reference.face.as_ref()?;
            Some(face.place_in(width, height))
        };
        let mut places = vec![None; found.len()];
        let mut unknown = vec![];
        for (slot, (at, reference)) in found.iter().enumerate() {
            let given = targets.faces.get(*at).filter(|known| !known.is_empty());
            if let Some(known) = given {
                places[slot] = Some(*known);
                samples[*at].located = Located::Given;
            } else if self.config.landmarks == Locate::Reference {
                places[slot] = in_reference(reference);
                if places[slot].is_none() {
                    bail!(
                        Argument,
                        "sample {}: `landmarks` is \"reference\", which needs a reference image of the \
                         sample itself, not a registered id",
                        targets.number(*at)
                    );
                }
                samples[*at].located = Located::Reference;
            } else {
                unknown.push(slot);
            }
        }
        if unknown.is_empty() {
            return Ok(places);
        }
        let rows: Vec<i64> = unknown.iter().map(|&slot| found[slot].0 as i64).collect();
        let batch = pictures.show(&rows)?;
        for (&slot, face) in unknown.iter().zip(self.pipeline.detect(&batch)?) {
            let (at, reference) = &found[slot];
            if let Some(face) = face {
                samples[*at].located = Located::Detected;
                samples[*at].score = face.score;
                places[slot] = Some(Known::from(&face));
            } else if self.config.landmarks == Locate::DetectOrReference {
                places[slot] = in_reference(reference);
                if places[slot].is_some() {
                    samples[*at].located = Located::Reference;
                }
            }
        }
        Ok(places)
    }

    /// Fills in the report's sums from its samples.
    fn total(&self, report: &mut Report) {
        report.total(self.config.face_loss_weight, self.config.target_similarity);
    }

    /// Embeds the candidates and fills in the report's values; where asked for, the gradient with respect
    /// to what is shown of each, `None` where none counts.
    fn compare(
        &self,
        shown: &[Shown],
        report: &mut Report,
        with_gradient: bool,
    ) -> Result<Option<Vec<Tensor>>> {
        let candidates: Vec<&Candidate> = shown.iter().flat_map(|s| &s.candidates).collect();
        if candidates.is_empty() {
            return Ok(None);
        }
        let leaf = |s: &Shown| -> Result<Tensor> {
            let leaf = s.images.detach().f_to_kind(Kind::Float)?;
            Ok(leaf.f_set_requires_grad(with_gradient)?)
        };
        let leaves = shown.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let embeddings = self.pipeline.embed_shown(&leaves, shown)?;
        let similarities = similarities(&embeddings, &candidates)?;
        let weights: Vec<f32> = candidates
            .iter()
            .map(|c| report.samples[c.sample].weight as f32)
            .collect();
        let weights = Tensor::f_from_slice(&weights)?.f_to_device(embeddings.device())?;
        let capped = similarities.f_clamp_max(self.config.target_similarity)?;
        let losses = weights.f_mul(&capped.f_neg()?.f_add_scalar(1.0)?)?;

        let mut finite = losses.f_isfinite()?;
        let mut gradients = vec![];
        if with_gradient {
            let ones = losses.f_ones_like()?;
            let scale = self.config.face_loss_weight / candidates.len() as f64;
            let all = vjp(&losses, &leaves.iter().collect::<Vec<_>>(), &ones, false)?;
            for (raw, shown) in all.into_iter().zip(shown) {
                gradients.push(raw.f_mul_scalar(scale)?.f_to_kind(shown.images.kind())?);
            }
            let whole = |g: &Tensor| Ok(g.f_flatten(1, -1)?.f_isfinite()?.f_all_dim(1, false)?);
            let whole = gradients.iter().map(whole).collect::<Result<Vec<_>>>()?;
            finite = finite.f_logical_and(&Tensor::f_cat(&whole, 0)?)?;
        }
        let flags: Vec<bool> = Vec::try_from(finite.f_to_device(tch::Device::Cpu)?)?;
        let cosines: Vec<f64> = Vec::try_from(
            similarities
                .detach()
                .f_to_device(tch::Device::Cpu)?
                .f_to_kind(Kind::Double)?,
        )?;
        for ((candidate, finite), cosine) in candidates.iter().zip(flags).zip(cosines) {
            let sample = &mut report.samples[candidate.sample];
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
        // The mean is over those that are left.
        let dropped = finite.f_logical_not()?.f_view([-1, 1, 1, 1])?;
        let factor = candidates.len() as f64 / counted;
        let mut first = 0;
        for gradient in &mut gradients {
            let rows = gradient.size()[0];
            let cleared = gradient.f_masked_fill(&dropped.f_narrow(0, first, rows)?, 0.0)?;
            *gradient = cleared.f_mul_scalar(factor)?;
            first += rows;
        }
        Ok(Some(gradients))
    }
}

/// The live samples whose pictures are finite; the others are marked. A detector would call them
/// faceless, which says nothing about the cause.
fn finite_rows(
    pictures: &dyn Pictures,
    live: Vec<usize>,
    samples: &mut [Sample],
) -> Result<Vec<usize>> {
    if live.is_empty() {
        return Ok(live);
    }
    let finite = pictures.finite()?;
    let (good, bad): (Vec<usize>, Vec<usize>) = live.into_iter().partition(|&at| finite[at]);
    for at in bad {
        samples[at].outcome = Outcome::NonFinite;
    }
    Ok(good)
}

/// `[M]` cosines of every embedding with its reference: the largest over the reference's rows.
fn similarities(embeddings: &Tensor, candidates: &[&Candidate]) -> Result<Tensor> {
    if candidates
        .iter()
        .all(|c| c.reference.embeddings.size()[0] == 1)
    {
        let rows: Vec<&Tensor> = candidates.iter().map(|c| &c.reference.embeddings).collect();
        let references = Tensor::f_cat(&rows, 0)?;
        return Ok(embeddings.f_mul(&references)?.f_sum_dim_intlist(
            [-1i64].as_slice(),
            false,
            None,
        )?);
    }
    let cosines: Result<Vec<Tensor>> = (0i64..)
        .zip(candidates)
        .map(|(row, candidate)| {
            let one = embeddings.f_select(0, row)?;
            Ok(candidate.reference.embeddings.f_mv(&one)?.f_max()?)
        })
        .collect();
    Ok(Tensor::f_stack(&cosines?, 0)?)
}
