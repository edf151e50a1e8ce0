//! Turns the values of a pickle into arrays with dotted names.

use super::pickle::{Id, Value};
use super::{Storage, TensorRef};
use crate::error::{Error, Result, bail, brief};
use crate::weights::budget::Budget;
use crate::weights::{Array, Weights, buffer};

/// The deepest nesting of dictionaries: deeper than in any checkpoint.
const MAX_DEPTH: usize = 12;
const MAX_ENTRIES: usize = 1_000_000;
/// The bytes that a name costs without its letters.
const NAME: usize = 128;

/// The tensors below `root`, by dotted name. Values that are neither tensors nor dictionaries of tensors (epochs,
/// settings) are skipped.
pub fn tensors<'a>(
    values: &'a [Value],
    root: Id,
    budget: &Budget,
) -> Result<Vec<(String, &'a TensorRef)>> {
    let mut found = vec![];
    let mut open = vec![(root, String::new(), 0)];
    let mut seen = 0;
    while let Some((id, name, depth)) = open.pop() {
        match &values[id] {
            Value::Tensor(tensor) => found.push((name, &**tensor)),
            Value::Dict(entries) => {
                if depth >= MAX_DEPTH {
                    bail!(Limit, "dictionaries nest deeper than {MAX_DEPTH}");
                }
                // A dictionary may occur in many places. Its entries count each time.
                seen += entries.len();
                if seen > MAX_ENTRIES {
                    bail!(Limit, "the file has more than {MAX_ENTRIES} entries");
                }
                for &(key, value) in entries {
                    if !matches!(values[value], Value::Tensor(_) | Value::Dict(_)) {
                        continue;
                    }
                    let number;
                    let key = match &values[key] {
                        Value::Text(key) => &**key,
                        Value::Int(key) => {
                            number = key.to_string();
                            &number
                        }
                        _ => continue,
                    };
                    budget.take(NAME + 2 * (name.len() + key.len()))?;
                    let dotted = match name.as_str() {
                        "" => key.to_string(),
                        name => format!("{name}.{key}"),
                    };
                    open.push((value, dotted, depth + 1));
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
    budget: &Budget,
    storage: impl Fn(&Storage) -> Result<&'a [u8]>,
) -> Result<Weights> {
    let mut weights = Weights::new();
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| wanted(name)) {
        let array = storage(&tensor.storage).and_then(|bytes| gather(tensor, bytes, budget));
        let array = array.map_err(|e| e.context(brief(&name)))?;
        weights.insert(name, array);
    }
    Ok(weights)
}

/// Copies a tensor out of its storage, in C order. The budget bounds tensors that repeat a small storage many times.
fn gather(tensor: &TensorRef, bytes: &[u8], budget: &Budget) -> Result<Array> {
    let Some(dtype) = tensor.storage.dtype else {
        bail!(
            Format,
            "an untyped storage, which this reader does not know"
        );
    };
    let size = dtype.size();
    let damaged =
        || Error::Format("the tensor reaches beyond its storage; the file is damaged".into());
    let elements = Array::elements(&tensor.shape).ok_or_else(damaged)?;
    let total = elements.checked_mul(size).ok_or_else(damaged)?;
    budget.take(total)?;
    let mut data = buffer(total)?;
    if elements > 0 {
        let steps = tensor.shape.iter().zip(&tensor.strides);
        let reach = steps
            .clone()
            .try_fold(tensor.offset, |reach, (&n, &stride)| {
                (n - 1).checked_mul(stride)?.checked_add(reach)
            });
        let fits = |reach: usize| {
            reach
                .checked_add(1)?
                .checked_mul(size)
                .filter(|&n| n <= bytes.len())
        };
        reach.and_then(fits).ok_or_else(damaged)?;
        let steps = steps
            .map(|(&n, &stride)| (n, stride))
            .filter(|&(n, _)| n > 1);
        let (outer, run) = runs(steps.collect());
        rows(
            &outer,
            run * size,
            size,
            &bytes[tensor.offset * size..],
            &mut data,
        );
    }
    Ok(Array {
        dtype,
        shape: tensor.shape.clone(),
        data,
    })
}

/// Merges the innermost dimensions that are contiguous into one run of elements. Returns the other dimensions and the
/// length of the run.
fn runs(mut steps: Vec<(usize, usize)>) -> (Vec<(usize, usize)>, usize) {
    let mut run = 1;
    while let Some(&(n, stride)) = steps.last()
        && stride == run
    {
        run *= n;
        steps.pop();
    }
    (steps, run)
}

/// Appends the runs of `length` bytes at every index of `steps`.
fn rows(steps: &[(usize, usize)], length: usize, size: usize, bytes: &[u8], data: &mut Vec<u8>) {
    let Some((&(n, stride), outer)) = steps.split_last() else {
        data.extend_from_slice(&bytes[..length]);
        return;
    };
    let mut index = vec![0usize; outer.len()];
    loop {
        let start: usize = index.iter().zip(outer).map(|(i, (_, s))| i * s).sum();
        for step in 0..n {
            let at = (start + step * stride) * size;
            data.extend_from_slice(&bytes[at..at + length]);
        }
        let mut dimension = outer.len();
        loop {
            if dimension == 0 {
                return;
            }
            dimension -= 1;
            index[dimension] += 1;
            if index[dimension] < outer[dimension].0 {
                break;
            }
            index[dimension] = 0;
        }
    }
}
