//! A sample's noise level, and the weight that it gives the sample.

use crate::config::{LossConfig, Prediction, PredictionConfig, TimeWeight};
use crate::error::{Result, bail};
use crate::latent;

/// A sample's noise level in [0, 1] and its signal-to-noise ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Noise {
    /// t for flow matching, √(1 − ᾱ) for epsilon and v.
    pub level: f64,
    /// ((1 − t) / t)², or ᾱ / (1 − ᾱ).
    pub snr: f64,
}

impl Noise {
    /// From (a, b) of `x0 = a·x_t + b·prediction`. `kind` must be one that depends on time.
    fn of(kind: Prediction, (a, b): (f64, f64)) -> Self {
        let preserving = |signal: f64| Self {
            level: (1.0 - signal).sqrt(),
            snr: signal / (1.0 - signal),
        };
        match kind {
            Prediction::Epsilon => preserving(1.0 / (a * a)),
            Prediction::V => preserving(a * a),
            _ => {
                let t = b.abs();
                Self {
                    level: t,
                    snr: ((1.0 - t) / t).powi(2),
                }
            }
        }
    }
}

/// The noise of every sample, or `None` where it is not known. Predictions of x0 and custom coefficients do not
/// determine the noise, so `times` are read as those of flow matching there.
///
/// # Errors
/// `Argument` where the configured policy needs times that are missing or out of range.
pub(super) fn noises(
    config: &LossConfig,
    coefficients: &[(f64, f64)],
    times: &[f64],
) -> Result<Option<Vec<Noise>>> {
    let prediction = &config.prediction;
    let of = |kind: Prediction, all: &[(f64, f64)]| {
        Some(all.iter().map(|&one| Noise::of(kind, one)).collect())
    };
    if !matches!(prediction.kind, Prediction::Sample | Prediction::Custom) {
        return Ok(of(prediction.kind, coefficients));
    }
    if times.is_empty() {
        let not_used = config.t_min <= 0.0
            && config.t_max >= 1.0
            && config.time_weight == TimeWeight::Constant;
        if !not_used {
            bail!(
                Argument,
                "times: needed by `t_min`, `t_max` and `time_weight`; got none"
            );
        }
        return Ok(None);
    }
    let as_flow = PredictionConfig {
        kind: Prediction::Flow,
        negated: None,
        ..*prediction
    };
    Ok(of(
        Prediction::Flow,
        &latent::coefficients(&as_flow, times)?,
    ))
}

/// Whether a noise level lies within `t_min` to `t_max`.
pub(super) fn inside(config: &LossConfig, level: f64) -> bool {
    (config.t_min..=config.t_max).contains(&level)
}

/// The weight of a sample, by `time_weight` of the configuration.
pub(super) fn weight(config: &LossConfig, Noise { level: t, snr }: Noise) -> f64 {
    match &config.time_weight {
        TimeWeight::Constant => 1.0,
        TimeWeight::OneMinusT => (1.0 - t).max(0.1),
        TimeWeight::OneMinusTSquared => (1.0 - t).powi(2),
        TimeWeight::InverseTSquared => t.max(0.1).powi(-2),
        // The weight tends to 0 as the ratio tends to infinity, where there is no noise.
        TimeWeight::MinSnr(gamma) => snr.min(*gamma) / snr.max(f64::MIN_POSITIVE),
        TimeWeight::Table(table) => {
            let last = table.len() - 1;
            let at = t.clamp(0.0, 1.0) * last as f64;
            let (low, part) = (at.floor() as usize, at.fract());
            let high = (low + 1).min(last);
            table[low] * (1.0 - part) + table[high] * part
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_their_formulas() {
        let with =
            |json: &str| LossConfig::parse(&format!(r#"{{"time_weight": {json}}}"#)).unwrap();
        let at = |json: &str, t: f64| weight(&with(json), Noise::of(Prediction::Flow, (1.0, -t)));
        for (json, t, want) in [
            (r#""constant""#, 0.9, 1.0),
            (r#""one_minus_t""#, 0.25, 0.75),
            (r#""one_minus_t""#, 0.99, 0.1),
            (r#""one_minus_t_squared""#, 0.5, 0.25),
            (r#""inverse_t_squared""#, 0.5, 4.0),
            (r#""inverse_t_squared""#, 0.01, 100.0),
            (r#"{"min_snr": 5}"#, 0.5, 1.0),
            (r#"{"min_snr": 5}"#, 0.1, 5.0 / 81.0),
            (r#"{"table": [1, 0.5, 0]}"#, 0.75, 0.25),
            (r#"{"table": [0.3]}"#, 0.75, 0.3),
        ] {
            let got = at(json, t);
            assert!((got - want).abs() < 1e-12, "{json} at {t}: {got}");
        }
        for bad in [
            r#"{"table": []}"#,
            r#"{"table": [-1]}"#,
            r#"{"min_snr": 0}"#,
        ] {
            assert!(
                LossConfig::parse(&format!(r#"{{"time_weight": {bad}}}"#)).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn noise_follows_the_prediction() {
        let flow = Noise::of(Prediction::Flow, (1.0, -0.25));
        assert_eq!((flow.level, flow.snr), (0.25, 9.0));
        let v = Noise::of(Prediction::V, (0.8, -0.6));
        assert!((v.level - 0.6).abs() < 1e-12 && (v.snr - 0.64 / 0.36).abs() < 1e-9);
        let epsilon = Noise::of(Prediction::Epsilon, (1.25, -0.75));
        assert!((epsilon.level - 0.6).abs() < 1e-12);
    }

    #[test]
    fn a_prediction_without_noise_takes_the_times() {
        let with = |json: &str| LossConfig::parse(json).unwrap();
        let plain = with(r#"{"prediction": {"kind": "sample"}}"#);
        assert_eq!(noises(&plain, &[(0.0, 1.0)], &[]).unwrap(), None);
        let levels = noises(&plain, &[(0.0, 1.0)], &[0.25]).unwrap().unwrap();
        assert_eq!(levels[0].level, 0.25);
        let gated = with(r#"{"prediction": {"kind": "sample"}, "t_max": 0.5}"#);
        let error = noises(&gated, &[(0.0, 1.0)], &[]).unwrap_err();
        assert!(error.to_string().contains("times: needed"), "{error}");
    }
}
