//! The fused step: prediction in, weighted loss and its gradient with respect to the prediction out.
//! What is gated out is gated before x0, so it costs nothing.

use super::way::{Way, index};
use super::{Loss, Outcome, Report, Targets, schedule};
use crate::config::Prediction;
use crate::error::{Result, bail};
use crate::latent::coefficients;
use crate::log::{Level, emit};
use crate::nets::vae::Decoder;
use crate::shared::{Shared, lock};
use tch::Tensor;

/// What a trainer knows at one step, for a batch of N.
#[derive(Debug)]
pub struct Step {
    /// The noisy latents, in the prediction's layout; not needed where the prediction is x0.
    pub x_t: Option<Tensor>,
    /// The model's prediction, in its own layout and dtype.
    pub prediction: Tensor,
    /// Per sample, as `prediction.time` of the configuration says. Predictions of x0 and custom pairs
    /// need them only for the time policy, as flow matching has them.
    pub times: Vec<f64>,
    /// Per sample a and b of `x0 = a·x_t + b·prediction`, for `prediction.kind: custom`.
    pub coefficients: Vec<(f64, f64)>,
    /// (H, W) of the latent in latent pixels, where the layout does not tell.
    pub size: Option<(i64, i64)>,
    /// The number of the step, for `every_n_steps` and `audit_every`.
    pub number: u64,
    /// What `gradient_limit` is relative to.
    pub gradient_norm: Option<f64>,
}

/// One step. The gradient has the prediction's shape and dtype; it is `None` unless asked for.
///
/// # Errors
/// `Shape`, `Argument` for what does not fit the configuration or the VAE; `OutOfMemory`.
pub fn step(
    loss: &Shared<Loss>,
    decoder: &Shared<Decoder>,
    step: Step,
    targets: Targets,
    with_gradient: bool,
) -> Result<(Report, Option<Tensor>)> {
    let count = step.prediction.size().first().copied().unwrap_or(0) as usize;
    targets.check(count)?;
    let pairs = pairs(&lock(loss), &step, count)?;
    let noises = schedule::noises(lock(loss).config(), &pairs, &step.times)?;
    let mut report = gate(&lock(loss), &step, &targets, noises.as_deref())?;
    let live: Vec<usize> = (0..count)
        .filter(|&at| report.samples[at].outcome == Outcome::Counted)
        .collect();
    // One sample after the other holds the activations of one decode, not of the batch's.
    let size = match lock(decoder).slicing() {
        true => 1,
        false => live.len().max(1),
    };
    let mut parts = vec![];
    for rows in live.chunks(size) {
        let way = Way {
            loss,
            decoder,
            step: &step,
            rows,
            pairs: rows.iter().map(|&at| pairs[at]).collect(),
            levels: noises
                .as_ref()
                .map(|noises| rows.iter().map(|&at| noises[at].level).collect()),
            with_gradient,
        };
        let weights = rows.iter().map(|&at| report.samples[at].weight).collect();
        let (part, gradient) = way.go(targets.select(rows, weights)?)?;
        for (&at, sample) in rows.iter().zip(part.samples) {
            report.samples[at] = sample;
        }
        parts.push((rows, gradient));
    }
    lock(loss).total(&mut report);
    if !with_gradient {
        return Ok((report, None));
    }
    let mut gradient = step.prediction.f_zeros_like()?;
    let counted = report.counted().max(1) as f64;
    for (rows, part) in parts {
        let Some((part, mean_of)) = part else {
            continue;
        };
        let part = part
            .f_mul_scalar(mean_of / counted)?
            .f_to_kind(gradient.kind())?;
        gradient = match rows.len() == count {
            true => part,
            false => gradient.f_index_copy(0, &index(rows, &part)?, &part)?,
        };
    }
    let gradient = limit(&lock(loss), gradient, step.gradient_norm)?;
    Ok((report, Some(gradient)))
}

/// The pair (a, b) of every sample.
fn pairs(loss: &Loss, step: &Step, count: usize) -> Result<Vec<(f64, f64)>> {
    let config = &loss.config().prediction;
    let given = |name: &str, length: usize| {
        if length != count {
            bail!(
                Shape,
                "{name}: expected {count} entries, one per sample, got {length}"
            );
        }
        Ok(())
    };
    if !step.times.is_empty() {
        given("times", step.times.len())?;
    }
    match config.kind {
        Prediction::Custom => {
            given("coefficients", step.coefficients.len())?;
            Ok(step.coefficients.clone())
        }
        _ if !step.coefficients.is_empty() => bail!(
            Argument,
            "coefficients were given, but `prediction.kind` is not \"custom\""
        ),
        Prediction::Sample => coefficients(config, &vec![0.0; count]),
        _ => {
            given("times", step.times.len())?;
            coefficients(config, &step.times)
        }
    }
}

/// Decides what needs no network to be decided.
fn gate(
    loss: &Loss,
    step: &Step,
    targets: &Targets,
    noises: Option<&[schedule::Noise]>,
) -> Result<Report> {
    let config = loss.config();
    if config.gradient_limit.is_some() && step.gradient_norm.is_none() {
        bail!(
            Argument,
            "gradient_norm: `gradient_limit` is relative to it; expected the norm of the main loss's gradient"
        );
    }
    let count = step.prediction.size().first().copied().unwrap_or(0) as usize;
    let mut samples = loss.gate(targets, count);
    for (at, sample) in samples.iter_mut().enumerate() {
        if sample.outcome != Outcome::Counted {
            continue;
        }
        if !step.number.is_multiple_of(config.every_n_steps) {
            sample.outcome = Outcome::Step;
        } else if let Some(noises) = noises {
            sample.weight *= schedule::weight(config, noises[at]);
            if !schedule::inside(config, noises[at].level) {
                sample.outcome = Outcome::Time;
            } else if sample.weight == 0.0 {
                sample.outcome = Outcome::ZeroWeight;
            }
        }
    }
    Ok(Report {
        samples,
        ..Report::default()
    })
}

/// Scales a gradient down to the configured part of the norm that the host gave.
fn limit(loss: &Loss, gradient: Tensor, norm: Option<f64>) -> Result<Tensor> {
    let (Some(limit), Some(norm)) = (loss.config().gradient_limit, norm) else {
        return Ok(gradient);
    };
    let own = gradient
        .f_to_kind(tch::Kind::Float)?
        .f_norm()?
        .f_double_value(&[])?;
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
