//! The deterministic step of a sampler.

use super::boundary::call;
use super::context::Context;
use super::handle;
use super::read;
use super::types::*;
use super::views;
use crate::config::PredictionConfig;
use crate::error::{Result, bail};
use crate::latent::{sampler_step, transitions};
use crate::tensor::{RawTensor, Stream, Use, View};
use std::ffi::{c_char, c_void};

/// The noise levels before and after a step.
pub(super) struct Levels {
    times: View,
    next: View,
    config: PredictionConfig,
}

impl Levels {
    /// Checks the arguments, on the host's thread.
    ///
    /// # Safety
    /// As for [`View::read`] and [`read::config`].
    pub unsafe fn read(
        times: *const RawTensor,
        next: *const RawTensor,
        config: *const c_char,
    ) -> Result<Self> {
        // SAFETY: the caller's promise is the same.
        let (config, times, next) = unsafe {
            let config = read::config("prediction config", config)?;
            let times = views::optional_numbers("times", times, 1)?;
            let next = views::optional_numbers("next_times", next, 1)?;
            (config, times, next)
        };
        let (Some(times), Some(next)) = (times, next) else {
            bail!(
                Null,
                "times, next_times: expected the noise levels of every sample, got NULL"
            );
        };
        Ok(Self {
            times,
            next,
            config,
        })
    }

    /// The pair (a, b) of every sample. It runs on the worker, because the numbers may lie on a GPU.
    pub fn pairs(&self) -> Result<Vec<(f64, f64)>> {
        transitions(
            &self.config,
            &views::numbers(&self.times)?,
            &views::numbers(&self.next)?,
        )
    }
}

/// Takes the deterministic step of a sampler: from the noisy latents and the model's prediction to the same sample
/// at another noise level. For flow matching this is Euler's step; for epsilon, v and x0 it is DDIM's with eta 0. The
/// step is linear in latents and prediction, so it works in any packing. It is computed in float32, without a gradient.
///
/// @param[in] x_t the noisy latents `[N,...]` in the host's layout; float32, float16 or bfloat16
/// @param[in] prediction the model's prediction, of the same shape; float32, float16 or bfloat16
/// @param[in] times `[N]`, the noise levels of `x_t` in the unit that `config` says; on any device
/// @param[in] next_times `[N]`, the noise levels to go to, lower or higher, in the same unit. Where the unit is the
/// timestep 0 to 999 of epsilon, v and x0, -1 means the clean latent
/// @param[in] config JSON, the object `prediction` of `facegrad_loss_new`; NULL for flow matching. Kind "sample"
/// is x0 of a variance-preserving process. For x0 of a flow model, give the velocity (x_t - x0) / t as a
/// prediction of kind "flow". Kind "custom" has no step
/// @param[out] next the latents at `next_times`: the shape of `x_t`, any float dtype; it may be the memory of
/// `x_t`
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
///
/// Errors: `ARGUMENT` for a noise level outside its range; the text names the sample.
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
