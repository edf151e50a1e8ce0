//! A decoder is a chain of blocks. A block can be run, and can give its gradient from its input
//! alone, which is what lets the decoder forget everything else between the two.

use super::part::Part;
use super::statistics::Norms;
use crate::error::Result;
use crate::tensor;
use tch::Tensor;

/// What of its input a block needs for one pixel of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The pixels up to `margin` away, counted in those of the output, which is `scale` times as
    /// large as the input. GroupNorm's statistics do not count here.
    Near { margin: i64, scale: i64 },
    /// The whole map, of which it is given all.
    Whole,
    /// The whole map too, but [`Block::forward_part`] computes no more than a part of the output.
    Attends,
}

impl Reach {
    /// That of blocks one after the other, all of scale 1.
    pub(super) fn sum(blocks: &[Box<dyn Block>]) -> Reach {
        let margins = blocks.iter().map(|block| match block.reach() {
            Reach::Near { margin, scale: 1 } => Some(margin),
            _ => None,
        });
        match margins.sum::<Option<i64>>() {
            Some(margin) => Reach::Near { margin, scale: 1 },
            None => Reach::Whole,
        }
    }
}

/// One step of a frozen network.
pub(super) trait Block: Send {
    /// `[B,C,h,w]` → `[B,C',h',w']`; differentiable when grad mode is on.
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor>;

    /// `∂⟨forward(x), grad⟩/∂x`, computing the activations again.
    fn vjp(&self, x: &Tensor, grad: &Tensor, norms: &Norms) -> Result<Tensor> {
        differentiate(x, grad, |x| self.forward(x, norms))
    }

    /// What of its input the block needs.
    fn reach(&self) -> Reach;

    /// The blocks that this one is nothing but a sequence of.
    fn parts(&self) -> &[Box<dyn Block>] {
        &[]
    }

    /// What the block makes of a part of `x`, as if that were all; where it [`Reach::Attends`], the
    /// same part of what it makes of `x`.
    fn forward_part(&self, x: &Tensor, part: &Part, norms: &Norms) -> Result<Tensor> {
        self.forward(&part.of(x)?, norms)
    }

    /// The gradient of [`Block::forward_part`] with respect to all of `x`.
    fn vjp_part(&self, x: &Tensor, grad: &Tensor, part: &Part, norms: &Norms) -> Result<Tensor> {
        let grad = self.vjp(&part.of(&x.f_detach()?)?, grad, norms)?;
        part.adjoint(&grad, &x.size())
    }
}

/// `∂⟨function(x), grad⟩/∂x` by autograd.
pub(super) fn differentiate(
    x: &Tensor,
    grad: &Tensor,
    function: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let _grad_mode = tensor::GradGuard::new();
    let x = x.f_detach()?.f_set_requires_grad(true)?;
    let y = function(&x)?;
    Ok(tensor::vjp(&y, &[&x], grad, false)?.swap_remove(0))
}

/// Maps are small where their side is at most this part of the image's.
const SMALL: i64 = 4;

/// Blocks one after the other.
pub(super) struct Chain(pub Vec<Box<dyn Block>>);

impl Chain {
    /// The blocks whose inputs [`Chain::record`] keeps: the stages, so that each runs once more on the way back
    /// before its parts do; but of the last stage, which the way back begins with, and of those with small maps
    /// the parts at once, because that costs time and little or no memory.
    fn kept(&self) -> Vec<&dyn Block> {
        let scale = |block: &dyn Block| match block.reach() {
            Reach::Near { scale, .. } => scale,
            Reach::Whole | Reach::Attends => 1,
        };
        let scales = self.0.iter().map(|stage| match stage.parts() {
            [] => scale(stage.as_ref()),
            parts => parts.iter().map(|part| scale(part.as_ref())).product(),
        });
        let scales: Vec<i64> = scales.collect();
        let whole: i64 = scales.iter().product();
        let mut reached = 1;
        let mut kept: Vec<&dyn Block> = vec![];
        for (at, (stage, scale)) in self.0.iter().zip(scales).enumerate() {
            reached *= scale;
            let small = SMALL * reached <= whole;
            match stage.parts() {
                parts if !parts.is_empty() && (small || at + 1 == self.0.len()) => {
                    kept.extend(parts.iter().map(|part| part.as_ref()));
                }
                _ => kept.push(stage.as_ref()),
            }
        }
        kept
    }

    /// The output and the input of every block that is [kept](Chain::kept), without a graph.
    pub(super) fn record(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let _no_grad = tch::no_grad_guard();
        let mut inputs = vec![];
        let mut x = x.f_detach()?;
        for block in self.kept() {
            let y = block.forward(&x, &Norms::Own)?;
            inputs.push(std::mem::replace(&mut x, y));
        }
        Ok((x, inputs))
    }

    /// The gradient from recorded inputs, last block first; each input is freed when used.
    pub(super) fn replay(&self, inputs: Vec<Tensor>, grad: &Tensor) -> Result<Tensor> {
        let mut grad = grad.shallow_clone();
        for (block, x) in self.kept().into_iter().zip(inputs).rev() {
            grad = block.vjp(&x, &grad, &Norms::Own)?;
        }
        Ok(grad)
    }

    /// The innermost blocks, in order.
    pub(super) fn flat(&self) -> Vec<&dyn Block> {
        fn collect<'a>(blocks: &'a [Box<dyn Block>], into: &mut Vec<&'a dyn Block>) {
            for block in blocks {
                match block.parts() {
                    [] => into.push(block.as_ref()),
                    parts => collect(parts, into),
                }
            }
        }
        let mut all = vec![];
        collect(&self.0, &mut all);
        all
    }
}

impl Block for Chain {
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        for block in &self.0 {
            x = block.forward(&x, norms)?;
        }
        Ok(x)
    }

    fn vjp(&self, x: &Tensor, grad: &Tensor, norms: &Norms) -> Result<Tensor> {
        let Some((last, body)) = self.0.split_last() else {
            return Ok(grad.shallow_clone());
        };
        // The last block's output is not needed, so it is not computed.
        let _no_grad = tch::no_grad_guard();
        let mut inputs = Vec::with_capacity(body.len());
        let mut x = x.f_detach()?;
        for block in body {
            let y = block.forward(&x, norms)?;
            inputs.push(std::mem::replace(&mut x, y));
        }
        let mut grad = last.vjp(&x, grad, norms)?;
        drop(x);
        for (block, x) in body.iter().zip(inputs).rev() {
            grad = block.vjp(&x, &grad, norms)?;
        }
        Ok(grad)
    }

    fn reach(&self) -> Reach {
        Reach::sum(&self.0)
    }

    fn parts(&self) -> &[Box<dyn Block>] {
        &self.0
    }
}
