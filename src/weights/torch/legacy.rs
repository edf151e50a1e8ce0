//! The format before torch 1.6: five pickles (magic, protocol, system, object, storage keys), then each
//! storage as a 64-bit element count and its bytes.

use super::pickle::{self, MAX_KEY, Value};
use super::{Storage, flatten};
use crate::error::{Result, bail, brief};
use crate::weights::Weights;
use crate::weights::source::Source;
use std::collections::HashMap;

/// The bytes that a storage costs in the tables here.
const STORAGE: usize = 128;

/// The wanted arrays of a file.
pub fn read(source: &Source, wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    let (bytes, budget) = (source.all()?, source.budget());
    let mut at = 0;
    let mut next = || -> Result<(Vec<Value>, usize)> {
        let (values, id, length) = pickle::run(&bytes[at..], budget)?;
        at += length;
        Ok((values, id))
    };
    for _header in ["magic", "protocol", "system"] {
        next()?;
    }
    let (values, root) = next()?;
    let (key_values, keys) = next()?;
    let Value::Sequence(keys) = &key_values[keys] else {
        bail!(Format, "expected the list of storage keys");
    };
    let tensors = flatten::tensors(&values, root, budget)?;
    let sizes: HashMap<&str, usize> = values
        .iter()
        .filter_map(|value| match value {
            Value::Storage(storage) => Some((&*storage.key, storage.dtype?.size())),
            _ => None,
        })
        .collect();
    budget.take((sizes.len() + keys.len()).saturating_mul(STORAGE))?;
    let mut storages: HashMap<&str, &[u8]> = HashMap::new();
    for &key in keys {
        let Value::Text(key) = &key_values[key] else {
            bail!(Format, "a storage key that is not a string");
        };
        let Some(size) = sizes.get(&**key).filter(|_| key.len() <= MAX_KEY) else {
            bail!(Format, "storage {} belongs to no tensor", brief(key));
        };
        let cut = || crate::error::Error::Format("the file is cut off; download it again".into());
        let head = bytes.get(at..at + 8).ok_or_else(cut)?;
        let count = u64::from_le_bytes(head.try_into().unwrap_or_default());
        let length = usize::try_from(count)
            .ok()
            .and_then(|n| n.checked_mul(*size))
            .ok_or_else(cut)?;
        at += 8;
        let end = at.checked_add(length).ok_or_else(cut)?;
        storages.insert(key, bytes.get(at..end).ok_or_else(cut)?);
        at = end;
    }
    flatten::arrays(
        tensors,
        wanted,
        budget,
        |storage: &Storage| match storages.get(&*storage.key) {
            Some(bytes) => Ok(bytes),
            None => bail!(Format, "storage {} is missing", storage.key),
        },
    )
}
