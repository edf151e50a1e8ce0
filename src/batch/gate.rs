//! Gating: which samples are left out before any network runs.

use super::{Outcome, Sample, Targets};

/// The samples of a batch of `count` images. Those whose data type is not among `face_types` or whose weight
/// is 0 are marked as left out. `face_types: None`: every data type counts.
pub fn gate(targets: &Targets, count: usize, face_types: Option<&[String]>) -> Vec<Sample> {
    (0..count)
        .map(|at| {
            let weight = targets.weights.get(at).copied().unwrap_or(1.0);
            let counts = match (targets.data_types.get(at), face_types) {
                (Some(data_type), Some(types)) => types.contains(data_type),
                _ => true,
            };
            let mut sample = Sample::new(weight);
            if !counts {
                sample.outcome = Outcome::DataType;
            } else if weight == 0.0 {
                sample.outcome = Outcome::ZeroWeight;
            }
            sample
        })
        .collect()
}
