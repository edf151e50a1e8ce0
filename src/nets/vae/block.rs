//! A decoder is a chain of blocks. A block can be run, and can give its gradient from its input
//! alone, which is what lets the decoder forget everything else between the two.

use crate::error::Result;
use crate::tensor;
use tch::Tensor;

/// One step of a frozen network.
pub(super) trait Block: Send {
    /// `[B,C,h,w]` → `[B,C',h',w']`; differentiable when grad mode is on.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// `∂⟨forward(x), grad⟩/∂x`, computing the activations again.
    fn vjp(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let _grad_mode = tensor::GradGuard::new();
        let x = x.f_detach()?.f_set_requires_grad(true)?;
        let y = self.forward(&x)?;
        Ok(tensor::vjp(&y, &[&x], grad, false)?.swap_remove(0))
    }
}

/// Blocks one after the other.
pub(super) struct Chain(pub Vec<Box<dyn Block>>);

impl Chain {
    /// The output and the input of every block, without a graph.
    pub(super) fn record(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let _no_grad = tch::no_grad_guard();
        let mut inputs = Vec::with_capacity(self.0.len());
        let mut x = x.f_detach()?;
        for block in &self.0 {
            let y = block.forward(&x)?;
            inputs.push(std::mem::replace(&mut x, y));
        }
        Ok((x, inputs))
    }

    /// The gradient from recorded inputs, last block first; each input is freed when used.
    pub(super) fn replay(&self, inputs: Vec<Tensor>, grad: &Tensor) -> Result<Tensor> {
        let mut grad = grad.shallow_clone();
        for (block, x) in self.0.iter().zip(inputs).rev() {
            grad = block.vjp(&x, &grad)?;
        }
        Ok(grad)
    }
}

impl Block for Chain {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        for block in &self.0 {
            x = block.forward(&x)?;
        }
        Ok(x)
    }

    fn vjp(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let Some((last, body)) = self.0.split_last() else {
            return Ok(grad.shallow_clone());
        };
        // The last block's output is not needed, so it is not computed.
        let _no_grad = tch::no_grad_guard();
        let mut inputs = Vec::with_capacity(body.len());
        let mut x = x.f_detach()?;
        for block in body {
            let y = block.forward(&x)?;
            inputs.push(std::mem::replace(&mut x, y));
        }
        let mut grad = last.vjp(&x, grad)?;
        drop(x);
        for (block, x) in body.iter().zip(inputs).rev() {
            grad = block.vjp(&x, &grad)?;
        }
        Ok(grad)
    }
}
