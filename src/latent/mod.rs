//! latent
