//! safetensors. The crate checks the header's invariants: no hole, no overlap, nothing beyond the end.

use super::{Array, Dtype, Weights};
use crate::error::{Error, Result, bail};
use safetensors::{Dtype as Kind, SafeTensors};

/// The wanted arrays of a file's content.
pub fn read(bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| Error::Format(format!("a damaged safetensors file: {e}")))?;
    let mut weights = Weights::new();
    for (name, view) in file.iter().filter(|(name, _)| wanted(name)) {
        let dtype = match view.dtype() {
            Kind::F64 => Dtype::F64,
            Kind::F32 => Dtype::F32,
            Kind::F16 => Dtype::F16,
            Kind::BF16 => Dtype::Bf16,
            Kind::I64 => Dtype::I64,
            Kind::I32 => Dtype::I32,
            Kind::I16 => Dtype::I16,
            Kind::I8 => Dtype::I8,
            Kind::U8 => Dtype::U8,
            Kind::BOOL => Dtype::Bool,
            other => bail!(
                Format,
                "{name}: dtype {other:?} is not read; convert it to float32, float16 or bfloat16"
            ),
        };
        let array = Array {
            dtype,
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        };
        weights.insert(name.to_string(), array);
    }
    Ok(weights)
}
