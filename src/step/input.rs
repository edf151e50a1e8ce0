//! What the trainer gives at each step.

use crate::config::{Prediction, PredictionConfig};
use crate::error::{Result, bail};
use crate::latent;
use tch::Tensor;

/// What a trainer knows at one step, for a batch of N samples.
#[derive(Debug)]
pub struct Step {
    /// The noisy latents, in the prediction's layout; not needed where the model predicts x0.
    pub x_t: Option<Tensor>,
    /// The model's prediction, in its own layout and dtype.
    pub prediction: Tensor,
    /// Per sample the time, in the unit that `prediction.time` of the configuration names. For predictions of x0
    /// and custom coefficients only `t_min`, `t_max` and `time_weight` use it, as the t of flow matching.
    pub times: Vec<f64>,
    /// Per sample a and b of `x0 = a·x_t + b·prediction`, for `prediction.kind: custom`.
    pub coefficients: Vec<(f64, f64)>,
    /// (H, W) of the latent in latent pixels, where the layout does not determine it.
    pub size: Option<(i64, i64)>,
    /// The number of the step, for `every_n_steps` and `audit_every`.
    pub number: u64,
    /// The norm that `gradient_limit` is relative to.
    pub gradient_norm: Option<f64>,
}

impl Step {
    /// The number of samples.
    pub(super) fn samples(&self) -> usize {
        self.prediction.size().first().copied().unwrap_or(0) as usize
    }

    /// (a, b) of `x0 = a·x_t + b·prediction`, per sample.
    pub(super) fn coefficients(&self, config: &PredictionConfig) -> Result<Vec<(f64, f64)>> {
        let count = self.samples();
        let check = |name: &str, length: usize| {
            if length != count {
                bail!(
                    Shape,
                    "{name}: expected {count} entries, one per sample, got {length}"
                );
            }
            Ok(())
        };
        if !self.times.is_empty() {
            check("times", self.times.len())?;
        }
        match config.kind {
            Prediction::Custom => {
                check("coefficients", self.coefficients.len())?;
                Ok(self.coefficients.clone())
            }
            _ if !self.coefficients.is_empty() => bail!(
                Argument,
                "coefficients were given, but `prediction.kind` is not \"custom\""
            ),
            Prediction::Sample => latent::coefficients(config, &vec![0.0; count]),
            _ => {
                check("times", self.times.len())?;
                latent::coefficients(config, &self.times)
            }
        }
    }
}
