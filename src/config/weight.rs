//! The weights of the loss, of samples, of noise levels and of a recogniser's levels.

/// The largest weight. The product of one of each kind is a finite number.
pub const MAX_WEIGHT: f64 = 1e30;

/// Whether a number can be a weight: from 0 to [`MAX_WEIGHT`].
pub fn is_weight(number: f64) -> bool {
    (0.0..=MAX_WEIGHT).contains(&number)
}

#[cfg(test)]
mod tests {
    use crate::config::LossConfig;

    #[test]
    fn weights_whose_product_was_infinite_are_refused() {
        for (bad, text) in [
            (
                r#"{"face_loss_weight": 1e300}"#,
                "face_loss_weight: expected a number from 0 to 1e30, got 1e300",
            ),
            (
                r#"{"time_weight": {"table": [1, 1e300]}}"#,
                "time_weight: expected numbers from 0 to 1e30 in the table",
            ),
            (
                r#"{"time_weight": {"min_snr": 1e300}}"#,
                "or a gamma > 0 and up to 1e30",
            ),
            (
                r#"{"levels": {"embedding": 1e300}}"#,
                "levels: embedding: expected a weight from 0 to 1e30, got 1e300",
            ),
        ] {
            let error = LossConfig::parse(bad).unwrap_err();
            assert!(error.to_string().contains(text), "{bad}: {error}");
        }
    }
}
