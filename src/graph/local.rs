//! An operation that libtorch differentiates. It keeps libtorch's graph from its inputs to its value.

use super::Operation;
use crate::error::{Result, bail};
use crate::tensor::vjp;
use tch::Tensor;

/// A function of tensors as an operation.
pub struct Local<F> {
    name: &'static str,
    function: F,
    /// The leaves, and the value with its graph.
    recorded: Option<(Vec<Tensor>, Tensor)>,
}

impl<F> Local<F>
where
    F: Fn(&[&Tensor]) -> Result<Tensor> + Send,
{
    /// `function` must be differentiable in all its arguments.
    pub fn new(name: &'static str, function: F) -> Self {
        Self {
            name,
            function,
            recorded: None,
        }
    }
}

impl<F> Operation for Local<F>
where
    F: Fn(&[&Tensor]) -> Result<Tensor> + Send,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&mut self, inputs: &[&Tensor], needs_gradient: bool) -> Result<Tensor> {
        if !needs_gradient {
            let _frozen = tch::no_grad_guard();
            return (self.function)(inputs);
        }
        let leaf = |input: &&Tensor| Ok(input.detach().f_set_requires_grad(true)?);
        let leaves = inputs.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let value = (self.function)(&leaves.iter().collect::<Vec<_>>())?;
        let detached = value.detach();
        self.recorded = Some((leaves, value));
        Ok(detached)
    }

    fn vjp(&mut self, _: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some((leaves, value)) = &self.recorded else {
            bail!(Internal, "the value was computed without a graph");
        };
        let leaves: Vec<&Tensor> = leaves.iter().collect();
        Ok(vjp(value, &leaves, gradient, true)?
            .into_iter()
            .map(Some)
            .collect())
    }
}
