//! The only place that calls libtorch's backward pass.

use crate::error::{Result, bail};
use tch::Tensor;

/// Turns grad mode on for this thread. Dropping the guard restores the earlier mode, also after a panic.
pub struct GradGuard {
    previous: bool,
}

impl GradGuard {
    /// Turns grad mode on until the guard is dropped.
    pub fn new() -> Self {
        // SAFETY: the call only reads and writes this thread's grad mode.
        let previous = unsafe { torch_sys::at_grad_set_enabled(1) } != 0;
        GradGuard { previous }
    }
}

impl Default for GradGuard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for GradGuard {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe { torch_sys::at_grad_set_enabled(i32::from(self.previous)) };
    }
}

/// The vector-Jacobian product: `Σ grad ⊙ ∂output/∂input` for every input, in the input's shape,
/// dtype and device. `grad` has the shape of `output` and is converted to its dtype.
///
/// An input that `output` does not depend on gets zeros. The graph of `output` is freed unless
/// `keep_graph` is set. It works in any grad mode of the thread.
///
/// # Errors
/// `Argument` when `output` or an input does not require a gradient (libtorch itself would
/// crash the process on such an output), `Shape` when `grad` does not fit.
pub fn vjp(
    output: &Tensor,
    inputs: &[&Tensor],
    grad: &Tensor,
    keep_graph: bool,
) -> Result<Vec<Tensor>> {
    if grad.size() != output.size() {
        bail!(
            Shape,
            "gradient: expected the output's shape {:?}, got {:?}",
            output.size(),
            grad.size()
        );
    }
    if !output.requires_grad() {
        bail!(
            Argument,
            "gradient: the output has no graph; it was computed with grad mode off or from inputs that require no gradient"
        );
    }
    if let Some(index) = inputs.iter().position(|input| !input.requires_grad()) {
        bail!(
            Argument,
            "gradient: input {index} does not require a gradient"
        );
    }
    let _grad_mode = GradGuard::new();
    let weight = grad
        .f_detach()?
        .f_to_device(output.device())?
        .f_to_kind(output.kind())?;
    let scalar = output.f_mul(&weight)?.f_sum(output.kind())?;
    if !scalar.requires_grad() {
        bail!(Internal, "gradient: grad mode could not be turned on");
    }
    let grads = run_backward(&scalar, inputs, keep_graph)?;
    let filled = grads.into_iter().zip(inputs).map(|(grad, input)| {
        if grad.defined() {
            Ok(grad.f_detach()?)
        } else {
            Ok(input.f_zeros_like()?.f_detach()?)
        }
    });
    filled.collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "vjp has checked grad mode and requires_grad, the two things that crash it"
)]
fn run_backward(scalar: &Tensor, inputs: &[&Tensor], keep_graph: bool) -> Result<Vec<Tensor>> {
    Ok(Tensor::f_run_backward(
        &[scalar],
        inputs,
        keep_graph,
        false,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    #[test]
    fn product_rule_and_zeros_for_an_unused_input() {
        let (x, y) = (leaf(&[1., 2., 3.]), leaf(&[5.]));
        let output = x.f_square().unwrap();
        let grads = vjp(
            &output,
            &[&x, &y],
            &Tensor::from_slice(&[1f32, 10., 100.]),
            false,
        );
        let grads = grads.unwrap();
        assert_eq!(Vec::<f32>::try_from(&grads[0]).unwrap(), [2., 40., 600.]);
        assert_eq!(Vec::<f32>::try_from(&grads[1]).unwrap(), [0.]);
    }

    #[test]
    fn works_with_grad_mode_off_and_leaves_it_off() {
        let x = leaf(&[3.]);
        let output = x.f_square().unwrap();
        let _off = tch::no_grad_guard();
        let grads = vjp(&output, &[&x], &Tensor::from_slice(&[1f32]), false).unwrap();
        assert_eq!(Vec::<f32>::try_from(&grads[0]).unwrap(), [6.]);
        assert!(!x.f_square().unwrap().requires_grad());
    }

    #[test]
    fn refuses_what_would_crash() {
        let x = leaf(&[3.]);
        let constant = Tensor::f_zeros([1], (Kind::Float, Device::Cpu)).unwrap();
        let one = Tensor::from_slice(&[1f32]);
        assert_eq!(vjp(&constant, &[&x], &one, false).unwrap_err().status(), 2);
        let output = x.f_square().unwrap();
        assert_eq!(
            vjp(&output, &[&constant], &one, false)
                .unwrap_err()
                .status(),
            2
        );
        let wide = Tensor::from_slice(&[1f32, 2.]);
        assert_eq!(vjp(&output, &[&x], &wide, false).unwrap_err().status(), 5);
        assert!(vjp(&output, &[&x], &one, true).is_ok());
    }
}
