//! The C ABI: the only module with `extern "C"` functions and raw pointers. It checks everything that a host
//! hands over before any work. The docstrings of the functions are the text of the header.
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
mod panics;
mod read;
mod report;
mod sampler;
pub mod step;
mod targets;
pub mod types;
pub mod vae;
mod views;
mod watch;
