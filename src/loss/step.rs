//! The fused step: prediction in, weighted loss and its gradient with respect to the prediction out.
//! What is gated out is gated before x0, so it costs nothing.

use super::{FaceLoss, Loss, Outcome, Report, Targets, schedule};
use crate::config::Prediction;
use crate::error::{Result, bail};
use crate::graph::{Decode, Graph, Unpacking, predict_x0, unpack};
use crate::latent::coefficients;
use crate::log::warn_host;
use crate::nets::vae::Decoder;
use crate::shared::{Shared, lock};
use tch::{Device, Tensor};

/// What a trainer knows at one step, for a batch of N.
#[derive(Debug)]
pub struct Step {
    /// The noisy latents, in the prediction's layout; not needed where the prediction is x0.
    pub x_t: Option<Tensor>,
    /// The model's prediction, in its own layout and dtype.
    pub prediction: Tensor,
    /// Per sample, as `prediction.time` of the configuration says; not needed with `coefficients`.
    pub times: Vec<f64>,
    /// Per sample a and b of `x0 = a·x_t + b·prediction`, for `prediction.kind: custom`.
    pub coefficients: Vec<(f64, f64)>,
    /// (H, W) of the latent in latent pixels, where the layout does not tell.
    pub size: Option<(i64, i64)>,
    /// The number of the step, for `every_n_steps`.
    pub number: u64,
    /// What `gradient_limit` is relative to.
    pub gradient_norm: Option<f64>,
}

/// One step. The gradient has the prediction's shape and dtype; it is `None` unless asked for.
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
    let mut report = gate(&lock(loss), &step, &targets, &pairs);
    let live: Vec<usize> = (0..count)
        .filter(|&at| report.samples[at].outcome == Outcome::Counted)
        .collect();
    let nothing = || -> Result<Option<Tensor>> {
        Ok(match with_gradient {
            true => Some(step.prediction.f_zeros_like()?),
            false => None,
        })
    };
    if live.is_empty() {
        return Ok((report, nothing()?));
    }
    let weights: Vec<f64> = live.iter().map(|&at| report.samples[at].weight).collect();
    let index: Vec<i64> = live.iter().map(|&at| at as i64).collect();
    let index = Tensor::f_from_slice(&index)?.f_to_device(step.prediction.device())?;
    let rows = |x: &Tensor| -> Result<Tensor> {
        Ok(match live.len() == count {
            true => x.shallow_clone(),
            false => x.f_index_select(0, &index)?,
        })
    };

    let (unpacking, clamp) = {
        let loss = lock(loss);
        let config = loss.config();
        let unpacking = Unpacking {
            packing: config.packing,
            size: step.size,
            crop: config.latent_crop,
            format: config.latent_format.clone(),
        };
        (unpacking, config.clamp)
    };
    let mut graph = Graph::new();
    let prediction = graph.input(rows(&step.prediction)?, with_gradient);
    let mut inputs = vec![prediction];
    if let Some(x_t) = &step.x_t {
        inputs.insert(0, graph.input(rows(x_t)?, false));
    }
    let pairs = live.iter().map(|&at| pairs[at]).collect();
    let x0 = graph.apply(predict_x0(pairs), &inputs)?;
    let latents = graph.apply(unpack(unpacking, decoder)?, &[x0])?;
    let images = graph.apply(Box::new(Decode::new(decoder.clone(), clamp)), &[latents])?;
    let operation = FaceLoss::new(loss.clone(), targets.select(&live, weights)?);
    let inner = operation.report();
    let value = graph.apply(Box::new(operation), &[images])?;
    let inner = std::mem::take(&mut *lock(&inner));
    (report.loss, report.mean_distance) = (inner.loss, inner.mean_distance);
    for (&at, sample) in live.iter().zip(inner.samples) {
        report.samples[at] = sample;
    }
    if !with_gradient || report.counted() == 0 {
        return Ok((report, nothing()?));
    }
    graph.backward(value, None)?;
    let gradient = graph
        .gradient(prediction)?
        .f_to_kind(step.prediction.kind())?;
    let gradient = drop_non_finite(&lock(loss), gradient, &live, &mut report)?;
    let gradient = limit(&lock(loss), gradient, step.gradient_norm)?;
    if live.len() == count {
        return Ok((report, Some(gradient)));
    }
    let all = step.prediction.f_zeros_like()?;
    Ok((report, Some(all.f_index_copy(0, &index, &gradient)?)))
}

/// The pair (a, b) of every sample.
fn pairs(loss: &Loss, step: &Step, count: usize) -> Result<Vec<(f64, f64)>> {
    let config = &loss.config().prediction;
    let counted = |name: &str, length: usize| {
        if length != count {
            bail!(
                Shape,
                "{name}: expected {count} entries, one per sample, got {length}"
            );
        }
        Ok(())
    };
    match config.kind {
        Prediction::Custom => {
            counted("coefficients", step.coefficients.len())?;
            Ok(step.coefficients.clone())
        }
        _ if !step.coefficients.is_empty() => bail!(
            Argument,
            "coefficients were given, but `prediction.kind` is not \"custom\""
        ),
        Prediction::Sample if step.times.is_empty() => Ok(vec![(0.0, 1.0); count]),
        _ => {
            counted("times", step.times.len())?;
            coefficients(config, &step.times)
        }
    }
}

/// Decides what needs no network to be decided.
fn gate(loss: &Loss, step: &Step, targets: &Targets, pairs: &[(f64, f64)]) -> Report {
    let config = loss.config();
    let mut samples = loss.gate(targets, pairs.len());
    for (sample, &pair) in samples.iter_mut().zip(pairs) {
        if sample.outcome != Outcome::Counted {
            continue;
        }
        if !step.number.is_multiple_of(config.every_n_steps) {
            sample.outcome = Outcome::Step;
        } else if let Some((level, snr)) = schedule::noise(&config.prediction, pair) {
            sample.weight *= schedule::weight(config, level, snr);
            if !schedule::inside(config, level) {
                sample.outcome = Outcome::Time;
            } else if sample.weight == 0.0 {
                sample.outcome = Outcome::ZeroWeight;
            }
        }
    }
    Report {
        samples,
        ..Report::default()
    }
}

/// A sample whose gradient overflowed on its way through the decoder is dropped as if it had never
/// counted.
fn drop_non_finite(
    loss: &Loss,
    gradient: Tensor,
    live: &[usize],
    report: &mut Report,
) -> Result<Tensor> {
    let finite = gradient
        .f_isfinite()?
        .f_flatten(1, -1)?
        .f_all_dim(1, false)?;
    let flags: Vec<bool> = Vec::try_from(finite.f_to_device(Device::Cpu)?)?;
    if flags.iter().all(|&finite| finite) {
        return Ok(gradient);
    }
    let before = report.counted() as f64;
    for (&at, _) in live.iter().zip(&flags).filter(|(_, finite)| !**finite) {
        report.samples[at].outcome = Outcome::NonFinite;
        warn_host!("sample {at} counts nothing: {}", Outcome::NonFinite.text());
    }
    loss.total(report);
    let mut shape = vec![1; gradient.dim()];
    shape[0] = -1;
    let kept = gradient.f_masked_fill(&finite.f_logical_not()?.f_view(shape.as_slice())?, 0.0)?;
    match report.counted() {
        0 => Ok(kept),
        after => Ok(kept.f_mul_scalar(before / after as f64)?),
    }
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
    Ok(gradient.f_mul_scalar(most / own)?)
}
