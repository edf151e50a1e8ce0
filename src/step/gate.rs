//! Gating of a step: by the sample, by the number of the step and by the noise level.

use super::Step;
use super::noise::{Noise, inside, weight};
use crate::batch::{Outcome, Sample, Targets};
use crate::error::{Result, bail};
use crate::loss::Loss;

/// The samples of a step with their weights, marked where they are left out. `noises` is `None` where the noise
/// levels are not known.
pub(super) fn gate(
    loss: &Loss,
    step: &Step,
    targets: &Targets,
    noises: Option<&[Noise]>,
) -> Result<Vec<Sample>> {
    let config = loss.config();
    if config.gradient_limit.is_some() && step.gradient_norm.is_none() {
        bail!(
            Argument,
            "gradient_norm: `gradient_limit` is relative to it; expected the norm of the main loss's gradient"
        );
    }
    let mut samples = loss.gate(targets, step.samples());
    for (at, sample) in samples.iter_mut().enumerate() {
        if sample.outcome != Outcome::Counted {
            continue;
        }
        if !step.number.is_multiple_of(config.every_n_steps) {
            sample.outcome = Outcome::Step;
        } else if let Some(noises) = noises {
            sample.weight *= weight(config, noises[at]);
            if !inside(config, noises[at].level) {
                sample.outcome = Outcome::Time;
            } else if sample.weight == 0.0 {
                sample.outcome = Outcome::ZeroWeight;
            }
        }
    }
    Ok(samples)
}
