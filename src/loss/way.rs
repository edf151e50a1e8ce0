//! The way of some samples: from a model's prediction to their loss and back, through whole images or
//! windows of them.

use super::audit::audit;
use super::operation::{CompareFaces, Faces};
use super::window::Undecoded;
use super::{Decoded, FaceLoss, Loss, Outcome, Report, Sample, Step, Targets};
use crate::error::Result;
use crate::graph::{Decode, Graph, NodeId, Unpacking, predict_x0, unpack};
use crate::log::warn_host;
use crate::nets::vae::Decoder;
use crate::shared::{Shared, lock};
use std::sync::{Arc, Mutex};
use tch::{Device, Tensor};

/// Some samples of a step.
pub(super) struct Way<'a> {
    pub loss: &'a Shared<Loss>,
    pub decoder: &'a Shared<Decoder>,
    pub step: &'a Step,
    /// Their places in the batch.
    pub rows: &'a [usize],
    /// Of x0, one a sample.
    pub pairs: Vec<(f64, f64)>,
    /// Their noise, where known.
    pub levels: Option<Vec<f64>>,
    pub with_gradient: bool,
}

/// The samples' reports, and where any counts the gradient of their mean loss with the number that it is a
/// mean of.
pub(super) type Walked = (Report, Option<(Tensor, f64)>);

/// A tape from the samples' prediction to the latents that their VAE decodes.
struct Tape {
    graph: Graph,
    prediction: NodeId,
    latents: NodeId,
}

