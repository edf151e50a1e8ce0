//! What a sample's noise level does to its part in the loss.

use crate::config::{LossConfig, Prediction, PredictionConfig, TimeWeight};

/// The noise level of a sample in [0, 1], and its signal-to-noise ratio, from the pair (a, b) that
/// makes x0. For flow matching the level is t, for epsilon and v it is √(1 − ᾱ). `None` for
/// predictions of x0 itself and for custom pairs, which tell nothing about noise.
pub fn noise(config: &PredictionConfig, (a, b): (f64, f64)) -> Option<(f64, f64)> {
    let preserving = |signal: f64| ((1.0 - signal).sqrt(), signal / (1.0 - signal));
    Some(match config.kind {
        Prediction::Sample | Prediction::Custom => return None,
        Prediction::Epsilon => preserving(1.0 / (a * a)),
        Prediction::V => preserving(a * a),
        _ => {
            let t = b.abs();
            (t, ((1.0 - t) / t).powi(2))
        }
    })
}

/// Whether a noise level is inside the configured window.
pub fn inside(config: &LossConfig, level: f64) -> bool {
    (config.t_min..=config.t_max).contains(&level)
}

/// The weight of a sample with noise level `t` and signal-to-noise ratio `snr`.
pub fn weight(config: &LossConfig, t: f64, snr: f64) -> f64 {
    match &config.time_weight {
        TimeWeight::Constant => 1.0,
        TimeWeight::OneMinusT => (1.0 - t).max(0.1),
        TimeWeight::OneMinusTSquared => (1.0 - t).powi(2),
        TimeWeight::InverseTSquared => t.max(0.1).powi(-2),
        // An infinite ratio (no noise at all) has the limit's weight, 0.
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
        let at = |json: &str, t: f64| weight(&with(json), t, ((1.0 - t) / t).powi(2));
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
    fn noise_levels_follow_the_prediction() {
        let of = |kind, pair| {
            noise(
                &PredictionConfig {
                    kind,
                    ..Default::default()
                },
                pair,
            )
        };
        assert_eq!(of(Prediction::Flow, (1.0, -0.25)), Some((0.25, 9.0)));
        let (level, snr) = of(Prediction::V, (0.8, -0.6)).unwrap();
        assert!((level - 0.6).abs() < 1e-12 && (snr - 0.64 / 0.36).abs() < 1e-9);
        let (level, _) = of(Prediction::Epsilon, (1.25, -0.75)).unwrap();
        assert!((level - 0.6).abs() < 1e-12);
        assert_eq!(of(Prediction::Sample, (0.0, 1.0)), None);
    }
}
