//! A decoder is a chain of blocks. A block computes its gradient from its input alone, so the decoder keeps nothing
//! else between the forward and the backward pass.

use super::regions::Regions;
use super::statistics::Norms;
use crate::error::{Result, bail};
use crate::tensor;
use tch::Tensor;

/// The part of its input that a block needs for one pixel of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReceptiveField {
    /// The pixels up to `margin` away, in pixels of the output, which is `scale` times as large as the input.
    /// GroupNorm's statistics are not counted.
    Near { margin: i64, scale: i64 },
    /// The whole map. The block always gets all of it.
    Whole,
    /// The whole map, but [`Block::forward_region`] computes only a region of the output.
    Attends,
}

impl ReceptiveField {
    /// The receptive field of blocks in sequence, all of scale 1.
    pub(super) fn sum(blocks: &[Box<dyn Block>]) -> ReceptiveField {
        let margins = blocks.iter().map(|block| match block.receptive_field() {
            ReceptiveField::Near { margin, scale: 1 } => Some(margin),
            _ => None,
        });
        match margins.sum::<Option<i64>>() {
            Some(margin) => ReceptiveField::Near { margin, scale: 1 },
            None => ReceptiveField::Whole,
        }
    }
}

/// One block of a frozen network.
pub(super) trait Block: Send {
    /// From `[B,C,h,w]` to `[B,C',h',w']`. It is differentiable when grad mode is on.
    fn forward(&self, x: &Tensor, norms: &Norms) -> Result<Tensor>;

    /// `∂⟨forward(x), grad⟩/∂x`. It computes the activations again.
    fn vjp(&self, x: &Tensor, grad: &Tensor, norms: &Norms) -> Result<Tensor> {
        differentiate(x, grad, |x| self.forward(x, norms))
    }

    /// The output without a graph, and what [`Block::replay`] needs: the input, or a few maps that save computing them again.
    fn record(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let _no_grad = tch::no_grad_guard();
        Ok((self.forward(x, &Norms::Own)?, vec![x.f_detach()?]))
    }

    /// [`Block::vjp`] from what was recorded, which is freed.
    fn replay(&self, mut kept: Vec<Tensor>, grad: &Tensor) -> Result<Tensor> {
        match (kept.pop(), kept.is_empty()) {
            (Some(x), true) => self.vjp(&x, grad, &Norms::Own),
            _ => bail!(Internal, "a block's recording is not its input"),
        }
    }

    /// The part of its input that the block needs.
    fn receptive_field(&self) -> ReceptiveField;

    /// The blocks in sequence that this block consists of; empty where it is not a plain sequence.
    fn sub_blocks(&self) -> &[Box<dyn Block>] {
        &[]
    }

    /// The output for regions of `x`, as if these were the whole input. Where the block
    /// [attends](ReceptiveField::Attends): the same regions of the output for `x`.
    fn forward_region(&self, x: &Tensor, regions: &Regions, norms: &Norms) -> Result<Tensor> {
        self.forward(&regions.cut(x)?, norms)
    }

    /// The gradient of [`Block::forward_region`] with respect to all of `x`.
    fn vjp_region(
        &self,
        x: &Tensor,
        grad: &Tensor,
        regions: &Regions,
        norms: &Norms,
    ) -> Result<Tensor> {
        let grad = self.vjp(&regions.cut(&x.f_detach()?)?, grad, norms)?;
        regions.adjoint(&grad, &x.size())
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

/// Maps are small where their side is at most the image's side divided by this.
const SMALL_MAP: i64 = 4;

/// Blocks in sequence.
pub(super) struct Chain(pub Vec<Box<dyn Block>>);

impl Chain {
    /// The blocks whose inputs [`Block::record`] keeps. They are the stages, so that the backward pass runs each stage
    /// once more before its blocks. Of the last stage, with which the backward pass begins, and of stages with small
    /// maps they are the inner blocks: keeping these takes little or no memory and saves running the stage again.
    fn kept(&self) -> Vec<&dyn Block> {
        let scale = |block: &dyn Block| match block.receptive_field() {
            ReceptiveField::Near { scale, .. } => scale,
            ReceptiveField::Whole | ReceptiveField::Attends => 1,
        };
        let scales = self.0.iter().map(|stage| match stage.sub_blocks() {
            [] => scale(stage.as_ref()),
            blocks => blocks.iter().map(|block| scale(block.as_ref())).product(),
        });
        let scales: Vec<i64> = scales.collect();
        let whole: i64 = scales.iter().product();
        let mut reached = 1;
        let mut kept: Vec<&dyn Block> = vec![];
        for (at, (stage, scale)) in self.0.iter().zip(scales).enumerate() {
            reached *= scale;
            let small = SMALL_MAP * reached <= whole;
            match stage.sub_blocks() {
                blocks if !blocks.is_empty() && (small || at + 1 == self.0.len()) => {
                    kept.extend(blocks.iter().map(|block| block.as_ref()));
                }
                _ => kept.push(stage.as_ref()),
            }
        }
        kept
    }

    /// The innermost blocks, in order.
    pub(super) fn flat(&self) -> Vec<&dyn Block> {
        fn collect<'a>(blocks: &'a [Box<dyn Block>], into: &mut Vec<&'a dyn Block>) {
            for block in blocks {
                match block.sub_blocks() {
                    [] => into.push(block.as_ref()),
                    blocks => collect(blocks, into),
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

    /// Keeps the input of every block that is [kept](Chain::kept).
    fn record(&self, x: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let _no_grad = tch::no_grad_guard();
        let mut inputs = vec![];
        let mut x = x.f_detach()?;
        for block in self.kept() {
            let y = block.forward(&x, &Norms::Own)?;
            inputs.push(std::mem::replace(&mut x, y));
        }
        Ok((x, inputs))
    }

    /// Last block first. Each input is freed after use.
    fn replay(&self, inputs: Vec<Tensor>, grad: &Tensor) -> Result<Tensor> {
        let mut grad = grad.shallow_clone();
        for (block, x) in self.kept().into_iter().zip(inputs).rev() {
            grad = block.vjp(&x, &grad, &Norms::Own)?;
        }
        Ok(grad)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::sum(&self.0)
    }

    fn sub_blocks(&self) -> &[Box<dyn Block>] {
        &self.0
    }
}
