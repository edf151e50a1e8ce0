//! safetensors files. The crate checks that the tensors of the header leave no hole, do not overlap and do not
//! pass the end. The header itself is read here, because the crate's reading keeps many times its size.

use super::budget::{Budget, OVER};
use super::replace::replace;
use super::source::Source;
use super::{Array, Dtype, Weights};
use crate::error::{Error, Result, bail, brief, shorten};
use safetensors::Dtype as Kind;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::path::Path;

/// The bytes that an entry of the header costs without its name, and those of each size in its shape.
const ENTRY: usize = 400;
const SIZE: usize = 32;
/// The most dimensions of a tensor: more than any network's tensor has.
const MAX_RANK: usize = 16;

/// The wanted arrays of a file. Of the others, only the header is read.
pub fn read(source: &Source, wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    let head = source.read(0, 8)?;
    let length = u64::from_le_bytes(head.try_into().unwrap_or_default());
    let header = source.read(8, length)?;
    let entries = entries(&header, source)?;
    let data = 8 + length;
    let places: Vec<_> = entries.iter().map(|(_, info)| info.clone()).collect();
    let names = (0..places.len()).map(|at| at.to_string());
    let checked = Metadata::new(None, names.zip(places).collect()).map_err(|e| {
        Error::Format(format!(
            "a damaged safetensors file: {e}; download it again"
        ))
    })?;
    if checked.data_len() as u64 != source.size() - data {
        bail!(
            Format,
            "a damaged safetensors file: its tensors need {} bytes, it has {}; download it again",
            checked.data_len(),
            source.size() - data
        );
    }
    let mut weights = Weights::new();
    for (name, info) in entries.into_iter().filter(|(name, _)| wanted(name)) {
        let Some(dtype) = dtype(info.dtype) else {
            bail!(
                Format,
                "{}: dtype {:?} is not read; convert it to float32, float16 or bfloat16",
                brief(&name),
                info.dtype
            );
        };
        let (start, end) = info.data_offsets;
        let array = Array {
            dtype,
            shape: info.shape,
            data: source.read(data + start as u64, (end - start) as u64)?,
        };
        if let Some(_twice) = weights.insert(name, array) {
            bail!(
                Format,
                "a damaged safetensors file: a tensor is there twice"
            );
        }
    }
    Ok(weights)
}

/// The tensors that a header names, in the order of their data. Its other content is skipped.
fn entries(header: &[u8], source: &Source) -> Result<Vec<(String, TensorInfo)>> {
    let mut json = serde_json::Deserializer::from_slice(header);
    let read = json.deserialize_map(Header(source.budget()));
    let mut entries = read
        .and_then(|entries| json.end().map(|()| entries))
        .map_err(|e| {
            let text = shorten(&e.to_string());
            match text.starts_with(OVER) {
                true => Error::Limit(text),
                false => Error::Format(format!(
                    "a damaged safetensors file: its header: {text}; download it again"
                )),
            }
        })?;
    entries.sort_by_key(|(_, info)| info.data_offsets);
    Ok(entries)
}

/// Reads the JSON object of a header, entry by entry, within the budget.
struct Header<'a>(&'a Budget);

impl<'de> Visitor<'de> for Header<'_> {
    type Value = Vec<(String, TensorInfo)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(
        self,
        mut map: M,
    ) -> std::result::Result<Self::Value, M::Error> {
        let over = |e: Error| M::Error::custom(e.message());
        let mut entries = vec![];
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            self.0.take(ENTRY + 2 * name.len()).map_err(over)?;
            let info: Info = map.next_value()?;
            self.0.take(SIZE * info.shape.0.len()).map_err(over)?;
            let info = TensorInfo {
                dtype: info.dtype,
                shape: info.shape.0,
                data_offsets: info.data_offsets,
            };
            entries.push((name, info));
        }
        Ok(entries)
    }
}

/// [`TensorInfo`] with a shape of bounded length.
#[derive(Deserialize)]
struct Info {
    dtype: Kind,
    shape: Shape,
    data_offsets: (usize, usize),
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "up to {MAX_RANK} sizes")
            }

            fn visit_seq<S: SeqAccess<'de>>(
                self,
                mut list: S,
            ) -> std::result::Result<Shape, S::Error> {
                let mut sizes = vec![];
                while let Some(size) = list.next_element()? {
                    if sizes.len() == MAX_RANK {
                        return Err(S::Error::invalid_length(MAX_RANK + 1, &self));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

fn dtype(kind: Kind) -> Option<Dtype> {
    Some(match kind {
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
        _ => return None,
    })
}

/// Writes arrays to a file as a whole or not at all, even if the machine crashes meanwhile. An older regular file is
/// replaced. If the path is a link, the file that it leads to is replaced.
///
/// # Errors
/// `Io`. The older file is then unchanged, and no other file remains.
pub fn write(path: &Path, weights: &Weights) -> Result<()> {
    let views = weights.iter().map(|(name, array)| {
        let view = TensorView::new(kind(array.dtype), array.shape.clone(), &array.data);
        Ok((
            name,
            view.map_err(|e| Error::Internal(format!("{name}: {e}")))?,
        ))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None)
        .map_err(|e| Error::Internal(format!("{}: {e}", path.display())))?;
    replace(path, &bytes)
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
