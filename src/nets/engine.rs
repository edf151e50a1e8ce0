//! Chooses the engine that runs an ONNX file.

use super::onnxruntime;
use crate::config::{Engine, Runtime};
use crate::error::{Error, Result};
use crate::log::warn_host;
use tch::Device;

/// Opens a network in the engine that `runtime` names. Where it names none and the preferred engine refuses the file,
/// the other engine is tried. The returned text names the engine and, where it is not the preferred one, why.
pub fn open<N>(
    runtime: &Runtime,
    device: Device,
    torch: impl Fn() -> Result<N>,
    ort: impl Fn() -> Result<(N, String)>,
) -> Result<(N, String)> {
    let (in_ort, why) = onnxruntime::chosen(runtime, device)?;
    let run = |in_ort: bool, why: &str| match in_ort {
        true => ort(),
        false => Ok((torch()?, format!("libtorch{why}"))),
    };
    let refused = match run(in_ort, why) {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    if runtime.engine != Engine::Auto || !runtime.providers.is_empty() {
        return Err(refused.hint(match in_ort {
            true => "libtorch may run the file: `engine` \"auto\" or \"torch\"",
            false => {
                "ONNX Runtime may run the file where no gradient is needed: `engine` \"auto\" or \"ort\""
            }
        }));
    }
    // A file that is too large for one engine is not given to the other.
    if matches!(refused, Error::Limit(_) | Error::OutOfMemory(_)) {
        return Err(refused);
    }
    let first = if in_ort { "ONNX Runtime" } else { "libtorch" };
    match run(!in_ort, "") {
        Ok((network, engine)) => {
            warn_host!("{first} refuses the model, so it runs on {engine}: {refused}");
            Ok((
                network,
                format!("{engine}, since {first} refuses the model ({refused})"),
            ))
        }
        Err(error) => Err(refused.hint(format!("the other engine refuses it too: {error}"))),
    }
}
