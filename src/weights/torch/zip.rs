//! The format since torch 1.6: a zip archive with `NAME/data.pkl`, and one entry `NAME/data/KEY` per
//! storage.

use super::pickle;
use super::{Storage, flatten};
use crate::error::{Result, bail, brief};
use crate::weights::source::Source;
use crate::weights::zip::Archive;
use crate::weights::{Kind, Weights};
use std::collections::HashMap;

const MAX_PICKLE: u64 = 256 << 20;

/// Whether a zip archive holds weights, a TorchScript program or neither.
pub fn kind(source: &Source) -> Result<Kind> {
    let archive = Archive::open(source)?;
    let has = |ending: &str| archive.names().any(|name| name.ends_with(ending));
    if has("constants.pkl") && archive.names().any(|name| name.contains("/code/")) {
        return Ok(Kind::TorchScript);
    }
    if has("data.pkl") {
        return Ok(Kind::TorchZip);
    }
    if has(".onnx") {
        bail!(
            Format,
            "a zip archive with ONNX files, such as an InsightFace pack; unpack it and give one of them"
        );
    }
    bail!(
        Format,
        "a zip archive without weights; unpack it and give the file inside"
    );
}

/// The wanted arrays of a file.
pub fn read(source: &Source, wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    let archive = Archive::open(source)?;
    let pickles = archive.names().filter(|name| name.ends_with("data.pkl"));
    // Of several, the one in the outermost folder is used.
    let Some(pickle) = pickles.min_by_key(|name| (name.len(), *name)) else {
        bail!(Format, "a zip archive without data.pkl");
    };
    let folder = pickle.trim_end_matches("data.pkl");
    if let Some(order) = archive.read(&format!("{folder}byteorder"), 16)?
        && order != b"little"
    {
        bail!(
            Format,
            "saved on a big-endian machine; save it again on another one"
        );
    }
    let program = archive.read(pickle, MAX_PICKLE)?.unwrap_or_default();
    let budget = source.budget();
    let (values, root, _) = pickle::run(&program, budget)?;
    let tensors = flatten::tensors(&values, root, budget)?;
    let mut storages: HashMap<&str, Vec<u8>> = HashMap::new();
    for (name, tensor) in tensors.iter().filter(|(name, _)| wanted(name)) {
        let Storage { key, dtype, length } = &*tensor.storage;
        if storages.contains_key(&**key) {
            continue;
        }
        let bytes = (*length as u64).saturating_mul(dtype.map_or(1, |d| d.size()) as u64);
        let data = archive
            .read(&format!("{folder}data/{key}"), bytes)
            .map_err(|e| e.context(brief(name)))?;
        let Some(data) = data.filter(|data| data.len() as u64 == bytes) else {
            bail!(
                Format,
                "{}: its storage {key} is missing or has not {bytes} bytes; the file is damaged; download it again",
                brief(name)
            );
        };
        storages.insert(key, data);
    }
    let found = |storage: &Storage| match storages.get(&*storage.key) {
        Some(bytes) => Ok(bytes.as_slice()),
        None => bail!(Format, "storage {} is missing", storage.key),
    };
    flatten::arrays(tensors, wanted, budget, found)
}
