//! The format before torch 1.6: five pickles (magic, protocol, system, object, storage keys), then each
//! storage as a 64-bit element count and its bytes.

use super::pickle::{self, Value};
use super::{Storage, flatten};
use crate::error::{Result, bail};
use crate::weights::Weights;
use std::collections::HashMap;

/// The wanted arrays of a file's content.
pub fn read(bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    let mut at = 0;
    let mut next = || -> Result<(Vec<Value>, usize)> {
        let (values, id, length) = pickle::run(&bytes[at..])?;
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
    let tensors = flatten::tensors(&values, root)?;
    let sizes: HashMap<&str, usize> = values
        .iter()
        .filter_map(|value| match value {
            Value::Storage(Storage {
                key,
                dtype: Some(dtype),
                ..
            }) => Some((key.as_str(), dtype.size())),
            _ => None,
        })
        .collect();
    let mut storages: HashMap<&str, &[u8]> = HashMap::new();
    for &key in keys {
        let Value::Text(key) = &key_values[key] else {
            bail!(Format, "a storage key that is not a string");
        };
        let Some(size) = sizes.get(key.as_str()) else {
            bail!(Format, "storage {key} belongs to no tensor");
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
    flatten::arrays(tensors, wanted, |storage| {
        match storages.get(storage.key.as_str()) {
            Some(bytes) => Ok(bytes),
            None => bail!(Format, "storage {} is missing", storage.key),
        }
    })
}
