//! VAE decoders that the host implements.

use super::context::{Context, Model, make};
use super::handle;
use super::read;
use super::types::*;
use super::vae::finish;
use crate::config::HostVaeConfig;
use crate::error::{Result, bail};
use crate::nets::vae::{Decoder, HostFunctions};
use crate::tensor::{RawTensor, Use, View, lent};
use crate::worker::Owned;
use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use tch::{Device, Tensor};

type Decode = unsafe extern "C" fn(*const RawTensor, u64, *mut RawTensor, *mut c_void) -> i32;
type Vjp = unsafe extern "C" fn(u64, *const RawTensor, *mut RawTensor, *mut c_void) -> i32;

struct Functions {
    decode: Decode,
    vjp: Vjp,
    user_data: *mut c_void,
    device: Device,
}

// SAFETY: the host promises that its functions may be called on the context's thread.
unsafe impl Send for Functions {}
// SAFETY: as above; the context's thread is the only one that calls them.
unsafe impl Sync for Functions {}

impl Functions {
    /// A copy of the tensor that a function returned, because the host's memory is valid only until the next call.
    fn taken(&self, what: &'static str, status: i32, raw: &RawTensor) -> Result<Tensor> {
        match status {
            0 => {}
            -1 => bail!(Callback, "the host's decoder threw an exception"),
            _ => bail!(
                Callback,
                "the host's decoder failed with {status}; the host knows why"
            ),
        }
        // SAFETY: the host promises that the memory stays until it is called again.
        let view = unsafe { View::read(what, raw, Use::Input) }?;
        view.expect_float()?;
        view.expect_device(self.device)?;
        let host = view.borrow()?;
        let mut own = host.f_empty_like()?;
        own.f_copy_(&host)?;
        Ok(own)
    }
}

impl Functions {
    /// # Safety
    /// The tensors are as the function's type says; NULL where no gradient is asked for.
    unsafe fn call_vjp(&self, ticket: u64, gradient: *const RawTensor, out: *mut RawTensor) -> i32 {
        unsafe extern "C" {
            /// Calls `vjp`; -1 where it threw (torch/part.cc).
            fn facegrad_torch_call_vjp(
                vjp: Vjp,
                ticket: u64,
                gradient: *const RawTensor,
                latents_gradient: *mut RawTensor,
                user_data: *mut c_void,
            ) -> i32;
        }
        // SAFETY: the host promised the function, the caller the arguments.
        unsafe { facegrad_torch_call_vjp(self.vjp, ticket, gradient, out, self.user_data) }
    }
}

impl HostFunctions for Functions {
    fn decode(&self, latents: &Tensor, ticket: u64) -> Result<Tensor> {
        unsafe extern "C" {
            /// Calls `decode`; -1 where it threw (torch/part.cc).
            fn facegrad_torch_call_decode(
                decode: Decode,
                latents: *const RawTensor,
                ticket: u64,
                image: *mut RawTensor,
                user_data: *mut c_void,
            ) -> i32;
        }
        let mut image = RawTensor::empty();
        let status = lent(latents, |latents| {
            // SAFETY: the host promised the function; both structs live until it returns.
            unsafe {
                facegrad_torch_call_decode(self.decode, latents, ticket, &mut image, self.user_data)
            }
        })?;
        self.taken("the host's image", status, &image)
    }

    fn vjp(&self, ticket: u64, gradient: &Tensor) -> Result<Tensor> {
        let mut found = RawTensor::empty();
        let status = lent(gradient, |gradient| {
            // SAFETY: both structs live until it returns.
            unsafe { self.call_vjp(ticket, gradient, &mut found) }
        })?;
        self.taken("the host's gradient", status, &found)
    }

    fn forget(&self, ticket: u64) {
        // SAFETY: NULL means that no gradient is asked for.
        unsafe { self.call_vjp(ticket, null(), null_mut()) };
    }
}

/// Makes a decoder from two functions of the host. This serves any VAE, and models whose latents are pixels. Loss,
/// gates, packing and report are the same as with the library's decoders. Windows are not available.
///
/// @param[in] decode, vjp the host's functions; they may be called until the decoder and every loss and graph made with
/// it are freed
/// @param[in] user_data passed to every call; may be NULL
/// @param[in] config JSON: `latent_channels` (0: any); `image_range` of the images, "signed" ([-1, 1], default) | "unit"
/// ([0, 1]); `latent_format` as in `facegrad_loss_new` (default "none"); `slicing` decodes one sample at a time. NULL for
/// the defaults
/// @param[out] out the new decoder; NULL on failure
///
/// Calls that need the image fail with `CALLBACK` where a function of the host fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_vae_new_from_functions(
    context: *const facegrad_context,
    decode: facegrad_decode_function,
    vjp: facegrad_vjp_function,
    user_data: *mut c_void,
    config: *const c_char,
    out: *mut *mut facegrad_vae,
) -> facegrad_status {
    let body = || -> Result<Model<Decoder>> {
        let context = handle::get::<Context, _>("context", context)?;
        let (Some(decode), Some(vjp)) = (decode, vjp) else {
            bail!(Null, "decode, vjp: expected two functions, got NULL");
        };
        // SAFETY: the host promises NULL or a string.
        let config: HostVaeConfig = unsafe { read::config("vae config", config) }?;
        let functions = Arc::new(Functions {
            decode,
            vjp,
            user_data,
            device: context.worker.device(),
        });
        finish(Owned::build(&context.worker, move |device| {
            Decoder::from_functions(functions, &config, device)
        })?)
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}
