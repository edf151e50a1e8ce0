//! Reads a TensorProto to an [`Array`].

use super::external::Neighbours;
use super::wire::{self, fields};
use crate::error::{Result, bail, brief};
use crate::weights::budget::Budget;
use crate::weights::{Array, Dtype, buffer};

const MAX_RANK: usize = 16;

/// The names of TensorProto.DataType, by number.
const TYPES: [&str; 24] = [
    "UNDEFINED",
    "FLOAT",
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "INT32",
    "INT64",
    "STRING",
    "BOOL",
    "FLOAT16",
    "DOUBLE",
    "UINT32",
    "UINT64",
    "COMPLEX64",
    "COMPLEX128",
    "BFLOAT16",
    "FLOAT8E4M3FN",
    "FLOAT8E4M3FNUZ",
    "FLOAT8E5M2",
    "FLOAT8E5M2FNUZ",
    "UINT4",
    "INT4",
    "FLOAT4E2M1",
];

/// The element type of a TensorProto.DataType; `None` for types that are not read.
pub fn dtype(number: i64) -> Option<Dtype> {
    Some(match *TYPES.get(usize::try_from(number).ok()?)? {
        "FLOAT" => Dtype::F32,
        "DOUBLE" => Dtype::F64,
        "FLOAT16" => Dtype::F16,
        "BFLOAT16" => Dtype::Bf16,
        "INT64" => Dtype::I64,
        "INT32" => Dtype::I32,
        "INT16" => Dtype::I16,
        "INT8" => Dtype::I8,
        "UINT8" => Dtype::U8,
        "BOOL" => Dtype::Bool,
        _ => return None,
    })
}

/// The name and the array of a TensorProto; `name` is empty where it has none.
pub fn named<'a>(
    message: &'a [u8],
    budget: &Budget,
    neighbours: &Neighbours,
) -> Result<(&'a str, Array)> {
    let mut name = "";
    for field in fields(message) {
        if let (8, value) = field? {
            name = value.text()?;
        }
    }
    match array(message, budget, neighbours) {
        Ok(array) => Ok((name, array)),
        Err(e) if name.is_empty() => Err(e),
        Err(e) => Err(e.context(brief(name))),
    }
}

/// The array of a TensorProto.
fn array(message: &[u8], budget: &Budget, neighbours: &Neighbours) -> Result<Array> {
    let (mut sizes, mut kind, mut raw, mut external) = (vec![], 0, None, false);
    let mut place = vec![];
    for field in fields(message) {
        match field? {
            (1, value) => wire::ints(value, |n| {
                if sizes.len() == MAX_RANK {
                    bail!(Limit, "more than {MAX_RANK} dimensions");
                }
                sizes.push(n);
                Ok(())
            })?,
            (2, value) => kind = value.int()?,
            (9, value) => raw = Some(value.bytes()?),
            (13, value) => {
                budget.take(64)?;
                place.push(value.bytes()?);
            }
            (14, value) => external = value.int()? == 1,
            _ => {}
        }
    }
    let Some(dtype) = dtype(kind) else {
        let name = usize::try_from(kind).ok().and_then(|at| TYPES.get(at));
        bail!(
            Format,
            "element type {} is not read",
            name.unwrap_or(&"unknown")
        );
    };
    let shape: Option<Vec<usize>> = sizes.iter().map(|&n| usize::try_from(n).ok()).collect();
    let bytes = shape
        .as_deref()
        .and_then(Array::elements)
        .and_then(|count| count.checked_mul(dtype.size()));
    let (Some(shape), Some(bytes)) = (shape, bytes) else {
        bail!(Format, "impossible sizes {sizes:?}");
    };
    let data = if external || !place.is_empty() {
        neighbours.read(&place, bytes, budget)?
    } else if let Some(raw) = raw.filter(|raw| !raw.is_empty()) {
        fits(raw.len(), bytes, &shape)?;
        budget.take(bytes)?;
        let mut data = buffer(bytes)?;
        data.extend_from_slice(raw);
        data
    } else {
        numbers(message, dtype, bytes, budget)?
    };
    fits(data.len(), bytes, &shape)?;
    Ok(Array { dtype, shape, data })
}

fn fits(found: usize, bytes: usize, shape: &[usize]) -> Result<()> {
    if found != bytes {
        bail!(
            Format,
            "sizes {shape:?} need {bytes} bytes, the file has {found}; it is damaged"
        );
    }
    Ok(())
}

/// The elements of a tensor that holds them as numbers, in the field for its type. Types narrower than 32 bits are
/// stored as 32-bit integers, and float16 by its bits.
fn numbers(message: &[u8], dtype: Dtype, bytes: usize, budget: &Budget) -> Result<Vec<u8>> {
    // `bytes` is what the sizes claim. The message may hold less.
    let most = bytes.min(message.len().saturating_mul(8));
    budget.take(most)?;
    let mut data = buffer(most)?;
    let size = dtype.size();
    let mut push = |number: &[u8]| {
        if data.len() + number.len() > most {
            return Err(wire::damaged(
                "a tensor with more numbers than its sizes say",
            ));
        }
        data.extend_from_slice(number);
        Ok(())
    };
    for field in fields(message) {
        match (field?, dtype) {
            ((4, value), Dtype::F32) => wire::fixeds::<4>(value, &mut push)?,
            ((10, value), Dtype::F64) => wire::fixeds::<8>(value, &mut push)?,
            ((7, value), Dtype::I64) => wire::ints(value, |n| push(&n.to_le_bytes()))?,
            ((5, _), Dtype::F32 | Dtype::F64 | Dtype::I64) => {}
            ((5, value), _) => wire::ints(value, |n| push(&n.to_le_bytes()[..size]))?,
            _ => {}
        }
    }
    Ok(data)
}
