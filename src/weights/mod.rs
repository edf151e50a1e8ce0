//! Files → named, typed, shaped arrays. Nothing here executes anything that a file says, and nothing
//! is allocated because a file claims a size: every reader checks that the bytes are there first.
#![forbid(unsafe_code)]

mod kind;
mod names;
pub mod onnx;
mod safetensors;
mod torch;

pub use self::safetensors::write;
pub use kind::{Kind, kind};
pub use names::{bare, listed, prefix, strip, take_prefix};

use crate::error::{Error, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Element type of an [`Array`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }
}

/// A dense array: C order, little endian.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Element type of `data`.
    pub dtype: Dtype,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// `product(shape) * size_of(dtype)` bytes.
    pub data: Vec<u8>,
}

impl Array {
    /// The number of elements of a shape; `None` where it overflows.
    pub fn elements(shape: &[usize]) -> Option<usize> {
        shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// The elements as 64-bit integers, where the type is one of integers.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let size = self.dtype.size();
        let read = |bytes: &[u8]| -> Option<i64> {
            Some(match self.dtype {
                Dtype::I64 => i64::from_le_bytes(bytes.try_into().ok()?),
                Dtype::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
                Dtype::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
                Dtype::I8 => i64::from(bytes[0] as i8),
                Dtype::U8 | Dtype::Bool => i64::from(bytes[0]),
                _ => return None,
            })
        };
        self.data.chunks_exact(size).map(read).collect()
    }
}

/// The arrays of one file by name.
pub type Weights = BTreeMap<String, Array>;

/// More than any published network has, and less than a 64-bit size can be made to claim.
const MAX_FILE: u64 = 64 << 30;

/// Reads every array of a file whose name `wanted` accepts; the kind is found from the content, never
/// from the ending. Nested dictionaries become dotted names (`state_dict.layer1.0.weight`).
///
/// Errors: `Io`, `Format` (not a weights file, damaged, or a pickle that wants code), `Limit`.
pub fn load(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    let read = || -> Result<Weights> {
        match kind(path)? {
            Kind::Safetensors => safetensors::read(&bytes(path)?, wanted),
            Kind::TorchZip => torch::read_zip(path, wanted),
            Kind::TorchLegacy => torch::read_legacy(&bytes(path)?, wanted),
            Kind::Onnx => Ok(onnx::parse(&bytes(path)?)?
                .initializers
                .into_iter()
                .filter(|(name, _)| wanted(name))
                .collect()),
            Kind::TorchScript => bail!(
                Format,
                "a TorchScript program, not a weights file; save its state dict: \
                 torch.save(module.state_dict(), \"weights.pth\")"
            ),
        }
    };
    read().map_err(|e| e.context(path.display()))
}

/// SHA-256 of a file as lower-case hex.
pub fn sha256(path: &Path) -> Result<String> {
    let digest = Sha256::digest(bytes(path).map_err(|e| e.context(path.display()))?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The content of a file.
fn bytes(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_FILE {
        bail!(Limit, "{size} bytes; at most {MAX_FILE} are read");
    }
    std::fs::read(path).map_err(io)
}

fn io(error: std::io::Error) -> Error {
    Error::Io(match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".into(),
        std::io::ErrorKind::PermissionDenied => "no permission to read it".into(),
        _ => error.to_string(),
    })
}
