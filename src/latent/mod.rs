//! From a model's prediction to what its VAE decodes: x0, packing, latent formats; and from the
//! decoder's image into [0, 1]. Every step is differentiable through libtorch.

mod clamp;
mod format;
mod packing;
mod x0;

pub use clamp::clamp_image;
pub use format::{PatchStats, to_vae_space};
pub use packing::{crop, pack, unpack};
pub use x0::{coefficients, predict_x0};
