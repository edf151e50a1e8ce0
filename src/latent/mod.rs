//! From a model's prediction to the latents that its VAE decodes (x0, packing, latent formats), and from the
//! decoder's image into [0, 1]. libtorch differentiates all of this. The step of a sampler to another noise
//! level is here too; it has no gradient.

mod clamp;
mod format;
mod packing;
mod sampler;
mod x0;

pub use clamp::clamp_image;
pub use format::{PatchStats, to_vae_space};
pub use packing::{crop, pack, unpack};
pub use sampler::{sampler_step, transitions};
pub use x0::{coefficients, predict_x0};
