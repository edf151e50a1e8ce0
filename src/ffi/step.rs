//! The fused step.

use super::boundary::call;
use super::handle;
use super::loss::LossObject;
use super::read::versioned;
use super::report::ReportSink;
use super::targets::RawTargets;
use super::types::*;
use super::views;
use crate::error::{Result, bail};
use crate::step::Step;
use crate::tensor::{RawTensor, Stream, Use, View};
use std::ffi::c_void;
use tch::{Device, Kind};

/// Computes the loss of one training step: from the model's prediction to the weighted loss and its gradient with
/// respect to the prediction, in the prediction's own packing. No network runs for a sample that is gated out by
/// its data type, noise level or step number.
///
/// @param[in] step latents, prediction and times
/// @param[in] targets as in `facegrad_loss_images`; pixels are those of the decoded image
/// @param[out] gradient the gradient of `result->loss` with respect to `step->prediction`: the same shape, any float
/// dtype; NULL: not computed. Use float32, whatever the prediction's dtype is, and multiply by the loss scale before
/// casting: most of the unscaled gradient is below float16's least number
/// @param[out] samples, samples_capacity, result, stream as in `facegrad_loss_images`
///
/// Errors: `ARGUMENT` for a loss without a VAE, times outside their range; `UNSUPPORTED` for `decode` "window_only" with a
/// decoder that has no windows; and those of `facegrad_loss_images`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_step(
    loss: *mut facegrad_loss,
    step: *const facegrad_step,
    targets: *const facegrad_targets,
    gradient: *const RawTensor,
    samples: *mut facegrad_sample,
    samples_capacity: usize,
    result: *mut facegrad_result,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<LossObject, _>("loss", loss)?;
        if !loss.has_vae {
            bail!(
                Argument,
                "the loss has no VAE: hand one over to facegrad_loss_new, or set `vae` in its config"
            );
        }
        let device = loss.owned.worker().device();
        // SAFETY: the host's promises are those of the functions called.
        let (step, targets, gradient, sink) = unsafe {
            let step = RawStep::read(step, device)?;
            let count = step.prediction.shape()[0];
            let targets = RawTargets::read(targets, device, count)?;
            let shape = step.prediction.shape();
            let gradient = views::optional_output("gradient", gradient, shape, device)?;
            let sink = ReportSink::read(samples, samples_capacity, result, count)?;
            (step, targets, gradient, sink)
        };
        let watch = loss.watch.clone();
        let report = loss.steps.with(Stream::new(stream), move |steps| {
            let (step, targets) = (step.into_step()?, targets.into_targets(&watch)?);
            let (report, made) = steps.step(&step, &targets, gradient.is_some())?;
            if let (Some(output), Some(made)) = (gradient, made) {
                output.write(&made)?;
            }
            Ok(report)
        })?;
        // SAFETY: `read` checked the pointers, and the host promises that they are writable.
        unsafe { sink.write(&report) };
        Ok(())
    })
}

/// `facegrad_step`, validated but not yet read.
struct RawStep {
    x_t: Option<View>,
    prediction: View,
    times: Option<View>,
    coefficients: Option<View>,
    size: Option<(i64, i64)>,
    number: u64,
    gradient_norm: Option<f64>,
}

impl RawStep {
    /// # Safety
    /// `step` is NULL or a `facegrad_step` whose pointers are as its fields' docs say.
    unsafe fn read(step: *const facegrad_step, device: Device) -> Result<RawStep> {
        // SAFETY: every call below asks for what the caller promises.
        unsafe {
            let raw = versioned("step", step)?;
            let latents = |name, tensor| -> Result<View> {
                let view = View::read(name, tensor, Use::Input)?;
                view.expect_float()?;
                view.expect_device(device)?;
                if view.shape().is_empty() {
                    bail!(Shape, "{name}: expected a batch, got a scalar");
                }
                Ok(view)
            };
            let prediction = latents("prediction", raw.prediction)?;
            let x_t = match raw.x_t.is_null() {
                true => None,
                false => Some(latents("x_t", raw.x_t)?),
            };
            if let Some(x_t) = &x_t
                && x_t.shape() != prediction.shape()
            {
                bail!(
                    Shape,
                    "x_t: expected the prediction's shape {:?}, got {:?}",
                    prediction.shape(),
                    x_t.shape()
                );
            }
            if !(raw.gradient_norm.is_finite() && raw.gradient_norm >= 0.0) {
                bail!(
                    Argument,
                    "gradient_norm: expected a number >= 0, got {}",
                    raw.gradient_norm
                );
            }
            Ok(RawStep {
                x_t,
                prediction,
                times: views::optional_numbers("times", raw.times, 1)?,
                coefficients: views::optional_numbers("coefficients", raw.coefficients, 2)?,
                size: match (raw.latent_height, raw.latent_width) {
                    (0, 0) => None,
                    (height, width) if height > 0 && width > 0 => Some((height, width)),
                    (height, width) => bail!(
                        Argument,
                        "latent_height, latent_width: expected both or neither, got {height} and {width}"
                    ),
                },
                number: raw.number,
                gradient_norm: (raw.gradient_norm > 0.0).then_some(raw.gradient_norm),
            })
        }
    }

    /// Reads the numbers. It runs on the worker, because they may lie on a GPU.
    fn into_step(self) -> Result<Step> {
        let numbers = |view: &Option<View>| match view {
            Some(view) => views::numbers(view),
            None => Ok(vec![]),
        };
        let pairs = numbers(&self.coefficients)?;
        Ok(Step {
            x_t: self.x_t.as_ref().map(View::borrow).transpose()?,
            // In float32, so that the gradient is float32 too: most of it is below float16's least number.
            prediction: self.prediction.borrow()?.f_to_kind(Kind::Float)?,
            times: numbers(&self.times)?,
            coefficients: pairs
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect(),
            size: self.size,
            number: self.number,
            gradient_norm: self.gradient_norm,
        })
    }
}
