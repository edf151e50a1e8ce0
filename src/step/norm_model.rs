//! GroupNorm statistics that are predicted from what the first blocks of a decoder made of the same latents. The model is
//! fitted to the exact passes of all samples, and it measures itself: every exact pass is predicted before it is learned.

use super::ridge::Ridge;
use crate::error::Result;
use crate::log::{Level, emit};
use crate::nets::vae::Statistics;
use crate::tensor::{finite_rows, flags, to_host};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use tch::{Device, Kind, Tensor};

/// Exact passes before anything is predicted.
const MIN_PASSES: usize = 16;
/// Exact passes that are kept, the newest. With FLUX.1's decoder each takes 25 KB.
const MAX_PASSES: usize = 256;
/// Measured errors that are kept, the newest, and how many of them tell whether the model is good.
const MAX_CHECKS: usize = 48;
const NEAREST: usize = 6;
/// Measured errors before the model is believed.
const MIN_CHECKS: usize = 4;
/// The largest mean error of a model that is good: the root mean square difference of the groups' mean/σ and log σ².
const MAX_ERROR: f64 = 0.25;
/// Features that are farther from all passes, in units of [`Ridge::predict`], are unlike all before. At 1, nine of ten passes
/// are nearer to the other passes.
const MAX_NOVELTY: f64 = 1.0;
/// The most predictions between two exact passes. While there are fewer passes than this it is their number.
const MAX_USES: usize = 100;

/// Why statistics are not predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There are too few passes or measured errors.
    Learning,
    /// All passes are alike, so they tell nothing.
    Alike,
    /// The latents are unlike those of all passes.
    Unlike,
    /// The errors that were measured at near noise levels are too large.
    Inexact,
    /// The model is to be measured again.
    Audit,
}

impl Refusal {
    /// What the log says about it, once.
    fn text(self) -> Option<&'static str> {
        match self {
            Refusal::Learning | Refusal::Audit => None,
            Refusal::Alike => Some("all pictures so far are alike"),
            Refusal::Unlike => Some("a picture is unlike all before"),
            Refusal::Inexact => Some("predictions at this noise level are too far off"),
        }
    }
}

struct Pass {
    /// `[F]`.
    features: Tensor,
    statistics: Statistics,
}

/// The error of a prediction that an exact pass showed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Check {
    level: Option<f64>,
    error: f64,
}

/// The model of one decoder, for all samples.
#[derive(Default)]
pub(super) struct NormModel {
    passes: VecDeque<Pass>,
    checks: VecDeque<Check>,
    /// Predictions since the last exact pass.
    uses: usize,
    /// The fit to all passes; `None` where it has to be made anew.
    fit: Option<Option<Ridge>>,
    told: Vec<Refusal>,
}

impl NormModel {
    /// The statistics of one sample with `features` `[F]` at a noise level, or why they need an exact pass. The log gets one
    /// line for each reason that a user may want to know.
    pub(super) fn predict(
        &mut self,
        features: &Tensor,
        level: Option<f64>,
        device: Device,
    ) -> Result<std::result::Result<Statistics, Refusal>> {
        let refusal = match self.statistics(features, level)? {
            Err(refusal) => refusal,
            Ok(_) if self.uses >= self.passes.len().min(MAX_USES) => Refusal::Audit,
            Ok(statistics) => {
                self.uses += 1;
                let tensor = statistics.tensor().f_to_device(device)?;
                return Ok(Ok(Statistics::from_tensor(tensor)));
            }
        };
        if let Some(text) = refusal.text()
            && !self.told.contains(&refusal)
        {
            self.told.push(refusal);
            emit(
                Level::Info,
                &format!(
                    "norm_stats: {text}; such steps decode the whole image for exact statistics"
                ),
            );
        }
        Ok(Err(refusal))
    }

    /// Learns from an exact pass, and measures the prediction that would have been made for it.
    pub(super) fn learn(
        &mut self,
        features: &Tensor,
        statistics: &Statistics,
        level: Option<f64>,
    ) -> Result<()> {
        let exact = targets(statistics)?;
        let both = Tensor::f_cat(&[features, &exact], 0)?.f_unsqueeze(0)?;
        if flags(&finite_rows(&both)?)? != [true] {
            return Ok(());
        }
        if let Some(first) = self.passes.front()
            && (first.features.size() != features.size()
                || first.statistics.tensor().size() != statistics.tensor().size())
        {
            self.forget("its passes are those of another decoder");
        }
        if self.passes.len() >= MIN_PASSES
            && let Some(fit) = self.fitted()?
        {
            let error = error(&fit.predict(features)?.0, &exact)?;
            emit(
                Level::Debug,
                &format!("norm_stats: an exact pass shows a prediction error of {error:.3}"),
            );
            push(&mut self.checks, Check { level, error }, MAX_CHECKS);
        }
        let pass = Pass {
            features: features.f_detach()?,
            statistics: Statistics::from_tensor(to_host(statistics.tensor())?),
        };
        push(&mut self.passes, pass, MAX_PASSES);
        self.uses = 0;
        self.fit = None;
        Ok(())
    }

