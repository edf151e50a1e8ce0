//! Any other decoder, as a TorchScript module. Loading the file runs its code, so this happens only where the host
//! names the family.

use super::block::{Block, ReceptiveField};
use super::statistics::Norms;
use crate::error::{Error, Result, bail};
use crate::weights;
use std::path::Path;
use tch::{CModule, Device, Tensor};

/// A module whose `forward` maps `[B,C,h,w]` latents to a `[B,3,H,W]` image. It computes in the
/// dtype that it was saved with.
pub(super) struct Script(CModule);

impl Script {
    pub(super) fn load(path: &Path, device: Device) -> Result<Script> {
        let failed =
            |e: tch::TchError| Error::from(e).context(format!("reading {}", path.display()));
        // The file is opened here, because libtorch takes only names in UTF-8.
        let io = |e: std::io::Error| Error::Io(format!("{}: {e}", path.display()));
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            bail!(Format, "{}: not a regular file", path.display());
        }
        let mut file = std::fs::File::open(path).map_err(io)?;
        let mut module = CModule::load_data_on_device(&mut file, device).map_err(failed)?;
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

/// Whether a file is a TorchScript archive: a zip that holds code. torch.save writes none.
pub(super) fn is_torchscript(path: &Path) -> bool {
    matches!(weights::kind(path), Ok(weights::Kind::TorchScript))
}
