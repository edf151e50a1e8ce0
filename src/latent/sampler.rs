//! The deterministic step of a sampler: the same sample at another noise level,
//! `x_s = a·x_t + b·pred`, one pair (a, b) per sample.

use super::x0::{alpha_bar, noise_fraction, predict_x0, resolve};
use crate::config::{Prediction, PredictionConfig, Time};
use crate::error::{Result, bail};
use tch::{Kind, Tensor};

/// The pairs (a, b) that bring every sample from the noise level of `times` to that of `next`.
///
/// With the signal α = √ᾱ and the noise σ = √(1−ᾱ) of the two levels:
///
/// | kind | a | b | |
/// |---|---|---|---|
/// | flow | 1 | s − t | Euler: diffusers `scheduling_flow_match_euler_discrete.py` |
/// | epsilon | α_s/α_t | σ_s − α_s·σ_t/α_t | DDIM with η = 0: diffusers `scheduling_ddim.py` |
/// | v | α_s·α_t + σ_s·σ_t | σ_s·α_t − α_s·σ_t | the same |
/// | sample | σ_s/σ_t | α_s − σ_s·α_t/σ_t | the same |
///
/// Times are read as by [`coefficients`](super::coefficients), with the same signs and flips. A timestep of −1 in
/// `next` means the clean latent, ᾱ = 1, as with diffusers' `set_alpha_to_one`. `sample` is x0 of a
/// variance-preserving process. For x0 of a flow model, give the velocity `(x_t − x0)/t` instead, as kind `flow`.
///
/// # Errors
/// `Argument`, naming the sample, for a time that is not finite or outside its range, for lists of
/// two lengths, for `custom`, and for `sample` at a level without noise.
pub fn transitions(
    config: &PredictionConfig,
    times: &[f64],
    next: &[f64],
) -> Result<Vec<(f64, f64)>> {
    let (kind, negated, reversed) = resolve(config);
    if times.len() != next.len() {
        bail!(
            Argument,
            "next_times: expected {} numbers as times has, got {}",
            times.len(),
            next.len()
        );
    }
    let pairs = times.iter().zip(next).enumerate().map(|(sample, (&t, &s))| {
        if !t.is_finite() || !s.is_finite() {
            bail!(
                Argument,
                "times of sample {sample}: expected finite numbers, got {t} and next {s}"
            );
        }
        let (a, b) = match kind {
            Prediction::Custom => bail!(
                Argument,
                "prediction kind custom: a step to another noise level needs a kind that says what the model \
                 predicts: flow, epsilon, v or sample"
            ),
            Prediction::Epsilon | Prediction::V | Prediction::Sample => {
                if reversed {
                    bail!(
                        Argument,
                        "reversed_time: only flow matching has a time that can be reversed"
                    );
                }
                let clean = config.time == Time::T && s == -1.0;
                let from = alpha_bar(config.time, sample, t)?;
                let to = match clean {
                    true => 1.0,
                    false => alpha_bar(config.time, sample, s).map_err(next_time)?,
                };
                preserving(kind, sample, from, to)?
            }
            _ => {
                let from = noise_fraction(config.time, reversed, sample, t)?;
                let to = noise_fraction(config.time, reversed, sample, s).map_err(next_time)?;
                (1.0, to - from)
            }
        };
        Ok((a, if negated { -b } else { b }))
    });
    pairs.collect()
}

fn next_time(error: crate::error::Error) -> crate::error::Error {
    error.context("next_times")
}

/// The pair (a, b) from one ᾱ to another.
fn preserving(kind: Prediction, sample: usize, from: f64, to: f64) -> Result<(f64, f64)> {
    let (alpha, sigma) = (from.sqrt(), (1.0 - from).sqrt());
    let (alpha_s, sigma_s) = (to.sqrt(), (1.0 - to).sqrt());
    Ok(match kind {
        Prediction::Epsilon => (alpha_s / alpha, sigma_s - alpha_s * sigma / alpha),
        Prediction::V => (
            alpha_s * alpha + sigma_s * sigma,
            sigma_s * alpha - alpha_s * sigma,
        ),
        _ if sigma == 0.0 => bail!(
            Argument,
            "times of sample {sample}: a clean latent and its x0 do not tell the noise; step from a level above 0"
        ),
        _ => (sigma_s / sigma, alpha_s - sigma_s * alpha / sigma),
    })
}

/// `a·x_t + b·pred` in the dtype and layout of `x_t`, computed in f32, without a gradient.
///
/// # Errors
/// As for [`predict_x0`].
pub fn sampler_step(x_t: &Tensor, pred: &Tensor, pairs: &[(f64, f64)]) -> Result<Tensor> {
    let _frozen = tch::no_grad_guard();
    let next = predict_x0(Some(x_t), pred, pairs)?;
    Ok(next.f_to_kind(match x_t.kind() {
        Kind::Double => Kind::Float,
        kind => kind,
    })?)
}
