//! nets

pub mod vae;