impl Way<'_> {
    /// There and back. `targets` are those of the samples.
    pub(super) fn go(&self, targets: Targets) -> Result<Walked> {
        let tape = self.tape()?;
        let possible = lock(self.decoder).has_windows();
        let windows = lock(self.loss).trust.windows(possible);
        match windows {
            true => self.through_windows(tape, &targets),
            false => self.through_images(tape, targets),
        }
    }

    fn tape(&self) -> Result<Tape> {
        let whole = self.pairs.len() as i64 == self.step.prediction.size()[0];
        let select = |x: &Tensor| -> Result<Tensor> {
            Ok(match whole {
                true => x.shallow_clone(),
                false => x.f_index_select(0, &index(self.rows, x)?)?,
            })
        };
        let unpacking = {
            let loss = lock(self.loss);
            let config = loss.config();
            Unpacking {
                packing: config.packing,
                size: self.step.size,
                crop: config.latent_crop,
                format: config.latent_format.clone(),
            }
        };
        let mut graph = Graph::new();
        let prediction = graph.input(select(&self.step.prediction)?, self.with_gradient);
        let mut inputs = vec![prediction];
        if let Some(x_t) = &self.step.x_t {
            inputs.insert(0, graph.input(select(x_t)?, false));
        }
        let x0 = graph.apply(predict_x0(self.pairs.clone()), &inputs)?;
        let latents = graph.apply(unpack(unpacking, self.decoder)?, &[x0])?;
        Ok(Tape {
            graph,
            prediction,
            latents,
        })
    }

    fn decode(&self) -> Decode {
        let clamp = lock(self.loss).config().clamp;
        Decode::new(self.decoder.clone(), clamp)
    }

    fn through_images(&self, mut tape: Tape, targets: Targets) -> Result<Walked> {
        let images = tape.graph.apply(Box::new(self.decode()), &[tape.latents])?;
        let operation = FaceLoss::new(self.loss.clone(), targets);
        let report = operation.report();
        let value = tape.graph.apply(Box::new(operation), &[images])?;
        let mut report = std::mem::take(&mut *lock(&report));
        for sample in &mut report.samples {
            sample.decoded = Decoded::Full;
        }
        self.back(tape, value, report)
    }

    /// Decodes no more than the faces' windows. A step that audits decodes whole images too, and their loss
    /// and gradient are then the step's.
    fn through_windows(&self, mut tape: Tape, targets: &Targets) -> Result<Walked> {
        let latents = tape.graph.value(tape.latents)?.shallow_clone();
        let (samples, candidates, groups, audited) = {
            let mut loss = lock(self.loss);
            let clamp = loss.config().clamp;
            let mut pictures = Undecoded::new(self.decoder.clone(), clamp, latents);
            let mut samples = loss.gate(targets, self.rows.len());
            let candidates = loss.locate(&mut pictures, targets, &mut samples)?;
            let levels = self.levels.as_deref();
            let groups = loss.windows(&mut pictures, &candidates, targets, levels, &mut samples)?;
            let every = loss.config().audit_every;
            let audited = self.with_gradient && every > 0 && self.step.number.is_multiple_of(every);
            (samples, candidates, groups, audited)
        };
        if candidates.is_empty() {
            let report = Report {
                samples,
                ..Report::default()
            };
            report.warn(|at| targets.number(at));
            return Ok((report, None));
        }
        let mut inputs = vec![];
        let mut faces = vec![];
        for group in groups {
            let decode = self
                .decode()
                .of_rows(group.rows())
                .of_windows(group.windows);
            inputs.push(tape.graph.apply(Box::new(decode), &[tape.latents])?);
            faces.push((group.frames, group.candidates));
        }
        let windows = Faces::Windows(faces);
        let (mut report, mut gradient) = self.compare(tape, windows, &inputs, samples.clone())?;
        if audited {
            let mut tape = self.tape()?;
            let rows = candidates.iter().map(|c| c.sample as i64).collect();
            let decode = self.decode().of_rows(rows);
            let images = tape.graph.apply(Box::new(decode), &[tape.latents])?;
            let whole = self.compare(tape, Faces::Whole(candidates), &[images], samples)?;
            let windows = gradient;
            (report, gradient) = whole;
            self.audit(&mut report, windows.as_ref(), gradient.as_ref())?;
        }
        report.warn(|at| targets.number(at));
        Ok((report, gradient))
    }

    /// From what is decoded to the loss and back.
    fn compare(
        &self,
        mut tape: Tape,
        faces: Faces,
        inputs: &[NodeId],
        samples: Vec<Sample>,
    ) -> Result<Walked> {
        let report = Arc::new(Mutex::new(Report {
            samples,
            ..Report::default()
        }));
        let operation = CompareFaces::new(self.loss.clone(), faces, report.clone());
        let value = tape.graph.apply(Box::new(operation), inputs)?;
        let report = std::mem::take(&mut *lock(&report));
        self.back(tape, value, report)
    }

    fn back(&self, mut tape: Tape, value: NodeId, mut report: Report) -> Result<Walked> {
        let mean_of = report.counted() as f64;
        if !self.with_gradient || mean_of == 0.0 {
            return Ok((report, None));
        }
        tape.graph.backward(value, None)?;
        let gradient = tape.graph.gradient(tape.prediction)?;
        let gradient = drop_non_finite(gradient, self.rows, &mut report)?;
        Ok((report, Some((gradient, mean_of))))
    }

    /// Holds the gradients of the windows against those of the whole images.
    fn audit(
        &self,
        report: &mut Report,
        windows: Option<&(Tensor, f64)>,
        whole: Option<&(Tensor, f64)>,
    ) -> Result<()> {
        let (Some((windows, _)), Some((whole, _))) = (windows, whole) else {
            return Ok(());
        };
        for (at, sample) in report.samples.iter_mut().enumerate() {
            if sample.outcome == Outcome::Counted {
                let row = at as i64;
                let found = audit(&windows.f_select(0, row)?, &whole.f_select(0, row)?)?;
                let mut loss = lock(self.loss);
                loss.trust.judge(self.rows[at], sample.decoded, &found);
                sample.audit = Some(found);
            }
        }
        Ok(())
    }
}

/// Rows of a batch on the device of `like`.
pub(super) fn index(rows: &[usize], like: &Tensor) -> Result<Tensor> {
    let rows: Vec<i64> = rows.iter().map(|&at| at as i64).collect();
    Ok(Tensor::f_from_slice(&rows)?.f_to_device(like.device())?)
}

/// A sample whose gradient overflowed on its way through the decoder is dropped as if it had never
/// counted.
fn drop_non_finite(gradient: Tensor, rows: &[usize], report: &mut Report) -> Result<Tensor> {
    let finite = gradient
        .f_isfinite()?
        .f_flatten(1, -1)?
        .f_all_dim(1, false)?;
    let flags: Vec<bool> = Vec::try_from(finite.f_to_device(Device::Cpu)?)?;
    if flags.iter().all(|&finite| finite) {
        return Ok(gradient);
    }
    for (slot, at) in rows.iter().enumerate().filter(|(slot, _)| !flags[*slot]) {
        report.samples[slot].outcome = Outcome::NonFinite;
        warn_host!("sample {at} counts nothing: {}", Outcome::NonFinite.text());
    }
    let mut shape = vec![1; gradient.dim()];
    shape[0] = -1;
    let dropped = finite.f_logical_not()?.f_view(shape.as_slice())?;
    Ok(gradient.f_masked_fill(&dropped, 0.0)?)
}
