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
    /// Per sample, as `prediction.time` of the configuration says. Predictions of x0 and custom pairs
    /// need them only for the time policy, as flow matching has them.
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
    let mut report = gate(&lock(loss), &step, &targets, &pairs)?;
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
            pairs: rows.iter().map(|&at| pairs[at]).collect(),
            with_gradient,
        };
        let weights = rows.iter().map(|&at| report.samples[at].weight).collect();
        let (part, gradient) = way.go(rows, targets.select(rows, weights)?)?;
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

/// From the prediction of some samples to their loss and back.
struct Way<'a> {
    loss: &'a Shared<Loss>,
    decoder: &'a Shared<Decoder>,
    step: &'a Step,
    pairs: Vec<(f64, f64)>,
    with_gradient: bool,
}

impl Way<'_> {
    /// The samples' reports, and where any counts the gradient of their mean loss with the number that
    /// it is a mean of.
    fn go(self, rows: &[usize], targets: Targets) -> Result<(Report, Option<(Tensor, f64)>)> {
        let whole = self.pairs.len() as i64 == self.step.prediction.size()[0];
        let select = |x: &Tensor| -> Result<Tensor> {
            Ok(match whole {
                true => x.shallow_clone(),
                false => x.f_index_select(0, &index(rows, x)?)?,
            })
        };
        let (unpacking, clamp) = {
            let loss = lock(self.loss);
            let config = loss.config();
            let unpacking = Unpacking {
                packing: config.packing,
                size: self.step.size,
                crop: config.latent_crop,
                format: config.latent_format.clone(),
            };
            (unpacking, config.clamp)
        };
        let mut graph = Graph::new();
        let prediction = graph.input(select(&self.step.prediction)?, self.with_gradient);
        let mut inputs = vec![prediction];
        if let Some(x_t) = &self.step.x_t {
            inputs.insert(0, graph.input(select(x_t)?, false));
        }
        let x0 = graph.apply(predict_x0(self.pairs), &inputs)?;
        let latents = graph.apply(unpack(unpacking, self.decoder)?, &[x0])?;
        let images = graph.apply(
            Box::new(Decode::new(self.decoder.clone(), clamp)),
            &[latents],
        )?;
        let operation = FaceLoss::new(self.loss.clone(), targets);
        let report = operation.report();
        let value = graph.apply(Box::new(operation), &[images])?;
        let mut report = std::mem::take(&mut *lock(&report));
        let mean_of = report.counted() as f64;
        if !self.with_gradient || mean_of == 0.0 {
            return Ok((report, None));
        }
        graph.backward(value, None)?;
        let gradient = drop_non_finite(graph.gradient(prediction)?, rows, &mut report)?;
        Ok((report, Some((gradient, mean_of))))
    }
}

fn index(rows: &[usize], like: &Tensor) -> Result<Tensor> {
    let rows: Vec<i64> = rows.iter().map(|&at| at as i64).collect();
    Ok(Tensor::f_from_slice(&rows)?.f_to_device(like.device())?)
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
fn gate(loss: &Loss, step: &Step, targets: &Targets, pairs: &[(f64, f64)]) -> Result<Report> {
    let config = loss.config();
    if config.gradient_limit.is_some() && step.gradient_norm.is_none() {
        bail!(
            Argument,
            "gradient_norm: `gradient_limit` is relative to it; expected the norm of the main loss's gradient"
        );
    }
    let noises = schedule::noises(config, pairs, &step.times)?;
    let mut samples = loss.gate(targets, pairs.len());
    for (at, sample) in samples.iter_mut().enumerate() {
        if sample.outcome != Outcome::Counted {
            continue;
        }
        if !step.number.is_multiple_of(config.every_n_steps) {
            sample.outcome = Outcome::Step;
        } else if let Some(noises) = &noises {
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
