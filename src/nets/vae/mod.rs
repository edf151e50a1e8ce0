//! Frozen VAE decoders, from latents to images. They are differentiable with respect to the latents.

mod begun;
mod block;
mod dc;
mod dialect;
mod host;
mod hunyuan;
mod kl;
mod layers;
mod load;
mod regions;
mod shuffle;
mod sidecar;
mod source;
mod statistics;
mod tiny;
mod torchscript;
mod wan22;
mod window;
mod window_plan;

pub use begun::Begun;
pub use host::HostFunctions;
pub use statistics::Statistics;

use crate::config::{ImageRange, LatentFormat, Precision, Recompute, Rect, VaeConfig, VaeFamily};
use crate::error::{Result, bail};
use crate::latent::PatchStats;
use crate::tensor::{self, device_name};
use block::{Block, Chain};
use statistics::Norms;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A VAE's decoder. Its weights never require a gradient.
pub struct Decoder {
    chain: Chain,
    /// The host's functions, where the host decodes; `chain` then consists of them.
    host: Option<host::Host>,
    family: VaeFamily,
    channels: i64,
    scale: i64,
    range: ImageRange,
    kind: Kind,
    device: Device,
    recompute: Recompute,
    slicing: bool,
    /// Whether there are GroupNorms whose statistics windows need.
    has_norms: bool,
    stats: Option<PatchStats>,
    format: Option<LatentFormat>,
    /// What was assumed where the files do not tell.
    assumed: String,
}

/// A decoded image and what its backward pass needs.
pub struct Recording {
    image: Tensor,
    latents: Tensor,
    tape: Tape,
}

enum Tape {
    /// The image with its graph, which keeps all activations.
    Graph(Tensor),
    /// The inputs of the blocks, for every slice of the batch.
    Inputs(Vec<Vec<Tensor>>),
    /// The tape of windows.
    Windows(window::WindowTape),
    /// The host's tickets, for every slice of the batch.
    Host(Vec<host::Ticket>),
}

impl Recording {
    /// The image or the windows of it, `[B,3,H,W]`, f32, without a graph; see [`Decoder::decode`].
    pub fn image(&self) -> &Tensor {
        &self.image
    }
}

impl Decoder {
    /// Loads a decoder from the file or diffusers folder that `config` names. The family and the
    /// dialect of its names are found from the tensors; a config.json beside the file is read.
    ///
    /// # Errors
    /// `Config` without a path; `Io`, `Format`, `Limit` for files that cannot be read; `Weights`
    /// for another family, missing or extra tensors; `Unsupported` for a known but missing one.
    pub fn load(config: &VaeConfig, device: Device) -> Result<Self> {
        load::from_file(config, device)
    }

    /// Builds a decoder from tensors that the host already has, named as in any file. Tensors of
    /// the configured dtype on `device` are shared, not copied (a tensor made under
    /// inference_mode is, because autograd cannot keep it).
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn from_tensors(
        tensors: Vec<(String, Tensor)>,
        config: &VaeConfig,
        device: Device,
    ) -> Result<Self> {
        load::from_tensors(tensors, config, device)
    }

