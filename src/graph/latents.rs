//! The nodes from a prediction to an image.

use super::{Local, Operation};
use crate::config::{ClampPolicy, LatentFormat, Packing, Rect};
use crate::error::{Result, bail};
use crate::latent;
use crate::nets::vae::{Begun, Decoder, Recording, Statistics};
use crate::shared::{Shared, lock};
use crate::tensor::{place_rows, select_rows, vjp};
use tch::Tensor;

/// `(x_t, prediction) → x0`, or `prediction → x0` where every a is 0. `coefficients`: (a, b) of
/// `x0 = a·x_t + b·prediction`, per sample.
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

/// How [`unpack`] treats model-space latents.
#[derive(Debug, Clone)]
pub struct Unpacking {
    /// How they are laid out.
    pub packing: Packing,
    /// (H, W) in latent pixels, where the layout does not determine it.
    pub size: Option<(i64, i64)>,
    /// The part that is kept, in latent pixels; `None`: all of it.
    pub crop: Option<Rect>,
    /// How they relate to the latents of the VAE; `None`: as the VAE's files say.
    pub format: Option<LatentFormat>,
}

/// Model-space latents in the host's layout → VAE-space latents `[B,C,H,W]`, f32.
///
/// # Errors
/// `Config` where neither `unpacking` nor the VAE's files name the latent format.
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

/// One window per sample. The fields are the arguments of [`Decoder::record_windows`].
#[derive(Debug)]
pub struct Windows {
    /// The windows, from [`Decoder::windows`].
    pub rects: Vec<Rect>,
    /// The most latent pixels that are computed around a window; `None`: all that have an influence.
    pub halo: Option<i64>,
    /// GroupNorm statistics of the whole maps; `None`: those of the windows.
    pub statistics: Option<Statistics>,
    /// The output of the decoder's first blocks for the same latents; `None`: it is computed.
    pub begun: Option<Begun>,
}

/// VAE-space latents → images in [0, 1], or windows of them.
pub struct Decode {
    decoder: Shared<Decoder>,
    clamp: ClampPolicy,
    rows: Option<Vec<usize>>,
    windows: Option<Windows>,
    recording: Option<Recording>,
    /// The decoder's image as a leaf, and the clamped image with its graph.
    clamped: Option<(Tensor, Tensor)>,
}

impl Decode {
    /// A node that decodes whole images of all samples.
    pub fn new(decoder: Shared<Decoder>, clamp: ClampPolicy) -> Self {
        Self {
            decoder,
            clamp,
            rows: None,
            windows: None,
            recording: None,
            clamped: None,
        }
    }

    /// Decodes only some samples of the batch. No row may occur twice.
    pub fn of_rows(self, rows: Vec<usize>) -> Self {
        Self {
            rows: Some(rows),
            ..self
        }
    }

    /// Decodes only a window of each sample.
    pub fn of_windows(self, windows: Windows) -> Self {
        Self {
            windows: Some(windows),
            ..self
        }
    }

    fn latents(&self, input: &Tensor) -> Result<Tensor> {
        match &self.rows {
            None => Ok(input.shallow_clone()),
            Some(rows) => select_rows(input, rows),
        }
    }

    fn record(&self, decoder: &Decoder, latents: &Tensor) -> Result<Recording> {
        match &self.windows {
            None => decoder.record(latents),
            Some(Windows {
                rects,
                halo,
                statistics,
                begun,
            }) => {
                decoder.record_windows(latents, rects, *halo, statistics.as_ref(), begun.as_ref())
            }
        }
    }

    fn decode(&self, decoder: &Decoder, latents: &Tensor) -> Result<Tensor> {
        match &self.windows {
            None => decoder.decode(latents),
            Some(Windows {
                rects,
                halo,
                statistics,
                begun,
            }) => {
                decoder.decode_windows(latents, rects, *halo, statistics.as_ref(), begun.as_ref())
            }
        }
    }
}

impl Operation for Decode {
    fn name(&self) -> &'static str {
        "decode"
    }

    fn forward(&mut self, inputs: &[&Tensor], needs_gradient: bool) -> Result<Tensor> {
        let latents = self.latents(inputs[0])?;
        let decoder = lock(&self.decoder);
        if !needs_gradient {
            let _frozen = tch::no_grad_guard();
            return latent::clamp_image(&self.decode(&decoder, &latents)?, self.clamp);
        }
        let recording = self.record(&decoder, &latents)?;
        let leaf = recording.image().detach().f_set_requires_grad(true)?;
        let clamped = latent::clamp_image(&leaf, self.clamp)?;
        let value = clamped.detach();
        drop(decoder);
        self.recording = Some(recording);
        self.clamped = Some((leaf, clamped));
        Ok(value)
    }

    fn vjp(&mut self, inputs: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some((leaf, clamped)) = &self.clamped else {
            bail!(Internal, "the image was decoded without a graph");
        };
        let gradient = vjp(clamped, &[leaf], gradient, true)?.swap_remove(0);
        let recording = self.recording.take();
        let decoder = lock(&self.decoder);
        // The first backward pass consumes the recording. A further one decodes again.
        let gradient = match (recording, &self.windows) {
            (Some(recording), _) => decoder.backward(recording, &gradient)?,
            (None, None) => decoder.vjp(&self.latents(inputs[0])?, &gradient)?,
            (None, Some(_)) => {
                let recording = self.record(&decoder, &self.latents(inputs[0])?)?;
                decoder.backward(recording, &gradient)?
            }
        };
        Ok(vec![Some(match &self.rows {
            None => gradient,
            Some(rows) => place_rows(&inputs[0].f_zeros_like()?, rows, &gradient)?,
        })])
    }
}
