//! One training step: it gates the samples, runs the others in chunks, and puts their gradients together. Samples are
//! gated before x0 is computed, so no network runs for a sample that is left out.

use super::chunk::Chunk;
use super::gate::gate;
use super::noise::noises;
use super::{Step, StepLoss};
use crate::batch::{Outcome, Report, Targets};
use crate::error::{Result, bail};
use crate::log::{Level, emit};
use crate::shared::lock;
use crate::tensor::{number, place_rows};
use tch::{Kind, Tensor};

impl StepLoss {
    /// Computes one step. The gradient of `report.loss` has the prediction's shape and dtype. It is `None` unless it is
    /// asked for.
    ///
    /// # Errors
    /// `Shape` and `Argument` for what does not fit the configuration or the VAE; `OutOfMemory`.
    pub fn step(
        &mut self,
        step: &Step,
        targets: &Targets,
        with_gradient: bool,
    ) -> Result<(Report, Option<Tensor>)> {
        let Some(decoder) = self.decoder.clone() else {
            bail!(Argument, "the loss has no VAE; make it with one");
        };
        let count = step.samples();
        targets.check(count)?;
        let (coefficients, noises, samples) = {
            let loss = lock(&self.loss);
            loss.allow_gradient(with_gradient)?;
            let coefficients = step.coefficients(&loss.config().prediction)?;
            let noises = noises(loss.config(), &coefficients, &step.times)?;
            let samples = gate(&loss, step, targets, noises.as_deref())?;
            (coefficients, noises, samples)
        };
        let mut report = Report {
            samples,
            ..Report::default()
        };
        let live: Vec<usize> = (0..count)
            .filter(|&at| report.samples[at].outcome == Outcome::Counted)
            .collect();
        // With slicing only one sample's activations are held at a time.
        let size = match lock(&decoder).slicing() {
            true => 1,
            false => live.len().max(1),
        };
        let mut gradients = vec![];
        for rows in live.chunks(size) {
            let chunk = Chunk {
                decoder: &decoder,
                step,
                rows,
                targets: targets.select(rows)?,
                coefficients: rows.iter().map(|&at| coefficients[at]).collect(),
                levels: noises
                    .as_ref()
                    .map(|noises| rows.iter().map(|&at| noises[at].level).collect()),
                with_gradient,
            };
            let samples = rows.iter().map(|&at| report.samples[at].clone()).collect();
            let (part, gradient) = self.run(&chunk, samples)?;
            for (&at, sample) in rows.iter().zip(part.samples) {
                report.samples[at] = sample;
            }
            gradients.extend(gradient.map(|gradient| (rows, gradient)));
        }
        let loss = lock(&self.loss);
        loss.total(&mut report);
        if !with_gradient {
            return Ok((report, None));
        }
        let mut gradient = step.prediction.f_zeros_like()?;
        let counted = report.counted().max(1) as f64;
        for (rows, (part, mean_of)) in gradients {
            let part = part.f_mul_scalar(mean_of / counted)?;
            gradient = place_rows(&gradient, rows, &part.f_to_kind(gradient.kind())?)?;
        }
        let gradient = limited(gradient, loss.config().gradient_limit, step.gradient_norm)?;
        Ok((report, Some(gradient)))
    }
}

/// The gradient, scaled down to a norm of at most `limit · norm`, where both are known.
fn limited(gradient: Tensor, limit: Option<f64>, norm: Option<f64>) -> Result<Tensor> {
    let (Some(limit), Some(norm)) = (limit, norm) else {
        return Ok(gradient);
    };
    let own = number(&gradient.f_to_kind(Kind::Float)?.f_norm()?)?;
    let most = limit * norm;
    if own <= most {
        return Ok(gradient);
    }
    emit(
        Level::Debug,
        &format!("gradient_limit: a gradient of norm {own:.3e} is scaled down to {most:.3e}"),
    );
    Ok(gradient.f_mul_scalar(most / own)?)
}
