//! The step of a sampler.

use super::boundary::call;
use super::context::Context;
use super::handle;
use super::read::optional_text;
use super::types::*;
use super::views;
use crate::config::{PredictionConfig, parse};
use crate::error::{Result, bail};
use crate::latent::{sampler_step, transitions};
use crate::tensor::{RawTensor, Stream, Use, View};
use std::ffi::{c_char, c_void};

/// Where a step comes from and where it goes.
pub(super) struct Levels {
    times: View,
    next: View,
    config: PredictionConfig,
}

impl Levels {
    /// Checks the arguments; on the host's thread.
    ///
    /// # Safety
    /// As for [`View::read`] and [`optional_text`].
    pub unsafe fn read(
        times: *const RawTensor,
        next: *const RawTensor,
        config: *const c_char,
    ) -> Result<Self> {
        // SAFETY: the caller's promise is the same.
        let (json, times, next) = unsafe {
            let json = optional_text("config", config)?.unwrap_or_default();
            let times = views::optional_numbers("times", times, 1)?;
            let next = views::optional_numbers("next_times", next, 1)?;
            (json, times, next)
        };
        let (Some(times), Some(next)) = (times, next) else {
            bail!(
                Null,
                "times, next_times: expected the noise levels of every sample, got NULL"
            );
        };
        let config = parse("prediction config", &json)?;
        Ok(Self {
            times,
            next,
            config,
        })
    }

    /// The pairs of every sample; on the worker.
    pub fn pairs(&self) -> Result<Vec<(f64, f64)>> {
        transitions(
            &self.config,
            &views::numbers(&self.times)?,
            &views::numbers(&self.next)?,
        )
    }
}

/// The deterministic step of a sampler: from the noisy latents and the model's prediction to the same sample
/// at another noise level. Euler's step for flow matching, DDIM's with eta 0 for epsilon, v and x0. It is linear
/// in both, so every packing is as good as any other. Computed in float32, without a gradient.
///
/// @param[in] x_t the noisy latents `[N,...]` in the host's layout; float32, float16 or bfloat16
/// @param[in] prediction the model's prediction, of the same shape; float32, float16 or bfloat16
/// @param[in] times `[N]`, the noise levels of `x_t`, as `config` says; on any device
/// @param[in] next_times `[N]`, the noise levels to go to, lower or higher; -1 among the timesteps 0 to 999 of
/// epsilon, v and x0 is the clean latent
/// @param[in] config JSON, the object `prediction` of `facegrad_loss_new`; NULL for flow matching. Kind "sample"
/// is x0 of a variance-preserving process; of a flow model give the velocity (x_t - x0) / t. Kind "custom" has no
/// step
/// @param[out] next the latents at `next_times`: the shape of `x_t`, any float dtype; it may be the memory of
/// `x_t`
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
///
/// Errors: `ARGUMENT` for a level outside its range, naming the sample; `SHAPE`, `DTYPE`, `DEVICE`, `CONFIG`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_sampler_step(
    context: *const facegrad_context,
    x_t: *const RawTensor,
    prediction: *const RawTensor,
    times: *const RawTensor,
    next_times: *const RawTensor,
    config: *const c_char,
    next: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let context = handle::get::<Context, _>("context", context)?;
        let device = context.worker.device();
        // SAFETY: the host's promises are those of the functions called.
        let (levels, x_t, prediction, next) = unsafe {
            let levels = Levels::read(times, next_times, config)?;
            let input = |name, raw| -> Result<View> {
                let view = View::read(name, raw, Use::Input)?;
                view.expect_float()?;
                view.expect_device(device)?;
                Ok(view)
            };
            let x_t = input("x_t", x_t)?;
            let prediction = input("prediction", prediction)?;
            let next = views::output("next", next, x_t.shape(), device)?;
            (levels, x_t, prediction, next)
        };
        context.worker.run(Stream::new(stream), move || {
            let made = sampler_step(&x_t.borrow()?, &prediction.borrow()?, &levels.pairs()?)?;
            next.write(&made)
        })
    })
}
