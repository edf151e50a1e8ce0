//! The way from a prediction to an image, as nodes.

use super::{Local, Operation};
use crate::config::{ClampPolicy, LatentFormat, Packing, Rect};
use crate::error::{Result, bail};
use crate::latent;
use crate::nets::vae::{Decoder, Recording};
use crate::shared::{Shared, lock};
use crate::tensor::vjp;
use tch::Tensor;

/// `(x_t, prediction) → x0`, or `prediction → x0` where every a is 0; one pair (a, b) a sample.
pub fn predict_x0(coefficients: Vec<(f64, f64)>) -> Box<dyn Operation> {
    Box::new(Local::new(
        "predict_x0",
        move |inputs: &[&Tensor]| match inputs {
            [x_t, prediction] => latent::predict_x0(Some(x_t), prediction, &coefficients),
            [prediction] => latent::predict_x0(None, prediction, &coefficients),
            _ => bail!(Internal, "{} inputs", inputs.len()),
        },
    ))
}

/// What [`unpack`] does to model-space latents.
#[derive(Debug, Clone)]
pub struct Unpacking {
    /// How they are laid out.
    pub packing: Packing,
    /// (H, W) in latent pixels, where the layout does not tell.
    pub size: Option<(i64, i64)>,
    /// The part that is wanted.
    pub crop: Option<Rect>,
    /// How they relate to those of the VAE; `None`: what the VAE's files tell.
    pub format: Option<LatentFormat>,
}

/// Model-space latents in the host's layout → what the VAE decodes, `[B,C,H,W]` f32.
pub fn unpack(unpacking: Unpacking, decoder: &Shared<Decoder>) -> Result<Box<dyn Operation>> {
    let decoder = lock(decoder);
    let Some(format) = unpacking
        .format
        .clone()
        .or_else(|| decoder.format().cloned())
    else {
        bail!(
            Config,
            "latent_format: the VAE's files do not tell which model it belongs to; set it to sd15, sdxl, sd3, \
             flux, flux2, qwen_image, wan21, none or custom"
        );
    };
    let stats = decoder.patch_stats().map(|stats| stats.shallow_clone());
    let Unpacking {
        packing,
        size,
        crop,
        ..
    } = unpacking;
    Ok(Box::new(Local::new(
        "unpack",
        move |inputs: &[&Tensor]| {
            let mut latents = latent::unpack(inputs[0], packing, size)?;
            if let Some(rect) = &crop {
                latents = latent::crop(&latents, rect)?;
            }
            latent::to_vae_space(&latents, &format, stats.as_ref())
        },
    )))
}

/// VAE-space latents → images in [0, 1].
pub struct Decode {
    decoder: Shared<Decoder>,
    clamp: ClampPolicy,
    recording: Option<Recording>,
    /// The decoder's image as a leaf, and the clamped one with its graph.
    clamped: Option<(Tensor, Tensor)>,
}

impl Decode {
    /// A node that is not computed yet.
    pub fn new(decoder: Shared<Decoder>, clamp: ClampPolicy) -> Self {
        Self {
            decoder,
            clamp,
            recording: None,
            clamped: None,
        }
    }
}

impl Operation for Decode {
    fn name(&self) -> &'static str {
        "decode"
    }

    fn forward(&mut self, inputs: &[&Tensor], needs_gradient: bool) -> Result<Tensor> {
        let decoder = lock(&self.decoder);
        if !needs_gradient {
            let _frozen = tch::no_grad_guard();
            return latent::clamp_image(&decoder.decode(inputs[0])?, self.clamp);
        }
        let recording = decoder.record(inputs[0])?;
        let leaf = recording.image().detach().f_set_requires_grad(true)?;
        let clamped = latent::clamp_image(&leaf, self.clamp)?;
        let value = clamped.detach();
        self.recording = Some(recording);
        self.clamped = Some((leaf, clamped));
        Ok(value)
    }

    fn vjp(&mut self, inputs: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some((leaf, clamped)) = &self.clamped else {
            bail!(Internal, "the image was decoded without a graph");
        };
        let gradient = vjp(clamped, &[leaf], gradient, true)?.swap_remove(0);
        let decoder = lock(&self.decoder);
        // The recording is used up by the first walk; another one decodes again.
        Ok(vec![Some(match self.recording.take() {
            Some(recording) => decoder.backward(recording, &gradient)?,
            None => decoder.vjp(inputs[0], &gradient)?,
        })])
    }
}
