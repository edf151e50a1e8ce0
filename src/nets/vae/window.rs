//! Windows of a decoder's image. What lies around them is neither computed nor kept, except in the blocks up to the
//! last attention, where every pixel depends on all others.

use super::begun::Begun;
use super::statistics::{Norms, Recorder};
use super::window_plan::{Head, WindowPlan, rounded};
use super::*;

/// What the backward pass of windows needs.
pub(super) struct WindowTape {
    plan: WindowPlan,
    begun: Begun,
    rest: Rest,
}

/// What is kept of the blocks after the [`Begun`] ones.
enum Rest {
    /// The output of the begun blocks as a leaf, and the windows with their graph.
    Graph { leaf: Tensor, windows: Tensor },
    /// With `recompute: blocks`: the inputs of the blocks, and the shape of the last block's output.
    Inputs {
        statistics: Option<Statistics>,
        inputs: Vec<Tensor>,
        size: Vec<i64>,
    },
}

impl Decoder {
    /// Why only whole images can be decoded; `None` where windows can be.
    pub fn without_windows(&self) -> Option<&'static str> {
        match self.family {
            VaeFamily::Torchscript => Some("a TorchScript decoder shows none of its layers"),
            VaeFamily::Host => Some("the host's own decoder shows none of its layers"),
            _ => None,
        }
    }

    /// Whether windows of the image can be decoded.
    pub fn has_windows(&self) -> bool {
        self.without_windows().is_none()
    }

    /// Whether the pixels of a window depend on the whole map through GroupNorm. Decoders without GroupNorm
    /// (Qwen-Image, Wan, the TAESD family) give in a window exactly what the whole image shows there.
    pub fn needs_statistics(&self) -> bool {
        self.has_norms
    }

    /// Decodes as [`Decoder::decode`] without a gradient, and returns the GroupNorm statistics that windows of the same
    /// latents need; `None` where they need none.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn decode_with_statistics(&self, latents: &Tensor) -> Result<(Tensor, Option<Statistics>)> {
        self.check(latents)?;
        let _no_grad = tch::no_grad_guard();
        let (mut images, mut statistics) = (vec![], vec![]);
        for part in self.slices(&latents.f_detach()?)? {
            let recorder = Recorder::default();
            let norms = Norms::Recorded(&recorder);
            let y = self.chain.forward(&part.f_to_kind(self.kind)?, &norms)?;
            images.push(self.image(&y)?);
            statistics.extend(recorder.finish()?);
        }
        let statistics = match statistics.is_empty() {
            true => None,
            false => Some(Statistics::join(&statistics)?),
        };
        Ok((join(images)?, statistics))
    }

    /// The windows that are decoded for the `wanted` ones, in pixels of the image of a latent of (height, width): all of
    /// one size, on the grid of the latent's pixels, inside the image. A window outside the image becomes the nearest
    /// latent pixel.
    pub fn windows(&self, wanted: &[Rect], latent: (i64, i64)) -> Vec<Rect> {
        rounded(wanted, latent, self.scale)
    }

    /// Decodes one window per sample without a gradient: `[B,3,height,width]`. The windows come from
    /// [`Decoder::windows`]. `halo`: the most latent pixels that are computed around a window; `None`: all that have an
    /// influence. `statistics`: GroupNorm statistics of the whole maps; `None`: those of the windows are used. `begun`:
    /// what [`Decoder::begin`] made of the same latents; `None`: it is made.
    ///
    /// # Errors
    /// As [`Decoder::decode`]; `Unsupported` without [`Decoder::has_windows`].
    pub fn decode_windows(
        &self,
        latents: &Tensor,
        windows: &[Rect],
        halo: Option<i64>,
        statistics: Option<&Statistics>,
        begun: Option<&Begun>,
    ) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let plan = self.plan(latents, windows, halo)?;
        let begun = self.begun(latents, begun)?;
        let y = self.run(&plan, begun.output(), &norms(statistics), None)?;
        self.image(&plan.cut(&y)?)
    }

    /// [`Decoder::record`] for windows; the arguments are those of [`Decoder::decode_windows`]. [`Decoder::backward`]
    /// then takes the gradient with respect to the windows and returns that with respect to the whole latents. The
    /// statistics count as constants.
    ///
    /// # Errors
    /// As [`Decoder::decode_windows`].
    pub fn record_windows(
        &self,
        latents: &Tensor,
        windows: &[Rect],
        halo: Option<i64>,
        statistics: Option<&Statistics>,
        begun: Option<&Begun>,
    ) -> Result<Recording> {
        let plan = self.plan(latents, windows, halo)?;
        let begun = self.begun(latents, begun)?;
        let (image, rest) = if self.recompute == Recompute::None {
            let _grad_mode = tensor::GradGuard::new();
            let leaf = begun.output().f_detach()?.f_set_requires_grad(true)?;
            let y = self.run(&plan, &leaf, &norms(statistics), None)?;
            let windows = self.image(&plan.cut(&y)?)?;
            (windows.f_detach()?, Rest::Graph { leaf, windows })
        } else {
            let _no_grad = tch::no_grad_guard();
            let mut inputs = vec![];
            let y = self.run(&plan, begun.output(), &norms(statistics), Some(&mut inputs))?;
            let rest = Rest::Inputs {
                statistics: statistics.map(Statistics::share),
                inputs,
                size: y.size(),
            };
            (self.image(&plan.cut(&y)?)?, rest)
        };
        Ok(Recording {
            image,
            latents: latents.f_detach()?,
            tape: Tape::Windows(WindowTape { plan, begun, rest }),
        })
    }

    /// The gradient of recorded windows from the gradient of their image, last block first.
    pub(super) fn replay_windows(&self, tape: WindowTape, grad: &Tensor) -> Result<Tensor> {
        let WindowTape { plan, begun, rest } = tape;
        let blocks = self.chain.flat();
        let whole = begun.blocks();
        let grad = match rest {
            Rest::Graph { leaf, windows } => {
                tensor::vjp(&windows, &[&leaf], grad, false)?.swap_remove(0)
            }
            Rest::Inputs {
                statistics,
                inputs,
                size,
            } => {
                let given = norms(statistics.as_ref());
                let mut grad = plan.uncut(&self.image_vjp(grad)?, &size)?;
                for (at, x) in inputs.into_iter().enumerate().rev() {
                    let at = whole + at;
                    let norms = if at < plan.head { &Norms::Own } else { &given };
                    grad = match &plan.regions[at] {
                        None => blocks[at].vjp(&x, &grad, norms)?,
                        Some(regions) => blocks[at].vjp_region(&x, &grad, regions, norms)?,
                    };
                }
                grad
            }
        };
        self.replay_begun(begun, grad)
    }

    fn plan(&self, latents: &Tensor, windows: &[Rect], halo: Option<i64>) -> Result<WindowPlan> {
        self.check(latents)?;
        if let Some(why) = self.without_windows() {
            bail!(Unsupported, "{why}, so it decodes whole images only");
        }
        let size = latents.size();
        let map = (size[2], size[3]);
        if windows.len() as i64 != size[0] || self.windows(windows, map) != windows {
            bail!(
                Internal,
                "windows {windows:?} of latents {size:?}: expected one per sample, of one size, on the grid"
            );
        }
        Ok(WindowPlan::new(&self.chain.flat(), map, windows, halo))
    }

    /// The last block's output for the output `x` of the begun blocks. `keep` collects the input of every block.
    fn run(
        &self,
        plan: &WindowPlan,
        x: &Tensor,
        norms: &Norms,
        mut keep: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        let blocks = self.chain.flat();
        for (at, block) in blocks.iter().enumerate().skip(Head::of(&blocks).whole()) {
            let norms = if at < plan.head { &Norms::Own } else { norms };
            let y = match &plan.regions[at] {
                None => block.forward(&x, norms)?,
                Some(regions) => block.forward_region(&x, regions, norms)?,
            };
            let input = std::mem::replace(&mut x, y);
            if let Some(keep) = keep.as_deref_mut() {
                keep.push(input);
            }
        }
        Ok(x)
    }
}

impl WindowPlan {
    /// The windows of the last block's output.
    fn cut(&self, y: &Tensor) -> Result<Tensor> {
        match self.regions.last() {
            Some(Some(regions)) => regions.cut(y),
            _ => Ok(y.shallow_clone()),
        }
    }

    /// The adjoint of [`WindowPlan::cut`] for an output of `size`.
    fn uncut(&self, grad: &Tensor, size: &[i64]) -> Result<Tensor> {
        match self.regions.last() {
            Some(Some(regions)) => regions.adjoint(grad, size),
            _ => Ok(grad.shallow_clone()),
        }
    }
}

fn norms(statistics: Option<&Statistics>) -> Norms<'_> {
    statistics.map_or(Norms::Own, Norms::Given)
}
