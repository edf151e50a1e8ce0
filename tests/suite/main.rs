//! Everything that is compared with PyTorch, diffusers, insightface and ONNX Runtime, in one program: every further
//! program that uses libtorch takes as long to build as this one.
#![cfg(feature = "torch")]

#[path = "../common/mod.rs"]
mod common;
mod decoder_files;
mod decoders;
mod detect;
mod evaluate;
mod latent;
mod loss;
mod nets;
mod photograph;
mod step;
mod windows;
