//! Windows of a decoder's image: what lies around them is neither computed nor kept, but for the blocks
//! up to the attention, whose every pixel looks at all others.

use super::part::{Plan, rounded};
use super::statistics::{Norms, Recorder};
use super::*;

/// What the backward pass of a window with `recompute: blocks` needs.
pub(super) struct WindowTape {
    plan: Plan,
    statistics: Option<Statistics>,
    inputs: Vec<Tensor>,
    /// The sizes of what the last block computed.
    size: Vec<i64>,
}

impl Decoder {
    /// Whether windows of the image can be decoded: all families but TorchScript, which hides its layers.
    pub fn has_windows(&self) -> bool {
        self.family != VaeFamily::Torchscript
    }

    /// Whether the pixels of a window hang on the whole map through GroupNorm. Without one (Qwen-Image,
    /// Wan, the TAESD family) windows are what the whole image shows there.
    pub fn needs_statistics(&self) -> bool {
        self.has_norms
    }

    /// As [`Decoder::decode`] without a gradient, and the statistics that windows of the same latents
    /// need; `None` where they need none.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn survey(&self, latents: &Tensor) -> Result<(Tensor, Option<Statistics>)> {
        self.check(latents)?;
        let _no_grad = tch::no_grad_guard();
        let (mut images, mut statistics) = (vec![], vec![]);
        for part in self.parts(&latents.f_detach()?)? {
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

    /// The windows that are decoded where `wanted`, in pixels of the image of a latent of (height, width),
    /// are asked for: all of one size, on the grid of the latent's pixels, inside the image. One that
    /// lies outside becomes the nearest latent pixel.
    pub fn windows(&self, wanted: &[Rect], latent: (i64, i64)) -> Vec<Rect> {
        rounded(wanted, latent, self.scale)
    }

    /// As [`Decoder::decode`] without a gradient, for one window a sample as [`Decoder::windows`] gives
    /// them: `[B,3,height,width]`. `halo`: at most so many latent pixels around a window are computed;
    /// `None`: as many as have an influence. `statistics`: those of whole maps; `None`: GroupNorm takes
    /// those of the windows.
    ///
    /// # Errors
    /// As [`Decoder::decode`]; `Unsupported` without [`Decoder::has_windows`].
    pub fn decode_windows(
        &self,
        latents: &Tensor,
        windows: &[Rect],
        halo: Option<i64>,
        statistics: Option<&Statistics>,
    ) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let plan = self.plan(latents, windows, halo)?;
        let y = self.run(&plan, latents, &norms(statistics), None)?;
        self.image(&plan.cut(&y)?)
    }

    /// As [`Decoder::record`] for windows; the arguments are those of [`Decoder::decode_windows`].
    /// [`Decoder::backward`] then takes the gradient with respect to the windows and gives that with
    /// respect to the whole latents, for which the statistics are constants.
    ///
    /// # Errors
    /// As [`Decoder::decode_windows`].
    pub fn record_windows(
        &self,
        latents: &Tensor,
        windows: &[Rect],
        halo: Option<i64>,
        statistics: Option<&Statistics>,
    ) -> Result<Recording> {
        let plan = self.plan(latents, windows, halo)?;
        let latents = latents.f_detach()?;
        if self.recompute == Recompute::None {
            let _grad_mode = tensor::GradGuard::new();
            let leaf = latents.f_set_requires_grad(true)?;
            let y = self.run(&plan, &leaf, &norms(statistics), None)?;
            let image = self.image(&plan.cut(&y)?)?;
            return Ok(Recording {
                image: image.f_detach()?,
                latents: leaf,
                tape: Tape::Graph(image),
            });
        }
        let _no_grad = tch::no_grad_guard();
        let mut inputs = vec![];
        let y = self.run(&plan, &latents, &norms(statistics), Some(&mut inputs))?;
        Ok(Recording {
            image: self.image(&plan.cut(&y)?)?,
            latents,
            tape: Tape::Windows(WindowTape {
                plan,
                statistics: statistics.map(Statistics::share),
                inputs,
                size: y.size(),
            }),
        })
    }

    /// The gradient of recorded windows from that of the last block's output, last block first.
    pub(super) fn replay_windows(&self, tape: WindowTape, grad: &Tensor) -> Result<Tensor> {
        let WindowTape {
            plan,
            statistics,
            inputs,
            size,
        } = tape;
        let norms = norms(statistics.as_ref());
        let mut grad = plan.uncut(grad, &size)?;
        let blocks = self.chain.flat();
        for (at, x) in inputs.into_iter().enumerate().rev() {
            let norms = if at < plan.head { &Norms::Own } else { &norms };
            grad = match &plan.parts[at] {
                None => blocks[at].vjp(&x, &grad, norms)?,
                Some(part) => blocks[at].vjp_part(&x, &grad, part, norms)?,
            };
        }
        Ok(grad)
    }

    fn plan(&self, latents: &Tensor, windows: &[Rect], halo: Option<i64>) -> Result<Plan> {
        self.check(latents)?;
        if !self.has_windows() {
            bail!(
                Unsupported,
                "a TorchScript decoder shows none of its layers, so it decodes whole images only"
            );
        }
        let size = latents.size();
        let map = (size[2], size[3]);
        if windows.len() as i64 != size[0] || self.windows(windows, map) != windows {
            bail!(
                Internal,
                "windows {windows:?} of latents {size:?}: expected one of the same size a sample, on the grid"
            );
        }
        Ok(Plan::new(&self.chain.flat(), map, windows, halo))
    }

    /// The last block's output; `keep` collects the input of every block.
    fn run(
        &self,
        plan: &Plan,
        latents: &Tensor,
        norms: &Norms,
        mut keep: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let mut x = latents.f_to_kind(self.kind)?;
        for (at, block) in self.chain.flat().into_iter().enumerate() {
            let norms = if at < plan.head { &Norms::Own } else { norms };
            let y = match &plan.parts[at] {
                None => block.forward(&x, norms)?,
                Some(part) => block.forward_part(&x, part, norms)?,
            };
            let input = std::mem::replace(&mut x, y);
            if let Some(keep) = keep.as_deref_mut() {
                keep.push(input);
            }
        }
        Ok(x)
    }
}

impl Plan {
    /// The windows of the last block's output.
    fn cut(&self, y: &Tensor) -> Result<Tensor> {
        match self.parts.last() {
            Some(Some(part)) => part.of(y),
            _ => Ok(y.shallow_clone()),
        }
    }

    /// The adjoint of [`Plan::cut`] for an output of `size`.
    fn uncut(&self, grad: &Tensor, size: &[i64]) -> Result<Tensor> {
        match self.parts.last() {
            Some(Some(part)) => part.adjoint(grad, size),
            _ => Ok(grad.shallow_clone()),
        }
    }
}

fn norms(statistics: Option<&Statistics>) -> Norms<'_> {
    statistics.map_or(Norms::Own, Norms::Given)
}
