//! Reads files as arrays with names, types and shapes. No reader executes anything in a file, and no reader
//! allocates what a file merely claims to need: each keeps within the file's [`budget`].
#![forbid(unsafe_code)]

mod budget;
mod kind;
mod names;
pub mod onnx;
mod replace;
mod safetensors;
mod source;
mod torch;
mod zip;

pub use self::safetensors::write;
pub use budget::{ALLOWANCE, FACTOR};
pub use kind::{Kind, kind};
pub use names::{bare, listed, prefix, strip, take_prefix};
pub use source::{buffer, text};

use crate::error::{Error, Result, bail};
use sha2::{Digest, Sha256};
use source::Source;
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
    /// The product of the sizes; `None` where it overflows.
    pub fn elements(shape: &[usize]) -> Option<usize> {
        shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// The elements as 64-bit integers; `None` for other types than integers.
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

/// Reads every array of a file whose name `wanted` accepts. The content of the file tells its kind, not its
/// name. Nested dictionaries become dotted names (`state_dict.layer1.0.weight`).
///
/// Memory: at most [`FACTOR`] times the file's size and [`ALLOWANCE`] bytes. Time: linear in both.
///
/// Errors: `Io`, `Format` (not a regular file, not a weights file, damaged, or a pickle that wants code),
/// `Limit`.
pub fn load(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    let read = || {
        let source = Source::open(path)?;
        source.settled(arrays(&source, Some(path), wanted))
    };
    read().map_err(|e| e.context(path.display()))
}

/// As [`load`], from a file's content. An ONNX model's other files are not read.
pub fn parse(bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    arrays(&Source::of(bytes), None, wanted)
}

fn arrays(source: &Source, path: Option<&Path>, wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    match kind::of(source)? {
        Kind::Safetensors => safetensors::read(source, wanted),
        Kind::TorchZip => torch::read_zip(source, wanted),
        Kind::TorchLegacy => torch::read_legacy(source, wanted),
        Kind::Onnx => Ok(onnx::model(source, path)?
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
}

/// SHA-256 of a file as lower-case hex.
pub fn sha256(path: &Path) -> Result<String> {
    let digest = || {
        let source = Source::open(path)?;
        let mut digest = Sha256::new();
        let read = source.pieces(|piece| digest.update(piece));
        source.settled(read)?;
        Ok(digest.finalize())
    };
    let digest = digest().map_err(|e: Error| e.context(path.display()))?;
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