    /// Decodes VAE-space latents `[B,C,h,w]`, f32, f16 or bf16, to images `[B,3,s·h,s·w]`, f32, RGB, nominally in [0,
    /// 1] and not clamped. The graph is kept when grad mode is on and the latents require a gradient.
    /// [`Decoder::record`] follows the configured memory policy instead.
    ///
    /// # Errors
    /// `Shape`, `Dtype`, `Device` for latents that do not fit; `OutOfMemory`.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.check(latents)?;
        let parts = self.slices(latents)?;
        let images = parts.iter().map(|part| {
            let y = self
                .chain
                .forward(&part.f_to_kind(self.kind)?, &Norms::Own)?;
            self.image(&y)
        });
        join(images.collect::<Result<Vec<_>>>()?)
    }

    /// Decodes and keeps what [`Decoder::backward`] needs: all activations, or with
    /// `recompute: blocks` only the blocks' inputs. It works in any grad mode of the thread.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn record(&self, latents: &Tensor) -> Result<Recording> {
        self.check(latents)?;
        let latents = latents.f_detach()?;
        if let Some(host) = &self.host {
            let (mut images, mut tickets) = (vec![], vec![]);
            for part in self.slices(&latents)? {
                let (y, ticket) = host.record(&part)?;
                images.push(self.image(&y)?);
                tickets.push(ticket);
            }
            return Ok(Recording {
                image: join(images)?,
                latents,
                tape: Tape::Host(tickets),
            });
        }
        if self.recompute == Recompute::None {
            let _grad_mode = tensor::GradGuard::new();
            let leaf = latents.f_set_requires_grad(true)?;
            let image = self.decode(&leaf)?;
            return Ok(Recording {
                image: image.f_detach()?,
                latents: leaf,
                tape: Tape::Graph(image),
            });
        }
        let (mut images, mut inputs) = (vec![], vec![]);
        for part in self.slices(&latents)? {
            let (y, kept) = self.chain.record(&part.f_to_kind(self.kind)?)?;
            images.push(self.image(&y)?);
            inputs.push(kept);
        }
        Ok(Recording {
            image: join(images)?,
            latents,
            tape: Tape::Inputs(inputs),
        })
    }

    /// The gradient with respect to the latents that were recorded, in their shape and dtype,
    /// from the gradient `[B,3,H,W]` with respect to the image. Frees the recording.
    ///
    /// # Errors
    /// `Shape` for a gradient of another shape than the image's; `OutOfMemory`.
    pub fn backward(&self, recording: Recording, grad_image: &Tensor) -> Result<Tensor> {
        let Recording {
            image,
            latents,
            tape,
        } = recording;
        if grad_image.size() != image.size() {
            bail!(
                Shape,
                "gradient of the image: expected {:?}, got {:?}",
                image.size(),
                grad_image.size()
            );
        }
        drop(image);
        let _no_grad = tch::no_grad_guard();
        let grad = grad_image.f_detach()?.f_to_kind(Kind::Float)?;
        let loss_scale = self.loss_scale(&grad)?;
        let grad = grad.f_mul_scalar(loss_scale)?;
        let result = match tape {
            Tape::Graph(output) => tensor::vjp(&output, &[&latents], &grad, false)?.swap_remove(0),
            Tape::Inputs(parts) => {
                let mut grads = Vec::with_capacity(parts.len());
                for (inputs, grad) in parts.into_iter().zip(self.slices(&grad)?) {
                    grads.push(self.chain.replay(inputs, &self.image_vjp(&grad)?)?);
                }
                join(grads)?
            }
            Tape::Host(tickets) => {
                let mut grads = Vec::with_capacity(tickets.len());
                for (ticket, grad) in tickets.into_iter().zip(self.slices(&grad)?) {
                    grads.push(ticket.vjp(&self.image_vjp(&grad)?)?);
                }
                join(grads)?
            }
            Tape::Windows(tape) => self.replay_windows(tape, &grad)?,
        };
        Ok(result
            .f_to_kind(Kind::Float)?
            .f_div_scalar(loss_scale)?
            .f_to_kind(latents.kind())?)
    }

    /// The gradient with respect to `latents` alone, decoding again: [`Decoder::record`] and
    /// [`Decoder::backward`], with `slicing` one sample after the other.
    ///
    /// # Errors
    /// As those two.
    pub fn vjp(&self, latents: &Tensor, grad_image: &Tensor) -> Result<Tensor> {
        self.check(latents)?;
        let mut grads = vec![];
        let shape = grad_image.size();
        if shape.first() != latents.size().first() {
            bail!(
                Shape,
                "gradient of the image: expected a batch as that of the latents, got {shape:?}"
            );
        }
        for (part, grad) in self.slices(latents)?.iter().zip(self.slices(grad_image)?) {
            let recording = self.record(part)?;
            grads.push(self.backward(recording, &grad)?);
        }
        join(grads)
    }

    /// The device of the weights and the latents.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Channels of the latents; 0 where the host decodes and takes any number.
    pub fn channels(&self) -> i64 {
        self.channels
    }

    /// Image pixels per latent pixel; 0 where the host decodes, whose images tell it.
    pub fn scale_factor(&self) -> i64 {
        self.scale
    }

    /// Whether batches are decoded one sample at a time.
    pub fn slicing(&self) -> bool {
        self.slicing
    }

    /// The family that the tensors are of.
    pub fn family(&self) -> VaeFamily {
        self.family
    }

    /// The latent format of the models that this VAE belongs to; `None` where its files do not tell. The decoders of
    /// SD1.5 and SDXL, and those of SD3 and FLUX.1, differ only in their config.json or the networks in the same
    /// checkpoint. The TAESD family decodes model-space latents, so its format is `none`.
    pub fn format(&self) -> Option<&LatentFormat> {
        self.format.as_ref()
    }

    /// FLUX.2's latent statistics, for [`crate::latent::to_vae_space`].
    pub fn patch_stats(&self) -> Option<&PatchStats> {
        self.stats.as_ref()
    }

    /// One line of text: family, channels, scale, dtype, device, and what was assumed.
    pub fn description(&self) -> String {
        let device = device_name(self.device);
        match &self.host {
            Some(_) => format!("the host's decoder on {device}; no windows"),
            None => format!(
                "{:?} decoder, {} latent channels, x{}, {:?} on {device}{}",
                self.family, self.channels, self.scale, self.kind, self.assumed,
            ),
        }
    }

    fn check(&self, latents: &Tensor) -> Result<()> {
        let shape = latents.size();
        let any = self.host.is_some() && self.channels == 0;
        if !matches!(shape.as_slice(), [b, c, h, w] if *b > 0 && (any || *c == self.channels) && *h > 0 && *w > 0)
        {
            bail!(
                Shape,
                "latents: the VAE decodes [B,{},h,w] with at least one pixel, got {shape:?}",
                self.channels
            );
        }
        if !matches!(
            latents.kind(),
            Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double
        ) {
            bail!(
                Dtype,
                "latents: expected float32, float16 or bfloat16, got {:?}",
                latents.kind()
            );
        }
        if latents.device() != self.device {
            bail!(
                Device,
                "latents: the VAE is on {}, got latents on {}",
                device_name(self.device),
                device_name(latents.device())
            );
        }
        Ok(())
    }

    /// The parts of a batch that are decoded one after the other: the whole batch, or with `slicing` single samples.
    fn slices(&self, batch: &Tensor) -> Result<Vec<Tensor>> {
        let samples = batch.size().first().copied().unwrap_or(0);
        if !self.slicing || samples <= 1 {
            return Ok(vec![batch.shallow_clone()]);
        }
        (0..samples).map(|i| Ok(batch.f_narrow(0, i, 1)?)).collect()
    }

    fn image(&self, y: &Tensor) -> Result<Tensor> {
        let shape = y.size();
        if !matches!(shape.as_slice(), [_, 3, _, _]) {
            bail!(
                Shape,
                "the decoder gave {shape:?} instead of an image [B,3,H,W]"
            );
        }
        let y = y.f_to_kind(Kind::Float)?;
        Ok(match self.range {
            ImageRange::Signed => y.f_add_scalar(1.0)?.f_mul_scalar(0.5)?,
            ImageRange::Unit => y,
        })
    }

    /// The gradient of [`Decoder::image`].
    fn image_vjp(&self, grad: &Tensor) -> Result<Tensor> {
        let grad = match self.range {
            ImageRange::Signed => grad.f_mul_scalar(0.5)?,
            ImageRange::Unit => grad.shallow_clone(),
        };
        Ok(grad.f_to_kind(self.kind)?)
    }

    /// In f16, whose least number is 6e-8: a power of two by which the gradient is multiplied to be near 1. In other
    /// dtypes: 1.
    fn loss_scale(&self, grad: &Tensor) -> Result<f64> {
        if self.kind != Kind::Half || grad.numel() == 0 {
            return Ok(1.0);
        }
        let largest = tensor::number(&grad.f_abs()?.f_max()?)?;
        let exponent = largest.log2().floor();
        Ok(if exponent.is_finite() {
            2f64.powi(-(exponent as i32))
        } else {
            1.0
        })
    }
}

fn join(mut parts: Vec<Tensor>) -> Result<Tensor> {
    if parts.len() == 1 {
        return Ok(parts.swap_remove(0));
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}
