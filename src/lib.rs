//! A differentiable face identity loss for diffusion training: detector, aligner and recogniser
//! with the gradient flowing back through all of it, behind a stable C ABI.
//!
//! The modules from the lowest floor up. A module uses only modules on lower floors; ARCHITECTURE.md draws them.
//! [`error`], [`log`], [`shared`], [`config`], [`face`], [`weights`] · `tensor`, `latent` · `nets`, `align`, `worker` ·
//! `detect`, `graph`, `batch` · `pipeline`, `score` · `reference` · `loss` · `step` · `ffi`.

#[cfg(not(panic = "unwind"))]
compile_error!("facegrad catches panics at its C ABI and must be built with panic = \"unwind\"");

pub mod config;
pub mod error;
pub mod face;
pub mod log;
pub mod shared;
pub mod weights;

#[cfg(feature = "torch")]
pub mod align;
#[cfg(feature = "torch")]
pub mod batch;
#[cfg(feature = "torch")]
pub mod detect;
#[cfg(feature = "torch")]
pub mod ffi;
#[cfg(feature = "torch")]
pub mod graph;
#[cfg(feature = "torch")]
pub mod latent;
#[cfg(feature = "torch")]
pub mod loss;
#[cfg(feature = "torch")]
pub mod nets;
#[cfg(feature = "torch")]
pub mod pipeline;
#[cfg(feature = "torch")]
pub mod reference;
#[cfg(feature = "torch")]
pub mod score;
#[cfg(feature = "torch")]
pub mod step;
#[cfg(feature = "torch")]
pub mod tensor;
#[cfg(feature = "torch")]
pub mod worker;