    /// Whether an exact pass that was made for another reason is worth learning from.
    pub(super) fn wants(&mut self) -> bool {
        self.uses += 1;
        self.passes.len() < MAX_USES.min(4 * MIN_PASSES)
            || self.uses > self.passes.len().min(MAX_USES)
    }

    fn statistics(
        &mut self,
        features: &Tensor,
        level: Option<f64>,
    ) -> Result<std::result::Result<Statistics, Refusal>> {
        if self.passes.len() < MIN_PASSES {
            return Ok(Err(Refusal::Learning));
        }
        let shape = match self.passes.front() {
            Some(first) if first.features.size() == features.size() => {
                first.statistics.tensor().size()
            }
            _ => {
                self.forget("its passes are those of another decoder");
                return Ok(Err(Refusal::Learning));
            }
        };
        let Some(fit) = self.fitted()? else {
            return Ok(Err(Refusal::Alike));
        };
        let (targets, novelty) = fit.predict(features)?;
        if novelty.is_nan() || novelty > MAX_NOVELTY {
            return Ok(Err(Refusal::Unlike));
        }
        match self.expected(level) {
            None => Ok(Err(Refusal::Learning)),
            Some(error) if error > MAX_ERROR => Ok(Err(Refusal::Inexact)),
            Some(_) => Ok(Ok(from_targets(&targets, &shape)?)),
        }
    }

    /// The mean of the errors that were measured at the nearest noise levels; `None` where there are too few.
    fn expected(&self, level: Option<f64>) -> Option<f64> {
        if self.checks.len() < MIN_CHECKS {
            return None;
        }
        let distance = |check: &Check| match (check.level, level) {
            (Some(a), Some(b)) => (a - b).abs(),
            _ => 0.0,
        };
        // The newest first among those that are equally near.
        let mut checks: Vec<&Check> = self.checks.iter().rev().collect();
        checks.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        checks.truncate(NEAREST);
        Some(checks.iter().map(|check| check.error).sum::<f64>() / checks.len() as f64)
    }

    /// The fit to all passes; `None` where they are all alike.
    fn fitted(&mut self) -> Result<Option<&Ridge>> {
        if self.fit.is_none() {
            let features: Vec<&Tensor> = self.passes.iter().map(|pass| &pass.features).collect();
            let targets = self.passes.iter().map(|pass| targets(&pass.statistics));
            let targets = targets.collect::<Result<Vec<_>>>()?;
            let fit = Ridge::fit(
                &Tensor::f_stack(&features, 0)?,
                &Tensor::f_stack(&targets, 0)?,
            )?;
            self.fit = Some(fit);
        }
        Ok(self.fit.as_ref().and_then(Option::as_ref))
    }

    /// Starts anew, with a line in the log that says why.
    pub(super) fn forget(&mut self, why: &str) {
        emit(
            Level::Info,
            &format!("norm_stats: the model of GroupNorm statistics starts anew: {why}"),
        );
        *self = Self::default();
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    queue.push_back(item);
    if queue.len() > most {
        queue.pop_front();
    }
}

/// Statistics of one sample as what is predicted: mean/σ and log σ² of all groups, f64 on the CPU.
fn targets(statistics: &Statistics) -> Result<Tensor> {
    let tensor = to_host(statistics.tensor())?;
    let tensor = tensor.f_to_kind(Kind::Double)?;
    let (mean, inverse) = (tensor.f_select(1, 0)?, tensor.f_select(1, 1)?);
    let log = inverse.f_log()?.f_mul_scalar(-2.0)?;
    Ok(Tensor::f_stack(&[mean.f_mul(&inverse)?, log], 1)?.f_reshape(-1)?)
}

/// The reverse of [`targets`], for statistics of a shape.
fn from_targets(targets: &Tensor, shape: &[i64]) -> Result<Statistics> {
    let targets = targets.f_view(shape)?;
    let (mean, log) = (targets.f_select(1, 0)?, targets.f_select(1, 1)?);
    let deviation = log.f_mul_scalar(0.5)?.f_exp()?;
    let both = [mean.f_mul(&deviation)?, deviation.f_reciprocal()?];
    Ok(Statistics::from_tensor(
        Tensor::f_stack(&both, 1)?.f_to_kind(Kind::Float)?,
    ))
}

/// The root mean square of the differences of mean/σ and log σ².
fn error(predicted: &Tensor, exact: &Tensor) -> Result<f64> {
    let off = predicted.f_sub(exact)?;
    let square = off.f_mul(&off)?.f_mean(Kind::Double)?;
    Ok(square.f_double_value(&[])?.sqrt())
}

/// Everything in the model but its tensors.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedNormModel {
    passes: i64,
    uses: usize,
    checks: Vec<Check>,
}

