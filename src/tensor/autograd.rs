//! The one place that runs libtorch's backward.

use crate::error::{Result, bail};
use tch::Tensor;

/// The gradient of `(output · gradient).sum()` with respect to `input`, which must be a leaf that
/// requires one; zeros where `output` does not depend on it.
pub fn vjp(output: &Tensor, input: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if !input.requires_grad() {
        bail!(
            Internal,
            "a gradient was asked for of a tensor that requires none"
        );
    }
    let _recording = GradMode::on();
    if !output.requires_grad() {
        return Ok(input.f_zeros_like()?);
    }
    let total = output
        .f_mul(&gradient.f_to_kind(output.kind())?)?
        .f_sum(output.kind())?;
    // SAFETY-relevant precondition of `run_backward`: it crashes with grad mode off or without a
    // graph; both were just made sure of.
    #[allow(clippy::disallowed_methods)]
    let mut gradients = Tensor::f_run_backward(&[&total], &[input], false, false)?;
    match gradients.pop() {
        Some(gradient) if gradient.defined() => Ok(gradient),
        _ => Ok(input.f_zeros_like()?),
    }
}

/// Grad mode on until dropped; then as it was.
struct GradMode(bool);

impl GradMode {
    fn on() -> Self {
        // SAFETY: sets a thread-local flag and returns what it was.
        GradMode(unsafe { torch_sys::at_grad_set_enabled(1) } != 0)
    }
}

impl Drop for GradMode {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { torch_sys::at_grad_set_enabled(self.0.into()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn works_where_the_thread_records_nothing() {
        let x = Tensor::f_from_slice(&[1f32, 2.0])
            .unwrap()
            .f_set_requires_grad(true)
            .unwrap();
        let y = x.f_mul(&x).unwrap();
        let ones = Tensor::f_ones([2], (Kind::Float, Device::Cpu)).unwrap();
        let _off = tch::no_grad_guard();
        assert_eq!(
            Vec::<f32>::try_from(vjp(&y, &x, &ones).unwrap()).unwrap(),
            [2.0, 4.0]
        );
        assert_eq!(
            Vec::<f32>::try_from(vjp(&ones, &x, &ones).unwrap()).unwrap(),
            [0.0, 0.0]
        );
        assert!(
            !x.f_mul(&x).unwrap().requires_grad(),
            "grad mode is restored"
        );
    }
}
