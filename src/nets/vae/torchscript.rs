//! Any other decoder as a TorchScript module. The file's code runs: load only what you trust.

use super::block::{Block, ReceptiveField};
use super::statistics::Norms;
use crate::error::{Error, Result};
use std::fs::File;
use std::path::Path;
use tch::{CModule, Device, Tensor};

/// A module whose `forward` maps `[B,C,h,w]` latents to a `[B,3,H,W]` image. It computes in the
/// dtype that it was saved with.
pub(super) struct Script(CModule);

impl Script {
    pub(super) fn load(path: &Path, device: Device) -> Result<Script> {
        let failed =
            |e: tch::TchError| Error::from(e).context(format!("reading {}", path.display()));
        let mut module = CModule::load_on_device(path, device).map_err(failed)?;
        module.f_set_eval().map_err(failed)?;
        for (_, parameter) in module.named_parameters().map_err(failed)? {
            let _frozen = parameter.f_set_requires_grad(false)?;
        }
        Ok(Script(module))
    }
}

impl Block for Script {
    fn forward(&self, x: &Tensor, _: &Norms) -> Result<Tensor> {
        Ok(self.0.forward_ts(&[x])?)
    }

    fn receptive_field(&self) -> ReceptiveField {
        ReceptiveField::Whole
    }
}

/// Whether a file is a TorchScript archive: a zip that holds code, which torch.save's have not.
pub(super) fn is_torchscript(path: &Path) -> bool {
    let Some(archive) = File::open(path)
        .ok()
        .and_then(|file| zip::ZipArchive::new(file).ok())
    else {
        return false;
    };
    archive
        .file_names()
        .any(|name| name.is_ok_and(|name| name.contains("/code/")))
}