impl SavedNormModel {
    /// The number of passes that belong to this index.
    pub(super) fn passes(&self) -> i64 {
        self.passes
    }
}

impl NormModel {
    /// The index, and `[M,F]` features with the statistics of the same passes, where there are any.
    pub(super) fn save(&self) -> Result<(SavedNormModel, Option<(Tensor, Statistics)>)> {
        let index = SavedNormModel {
            passes: self.passes.len() as i64,
            uses: self.uses,
            checks: self.checks.iter().copied().collect(),
        };
        if self.passes.is_empty() {
            return Ok((index, None));
        }
        let features: Vec<&Tensor> = self.passes.iter().map(|pass| &pass.features).collect();
        let statistics: Vec<_> = self.passes.iter().map(|p| p.statistics.share()).collect();
        let features = Tensor::f_stack(&features, 0)?.f_to_kind(Kind::Float)?;
        Ok((index, Some((features, Statistics::join(&statistics)?))))
    }

    /// Replaces the content by what was saved. `tensors` has [`SavedNormModel::passes`] rows.
    pub(super) fn restore(
        &mut self,
        saved: SavedNormModel,
        tensors: Option<(&Tensor, &Statistics)>,
    ) -> Result<()> {
        let mut next = Self::default();
        if let Some((features, statistics)) = tensors {
            let features = features.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
            for at in 0..saved.passes {
                let pass = Pass {
                    features: features.f_select(0, at)?,
                    statistics: statistics.sample(at)?,
                };
                push(&mut next.passes, pass, MAX_PASSES);
            }
            for check in saved.checks {
                push(&mut next.checks, check, MAX_CHECKS);
            }
            next.uses = saved.uses;
        }
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers around 0 that no other seed gives.
    fn numbers(seed: usize, count: usize) -> Tensor {
        let one = |at: usize| ((seed * 131 + at * 17) as f64 * 12.9898).sin();
        Tensor::f_from_slice(&(0..count).map(one).collect::<Vec<_>>()).unwrap()
    }

    /// Statistics of two norms with three groups whose mean/σ and log σ² are these.
    fn statistics(targets: &Tensor) -> Statistics {
        from_targets(targets, &[2, 2, 1, 3]).unwrap()
    }

    fn predict(model: &mut NormModel, features: &Tensor) -> std::result::Result<(), Refusal> {
        let predicted = model.predict(features, Some(0.5), Device::Cpu).unwrap();
        predicted.map(|_| ())
    }

    /// What statistics follow from is predicted.
    fn learnt(targets: impl Fn(usize, &Tensor) -> Tensor) -> NormModel {
        let mut model = NormModel::default();
        for seed in 0..40 {
            let features = numbers(seed, 12);
            let own = statistics(&targets(seed, &features));
            model.learn(&features, &own, Some(0.5)).unwrap();
        }
        model
    }

    #[test]
    fn statistics_that_features_do_not_tell_are_refused_and_told_once() {
        let mut lawful = learnt(|_, features| features * 0.3);
        assert_eq!(predict(&mut lawful, &numbers(3, 12)), Ok(()));
        let mut lawless = learnt(|seed, _| numbers(7 * seed + 1000, 12) * 2.0);
        for _ in 0..2 {
            let refused = predict(&mut lawless, &numbers(3, 12));
            assert_eq!(refused, Err(Refusal::Inexact));
        }
        assert_eq!(lawless.told, [Refusal::Inexact]);
    }

    #[test]
    fn features_of_another_width_start_the_model_anew() {
        let mut model = learnt(|_, features| features * 0.3);
        assert_eq!(predict(&mut model, &numbers(3, 8)), Err(Refusal::Learning));
        assert!(model.passes.is_empty());
        let mut model = learnt(|_, features| features * 0.3);
        let narrow = statistics(&numbers(1, 12));
        model.learn(&numbers(1, 8), &narrow, None).unwrap();
        assert_eq!(model.passes.len(), 1);
    }

    #[test]
    fn a_pass_that_is_not_finite_teaches_nothing() {
        let mut model = NormModel::default();
        let features = numbers(1, 12);
        let broken = statistics(&(numbers(2, 12) * f64::NAN));
        model.learn(&features, &broken, None).unwrap();
        let nan = &features * f64::NAN;
        let whole = statistics(&numbers(2, 12));
        model.learn(&nan, &whole, None).unwrap();
        assert!(model.passes.is_empty());
    }
}
