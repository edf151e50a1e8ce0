//! The C ABI: the only room with `extern "C"` and raw pointers. Everything a host hands over is
//! checked here, before any work; what the functions do is written in their docstrings, which are
//! the header's text.
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)]

pub mod api;
pub mod backbone;
mod boundary;
pub mod context;
pub mod detector;
pub mod evaluator;
pub mod global;
pub mod graph;
mod handle;
pub mod host_vae;
mod life;
pub mod loss;
mod read;
mod report;
mod sampler;
pub mod step;
mod targets;
pub mod types;
pub mod vae;
mod views;
mod watch;
