//! The clean latent from any prediction: `x0 = a·x_t + b·pred`, one pair (a, b) per sample, so
//! that `∂x0/∂pred = b`.

use crate::config::{Prediction, PredictionConfig, Time};
use crate::error::{Result, bail};
use crate::tensor::upload;
use tch::{Kind, Tensor};

/// The pairs (a, b) of every sample.
///
/// | kind | a | b |
/// |---|---|---|
/// | flow | 1 | −t |
/// | epsilon | 1/√ᾱ | −√(1−ᾱ)/√ᾱ |
/// | v | √ᾱ | −√(1−ᾱ) |
/// | sample | 0 | 1 |
///
/// (diffusers `scheduling_ddim.py` for epsilon and v; `x_t = (1−t)·x0 + t·noise` for flow.)
/// A negated prediction changes the sign of b. Reversed time is `1 − t`; it exists only for t and σ of flow models.
/// **With epsilon, |b| is large near pure noise**: it is the noise-to-signal ratio, 15 at SD1.5's last timestep.
/// Gate such samples out with `t_max`.
///
/// # Errors
/// `Argument`, naming the sample, for a time that is not finite or outside its range; for
/// `custom`, whose coefficients the host gives itself.
pub fn coefficients(config: &PredictionConfig, times: &[f64]) -> Result<Vec<(f64, f64)>> {
    let (kind, negated, reversed) = resolve(config);
    let pairs = times.iter().enumerate().map(|(sample, &time)| {
        if !time.is_finite() {
            bail!(
                Argument,
                "time of sample {sample}: expected a finite number, got {time}"
            );
        }
        let (a, b) = match kind {
            Prediction::Sample => (0.0, 1.0),
            Prediction::Custom => bail!(
                Argument,
                "prediction kind custom: give the coefficients a and b of every sample instead of a time"
            ),
            Prediction::Epsilon | Prediction::V => {
                if reversed {
                    bail!(
                        Argument,
                        "reversed_time: only flow matching has a time that can be reversed"
                    );
                }
                let signal = alpha_bar(config.time, sample, time)?;
                let (alpha, sigma) = (signal.sqrt(), (1.0 - signal).sqrt());
                match kind {
                    Prediction::Epsilon => (1.0 / alpha, -sigma / alpha),
                    _ => (alpha, -sigma),
                }
            }
            _ => (1.0, -noise_fraction(config.time, reversed, sample, time)?),
        };
        Ok((a, if negated { -b } else { b }))
    });
    pairs.collect()
}

/// The kind without the models' names, whether the prediction is negated, and whether time is reversed. Sources:
/// diffusers pipeline_z_image.py, pipeline_lumina2.py, pipeline_hidream_image.py.
pub(super) fn resolve(config: &PredictionConfig) -> (Prediction, bool, bool) {
    let (kind, negated, reversed) = match config.kind {
        Prediction::ZImage | Prediction::Lumina2 => (Prediction::Flow, true, true),
        Prediction::Hidream => (Prediction::Flow, true, false),
        other => (other, false, false),
    };
    (
        kind,
        config.negated.unwrap_or(negated),
        config.reversed_time.unwrap_or(reversed),
    )
}

pub(super) fn noise_fraction(time: Time, reversed: bool, sample: usize, value: f64) -> Result<f64> {
    if time == Time::AlphaBar {
        if reversed {
            bail!(
                Argument,
                "reversed_time: alpha_bar already grows towards the clean latent"
            );
        }
        let signal = in_unit(sample, "alpha_bar", value, true)?;
        // The noise fraction with the same signal-to-noise ratio.
        let (alpha, sigma) = (signal.sqrt(), (1.0 - signal).sqrt());
        return Ok(sigma / (alpha + sigma));
    }
    let name = if time == Time::T { "t" } else { "sigma" };
    let t = in_unit(sample, name, value, false)?;
    Ok(if reversed { 1.0 - t } else { t })
}

