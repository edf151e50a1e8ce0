//! One forward and backward pass for some samples: from their prediction to their loss and its gradient, through whole
//! images or through windows.

use super::StepLoss;
use super::audit::compare_gradients;
use super::chunk::{Chunk, DecodedGroup, LatentGraph};
use crate::batch::{Decoded, Outcome, Report, Sample};
use crate::error::Result;
use crate::graph::NodeId;
use crate::loss::{FaceCrop, FaceGroup, FoundFaces};
use crate::shared::lock;
use crate::tensor::finite_rows;
use tch::Tensor;

/// The gradient with respect to the samples' prediction of their mean loss, and the number of samples that the
/// mean is over.
pub(super) type MeanGradient = (Tensor, f64);

impl StepLoss {
    /// Runs the forward and backward pass for a chunk. The gradient is `None` where it is not asked for or no
    /// sample counts. At a step that audits, whole images are decoded too, and report and gradient are theirs.
    pub(super) fn run(
        &mut self,
        chunk: &Chunk,
        mut samples: Vec<Sample>,
    ) -> Result<(Report, Option<MeanGradient>)> {
        let mut graph = self.latent_graph(chunk)?;
        let windows = self
            .audits
            .allow_windows(lock(chunk.decoder).without_windows())?
            && !lock(&self.loss).pipeline().is_score;
        let (groups, finite) = match windows {
            true => self.window_groups(chunk, &mut graph, &mut samples)?,
            false => self.image_group(chunk, &mut graph, &mut samples)?,
        };
        let finite = finite.as_ref();
        let mut faces: Vec<FaceCrop> = vec![];
        if windows && self.audits_step(chunk) {
            faces.extend(
                groups
                    .iter()
                    .flat_map(|one| one.group.faces.iter().cloned()),
            );
            faces.sort_by_key(|face| face.sample);
        }
        let (mut report, mut gradient) =
            self.compare(chunk, graph, groups, finite, samples.clone())?;
        if !faces.is_empty() {
            let of_windows = gradient;
            (report, gradient) = self.compare_whole_images(chunk, faces, finite, samples)?;
            self.audit(chunk, &mut report, of_windows.as_ref(), gradient.as_ref())?;
        }
        report.warn(|at| chunk.targets.number(at));
        Ok((report, gradient))
    }

    /// Decodes the whole images and finds their faces. The tensor is [`FoundFaces::finite`].
    fn image_group(
        &self,
        chunk: &Chunk,
        graph: &mut LatentGraph,
        samples: &mut [Sample],
    ) -> Result<(Vec<DecodedGroup>, Option<Tensor>)> {
        let decode = Box::new(self.decode(chunk));
        let images = graph.graph.apply(decode, &[graph.latents])?;
        let mut pixels = graph.graph.value(images)?.shallow_clone();
        let FoundFaces { faces, finite } =
            lock(&self.loss).find_faces(&mut pixels, &chunk.targets, samples)?;
        for sample in samples {
            sample.decoded = Decoded::Full;
        }
        let group = FaceGroup::whole_images(faces);
        Ok((vec![DecodedGroup { images, group }], finite))
    }

    /// Compares faces that are found already, in whole images instead of windows.
    fn compare_whole_images(
        &self,
        chunk: &Chunk,
        faces: Vec<FaceCrop>,
        finite: Option<&Tensor>,
        samples: Vec<Sample>,
    ) -> Result<(Report, Option<MeanGradient>)> {
        let mut graph = self.latent_graph(chunk)?;
        let rows = faces.iter().map(|face| face.sample).collect();
        let decode = Box::new(self.decode(chunk).of_rows(rows));
        let images = graph.graph.apply(decode, &[graph.latents])?;
        let faces = (0..).zip(&faces).map(|(row, face)| face.in_row(row));
        let group = FaceGroup::whole_images(faces.collect());
        let groups = vec![DecodedGroup { images, group }];
        self.compare(chunk, graph, groups, finite, samples)
    }

    /// The loss of the decoded faces, and its gradient with respect to the prediction. Everything is put on the device
    /// before the one read that waits for it.
    fn compare(
        &self,
        chunk: &Chunk,
        graph: LatentGraph,
        groups: Vec<DecodedGroup>,
        finite: Option<&Tensor>,
        samples: Vec<Sample>,
    ) -> Result<(Report, Option<MeanGradient>)> {
        let LatentGraph {
            mut graph,
            prediction,
            ..
        } = graph;
        let (nodes, groups): (Vec<NodeId>, Vec<FaceGroup>) = groups
            .into_iter()
            .map(|one| (one.images, one.group))
            .unzip();
        let comparison = {
            let images = nodes
                .iter()
                .map(|&id| graph.value(id))
                .collect::<Result<Vec<_>>>()?;
            lock(&self.loss)
                .compare(&groups, &images, &samples, finite, chunk.with_gradient)
                .map_err(|e| e.context("face_loss"))?
        };
        let mut report = Report {
            samples,
            ..Report::default()
        };
        let Some(mut comparison) = comparison else {
            return Ok((report, None));
        };
        if !chunk.with_gradient {
            lock(&self.loss).read(&comparison, None, &mut report)?;
            return Ok((report, None));
        }
        let seeds = std::mem::take(&mut comparison.gradients);
        graph.backward_from(nodes.into_iter().zip(seeds).collect())?;
        let gradient = graph.gradient(prediction)?;
        let finite = finite_rows(&gradient)?;
        let flags = lock(&self.loss).read(&comparison, Some(&finite), &mut report)?;
        if report.counted() == 0 {
            return Ok((report, None));
        }
        let gradient = match flags.iter().all(|&finite| finite) {
            true => gradient,
            // What overflowed in the decoder's backward pass.
            false => without_rows(&gradient, &finite.f_logical_not()?)?,
        };
        Ok((report, Some((gradient, comparison.faces() as f64))))
    }

    /// Whether a chunk that is decoded in windows is also decoded in whole images.
    fn audits_step(&self, chunk: &Chunk) -> bool {
        let every = lock(&self.loss).config().audit_every;
        chunk.with_gradient && every > 0 && chunk.step.number.is_multiple_of(every)
    }

    /// Compares the gradients through windows with those through whole images.
    fn audit(
        &mut self,
        chunk: &Chunk,
        report: &mut Report,
        windows: Option<&MeanGradient>,
        whole: Option<&MeanGradient>,
    ) -> Result<()> {
        let (Some((windows, _)), Some((whole, _))) = (windows, whole) else {
            return Ok(());
        };
        for (at, sample) in report.samples.iter_mut().enumerate() {
            if sample.outcome == Outcome::Counted {
                let row = at as i64;
                let audit =
                    compare_gradients(&windows.f_select(0, row)?, &whole.f_select(0, row)?)?;
                self.audits.record(chunk.rows[at], sample.decoded, &audit);
                sample.audit = Some(audit);
            }
        }
        Ok(())
    }
}

/// The gradient with zeros in some rows; `dropped`: `[N]` of bool.
fn without_rows(gradient: &Tensor, dropped: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; gradient.dim()];
    shape[0] = -1;
    Ok(gradient.f_masked_fill(&dropped.f_view(shape.as_slice())?, 0.0)?)
}
