//! safetensors. The crate checks the header's invariants: no hole, no overlap, nothing beyond the end.

use super::{Array, Dtype, Weights};
use crate::error::{Error, Result, bail};
use safetensors::tensor::TensorView;
use safetensors::{Dtype as Kind, SafeTensors};
use std::path::Path;

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

/// Writes arrays as a file that is there as a whole or not at all.
pub fn write(path: &Path, weights: &Weights) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::Io(format!("{}: {e}", path.display()));
    let views = weights.iter().map(|(name, array)| {
        let view = TensorView::new(kind(array.dtype), array.shape.clone(), &array.data);
        Ok((
            name,
            view.map_err(|e| Error::Internal(format!("{name}: {e}")))?,
        ))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None).map_err(|e| failed(&e))?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = folder.unwrap_or(Path::new(".")).join(name);
    std::fs::write(&part, bytes).map_err(|e| failed(&e))?;
    std::fs::rename(&part, path).map_err(|e| {
        let _ = std::fs::remove_file(&part);
        failed(&e)
    })
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::F64,
        Dtype::F32 => Kind::F32,
        Dtype::F16 => Kind::F16,
        Dtype::Bf16 => Kind::BF16,
        Dtype::I64 => Kind::I64,
        Dtype::I32 => Kind::I32,
        Dtype::I16 => Kind::I16,
        Dtype::I8 => Kind::I8,
        Dtype::U8 => Kind::U8,
        Dtype::Bool => Kind::BOOL,
    }
}