pub(super) fn alpha_bar(time: Time, sample: usize, value: f64) -> Result<f64> {
    match time {
        Time::AlphaBar => in_unit(sample, "alpha_bar", value, true),
        Time::Sigma if value >= 0.0 => Ok(1.0 / (1.0 + value * value)),
        Time::Sigma => bail!(
            Argument,
            "sigma of sample {sample}: expected at least 0, got {value}"
        ),
        Time::T if (0.0..=999.0).contains(&value) && value.fract() == 0.0 => {
            Ok(scaled_linear(value as i32))
        }
        Time::T => bail!(
            Argument,
            "t of sample {sample}: expected a whole timestep from 0 to 999, got {value}; give sigma or alpha_bar for another schedule"
        ),
    }
}

fn in_unit(sample: usize, name: &str, value: f64, open_at_zero: bool) -> Result<f64> {
    let inside = (0.0..=1.0).contains(&value) && !(open_at_zero && value == 0.0);
    if !inside {
        let range = if open_at_zero { "(0, 1]" } else { "[0, 1]" };
        bail!(
            Argument,
            "{name} of sample {sample}: expected a number in {range}, got {value}"
        );
    }
    Ok(value)
}

/// ᾱ of SD's training schedule: β from 0.00085 to 0.012, linear in √β over 1000 steps
/// (the scheduler config of SD1.5 and SDXL).
fn scaled_linear(timestep: i32) -> f64 {
    let (first, last) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    (0..=timestep)
        .map(|i| 1.0 - (first + (last - first) * f64::from(i) / 999.0).powi(2))
        .product()
}

/// `a·x_t + b·pred` in the layout of `pred`, f32, computed in f32 for inputs of any float dtype. It is differentiable
/// with respect to `pred`; the gradient has the dtype and layout of `pred`. `x_t` may be `None` where every a is 0
/// (`sample`).
///
/// # Errors
/// `Shape` when the batch, the two shapes or the number of coefficients differ; `Dtype` when a
/// tensor is not floating; `Device` when the two tensors are on different devices; `Argument`
/// for coefficients that are not finite or a missing `x_t`.
pub fn predict_x0(x_t: Option<&Tensor>, pred: &Tensor, coeffs: &[(f64, f64)]) -> Result<Tensor> {
    let shape = pred.size();
    if shape.first() != Some(&(coeffs.len() as i64)) {
        bail!(
            Shape,
            "prediction: expected a batch of {}, one sample for each time, got shape {shape:?}",
            coeffs.len()
        );
    }
    if let Some(sample) = coeffs
        .iter()
        .position(|(a, b)| !a.is_finite() || !b.is_finite())
    {
        bail!(
            Argument,
            "coefficients of sample {sample}: expected finite numbers, got {:?}",
            coeffs.get(sample)
        );
    }
    float("prediction", pred)?;
    let column = |values: Vec<f64>| -> Result<Tensor> {
        let mut size = vec![1i64; shape.len()];
        if let Some(batch) = size.first_mut() {
            *batch = coeffs.len() as i64;
        }
        Ok(upload(&values, pred.device())?
            .f_to_kind(Kind::Float)?
            .f_reshape(size)?)
    };
    let scaled = pred
        .f_to_kind(Kind::Float)?
        .f_mul(&column(coeffs.iter().map(|c| c.1).collect())?)?;
    if coeffs.iter().all(|c| c.0 == 0.0) {
        return Ok(scaled);
    }
    let Some(x_t) = x_t else {
        bail!(
            Argument,
            "x_t: needed by every prediction kind but sample, got none"
        );
    };
    float("x_t", x_t)?;
    if x_t.size() != shape {
        bail!(
            Shape,
            "x_t: expected the prediction's shape {shape:?}, got {:?}",
            x_t.size()
        );
    }
    if x_t.device() != pred.device() {
        bail!(
            Device,
            "x_t: expected the prediction's device {:?}, got {:?}",
            pred.device(),
            x_t.device()
        );
    }
    let kept = x_t
        .f_to_kind(Kind::Float)?
        .f_mul(&column(coeffs.iter().map(|c| c.0).collect())?)?;
    Ok(kept.f_add(&scaled)?)
}

fn float(name: &str, tensor: &Tensor) -> Result<()> {
    match tensor.kind() {
        Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double => Ok(()),
        other => bail!(
            Dtype,
            "{name}: expected float32, float16 or bfloat16, got {other:?}"
        ),
    }
}
