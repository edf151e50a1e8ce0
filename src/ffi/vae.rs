//! VAE decoders.

use super::boundary::{call, copy_text};
use super::context::{Context, Model, make};
use super::handle::{self, Object};
use super::read::{self, text};
use super::types::*;
use super::views;
use crate::config::{VaeConfig, parse};
use crate::error::{Result, bail};
use crate::nets::vae::Decoder;
use crate::tensor::{RawTensor, Stream, Use, View, wait_for_device};
use crate::worker::{Owned, Worker};
use std::ffi::{c_char, c_void};
use std::sync::Arc;

impl Object for Model<Decoder> {
    const NAME: &'static str = "vae";
}

/// Loads a decoder on a worker.
pub(super) fn load(worker: &Arc<Worker>, config: VaeConfig) -> Result<Model<Decoder>> {
    finish(Owned::build(worker, move |device| {
        Decoder::load(&config, device)
    })?)
}

pub(super) fn finish(owned: Owned<Decoder>) -> Result<Model<Decoder>> {
    let info = owned.with(Stream::default(), |decoder| {
        let info = serde_json::json!({
            "description": decoder.description(),
            "channels": decoder.channels(),
            "scale_factor": decoder.scale_factor(),
            "latent_format": decoder.format(),
        });
        Ok(info.to_string())
    })?;
    Ok(Model::new(owned, info))
}

/// Loads the frozen decoder of a VAE: AutoencoderKL (SD1.5, SDXL, SD3, FLUX.1 and all that share it), FLUX.2,
/// Qwen-Image and Wan 2.1 (one frame), Wan 2.2 (one frame), HunyuanImage 2.1, Sana's DC-AE, the TAESD family, or
/// TorchScript. The tensors' names tell the family and the dialect (diffusers, LDM, ComfyUI, Wan). A config.json beside
/// the file is read.
///
/// @param[in] config JSON, with defaults in parentheses: `path` a file, single-file checkpoint or diffusers folder
/// (required); `family` "kl" | "flux2" | "wan" | "wan22" | "hunyuan" | "dc" | "tiny" | "torchscript" (from the
/// tensors), where "torchscript" must be named, because loading a TorchScript file runs code that is in it; `dtype` of
/// the computation "f32" | "bf16" | "f16" ("f32"); `recompute` "none" | "blocks", which keeps only the blocks' inputs
/// for the backward pass ("none"); `slicing` decodes one sample at a time (false); `norm_num_groups` the groups of the
/// KL families' GroupNorm (the config.json's, or 32); `model_config` an object that replaces the config.json beside the
/// file; for TorchScript alone `latent_channels`, `image_range` "signed" ([-1, 1]) | "unit" ([0, 1]) ("signed"),
/// `scale_factor` image pixels per latent pixel (8)
/// @param[out] out the new decoder; NULL on failure
///
/// Errors: `IO`, `FORMAT`, `LIMIT`, `WEIGHTS` for tensors of another family, `UNSUPPORTED` for a VAE that this library
/// has no decoder for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_vae_new(
    context: *const facegrad_context,
    config: *const c_char,
    out: *mut *mut facegrad_vae,
) -> facegrad_status {
    let body = || {
        let context = handle::get::<Context, _>("context", context)?;
        // SAFETY: the host promises a string.
        let json = unsafe { text("config", config) }?;
        load(&context.worker, parse("vae config", &json)?)
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

/// Builds a decoder from tensors that the host already has, named as in any file that `facegrad_vae_new` reads. Tensors
/// of the configured dtype on the context's device are shared and not copied: they must stay valid and unchanged until
/// the decoder and every loss and graph made with it are freed. The call waits for all work on the context's device.
///
/// @param[in] names `count` names
/// @param[in] tensors `count` tensors, in the order of the names; of any float dtype, on any device
/// @param[in] config as in `facegrad_vae_new`, without `path`; NULL for the defaults
/// @param[out] out the new decoder; NULL on failure
///
/// Errors: `WEIGHTS`, `UNSUPPORTED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_vae_new_from_tensors(
    context: *const facegrad_context,
    names: *const *const c_char,
    tensors: *const RawTensor,
    count: usize,
    config: *const c_char,
    out: *mut *mut facegrad_vae,
) -> facegrad_status {
    let body = || {
        let context = handle::get::<Context, _>("context", context)?;
        if names.is_null() || tensors.is_null() {
            bail!(Null, "names, tensors: expected arrays, got NULL");
        }
        let mut views = vec![];
        // SAFETY: the host promises `count` names and tensors.
        let config: VaeConfig = unsafe {
            for at in 0..count {
                let name = text("names", names.add(at).read())?;
                let view = View::read("tensors", tensors.add(at), Use::Input);
                views.push((name.clone(), view.map_err(|e| e.context(name))?));
            }
            read::config("vae config", config)?
        };
        finish(Owned::build(&context.worker, move |device| {
            // The host may have made the tensors on any stream.
            wait_for_device(device)?;
            let tensors = views
                .iter()
                .map(|(name, view)| Ok((name.clone(), view.borrow()?)))
                .collect::<Result<Vec<_>>>()?;
            Decoder::from_tensors(tensors, &config, device)
        })?)
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

/// Decodes latents, without a gradient.
///
/// @param[in] latents `[B,C,h,w]` as the VAE takes them (without the scaling of a diffusion model), float32, float16 or
/// bfloat16
/// @param[out] images `[B,3,s·h,s·w]`, RGB, nominally in [0, 1], not clamped; any float dtype; s is `scale_factor`
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_vae_decode(
    vae: *mut facegrad_vae,
    latents: *const RawTensor,
    images: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let vae = handle::get::<Model<Decoder>, _>("vae", vae)?;
        let device = vae.owned.worker().device();
        // SAFETY: the host's promise is `View::read`'s.
        let (latents, images) = unsafe {
            let latents = View::read("latents", latents, Use::Input)?;
            let images = views::images("images", images, Use::Output, device)?;
            (latents, images)
        };
        latents.expect_float()?;
        latents.expect_device(device)?;
        vae.owned.with(Stream::new(stream), move |decoder| {
            let _frozen = tch::no_grad_guard();
            let made = decoder.decode(&latents.borrow()?)?;
            if images.shape() != made.size() {
                bail!(
                    Shape,
                    "images: expected {:?}, got {:?}",
                    made.size(),
                    images.shape()
                );
            }
            images.write(&made)
        })
    })
}

/// Describes the decoder as a JSON object: `description`, `channels` (of the latents), `scale_factor` (image pixels per
/// latent pixel), `latent_format` (as in the config of a loss; null where the files do not tell).
///
/// @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
/// @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_vae_info(
    vae: *const facegrad_vae,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> facegrad_status {
    call(|| {
        let vae = handle::get::<Model<Decoder>, _>("vae", vae)?;
        // SAFETY: the host's promise is `copy_text`'s.
        unsafe { copy_text(&vae.info, buffer, capacity, needed) };
        Ok(())
    })
}

/// Frees a decoder. A loss that was made with it keeps what it needs.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_vae_free(vae: *mut facegrad_vae) {
    call(|| {
        handle::remove::<Model<Decoder>, _>(vae);
        Ok(())
    });
}
