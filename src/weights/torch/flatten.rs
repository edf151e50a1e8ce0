//! From the values of a pickle to arrays with dotted names.

use super::pickle::{Id, Value};
use super::{Storage, TensorRef};
use crate::error::{Result, bail};
use crate::weights::{Array, Dtype, Weights};

/// Deeper than any checkpoint nests its dictionaries.
const MAX_DEPTH: usize = 12;
const MAX_ENTRIES: usize = 1_000_000;

/// The tensors below `root`, by dotted name. What is not a tensor or a dictionary of tensors (epochs,
/// settings) is passed over.
pub fn tensors(values: &[Value], root: Id) -> Result<Vec<(String, &TensorRef)>> {
    let mut found = vec![];
    let mut open = vec![(root, String::new(), 0)];
    let mut seen = 0;
    while let Some((id, name, depth)) = open.pop() {
        seen += 1;
        if seen > MAX_ENTRIES {
            bail!(Limit, "the file has more than {MAX_ENTRIES} entries");
        }
        match &values[id] {
            Value::Tensor(tensor) => found.push((name, tensor)),
            Value::Dict(entries) => {
                if depth >= MAX_DEPTH {
                    bail!(Limit, "dictionaries nest deeper than {MAX_DEPTH}");
                }
                for (key, value) in entries {
                    let key = match &values[*key] {
                        Value::Text(key) => key.clone(),
                        Value::Int(key) => key.to_string(),
                        _ => continue,
                    };
                    let dotted = if name.is_empty() {
                        key
                    } else {
                        format!("{name}.{key}")
                    };
                    open.push((*value, dotted, depth + 1));
                }
            }
            _ => {}
        }
    }
    if found.is_empty() {
        bail!(
            Format,
            "a torch file without a tensor by name; save a state dict: torch.save(module.state_dict(), …)"
        );
    }
    Ok(found)
}

/// The wanted tensors as arrays; `storage` gives a storage's bytes.
pub fn arrays<'a>(
    tensors: Vec<(String, &TensorRef)>,
    wanted: &dyn Fn(&str) -> bool,
    mut storage: impl FnMut(&Storage) -> Result<&'a [u8]>,
) -> Result<Weights> {
    let mut weights = Weights::new();
    // Views may repeat one small storage many times over; a state dict does not.
    let mut budget = 0usize;
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| wanted(name)) {
        let bytes = storage(&tensor.storage).map_err(|e| e.context(&name))?;
        budget = budget.saturating_add(bytes.len().max(4096).saturating_mul(4));
        let array = gather(tensor, bytes, budget).map_err(|e| e.context(&name))?;
        budget -= array.data.len().min(budget);
        weights.insert(name, array);
    }
    Ok(weights)
}

/// Copies a strided window out of its storage, in C order.
fn gather(tensor: &TensorRef, bytes: &[u8], budget: usize) -> Result<Array> {
    let Some(dtype) = tensor.storage.dtype else {
        bail!(
            Format,
            "an untyped storage, which this reader does not know"
        );
    };
    let size = dtype.size();
    let damaged = || {
        crate::error::Error::Format(
            "the tensor reaches beyond its storage; the file is damaged".into(),
        )
    };
    let elements = Array::elements(&tensor.shape).ok_or_else(damaged)?;
    let total = elements.checked_mul(size).ok_or_else(damaged)?;
    if total > budget {
        bail!(Limit, "{total} bytes out of a storage of {}", bytes.len());
    }
    if elements == 0 {
        return Ok(empty(dtype, tensor));
    }
    let reach = tensor
        .shape
        .iter()
        .zip(&tensor.strides)
        .try_fold(tensor.offset, |reach, (&size, &stride)| {
            (size - 1).checked_mul(stride)?.checked_add(reach)
        });
    let fits = |reach: usize| {
        reach
            .checked_add(1)?
            .checked_mul(size)
            .filter(|&n| n <= bytes.len())
    };
    reach.and_then(fits).ok_or_else(damaged)?;

    let mut dense = 1;
    let contiguous = tensor
        .shape
        .iter()
        .zip(&tensor.strides)
        .rev()
        .all(|(&n, &stride)| {
            let ok = n == 1 || stride == dense;
            dense *= n;
            ok
        });
    let start = tensor.offset * size;
    let mut data = Vec::with_capacity(total);
    if contiguous {
        data.extend_from_slice(&bytes[start..start + total]);
    } else {
        let mut index = vec![0usize; tensor.shape.len()];
        for _ in 0..elements {
            let steps: usize = index.iter().zip(&tensor.strides).map(|(i, s)| i * s).sum();
            let at = start + steps * size;
            data.extend_from_slice(&bytes[at..at + size]);
            for (i, &n) in index.iter_mut().zip(&tensor.shape).rev() {
                *i += 1;
                if *i < n {
                    break;
                }
                *i = 0;
            }
        }
    }
    Ok(Array {
        dtype,
        shape: tensor.shape.clone(),
        data,
    })
}

fn empty(dtype: Dtype, tensor: &TensorRef) -> Array {
    Array {
        dtype,
        shape: tensor.shape.clone(),
        data: vec![],
    }
}
