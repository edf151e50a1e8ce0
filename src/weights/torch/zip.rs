//! The format since torch 1.6: a zip archive with `NAME/data.pkl` and one entry `NAME/data/KEY` a
//! storage.

use super::pickle;
use super::{Storage, flatten};
use crate::error::{Error, Result, bail};
use crate::weights::{Kind, Weights, io};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::ZipArchive;

type Archive = ZipArchive<BufReader<File>>;

const MAX_ENTRIES: usize = 200_000;
const MAX_PICKLE: u64 = 256 << 20;

/// Whether a zip archive holds weights, a TorchScript program or neither.
pub fn kind(path: &Path) -> Result<Kind> {
    let archive = open(path)?;
    let names: Vec<String> = names(&archive).collect();
    let has = |ending: &str| names.iter().any(|name| name.ends_with(ending));
    if has("constants.pkl") && names.iter().any(|name| name.contains("/code/")) {
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
pub fn read(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Weights> {
    let mut archive = open(path)?;
    let size = std::fs::metadata(path).map_err(io)?.len();
    let Some(pickle) = names(&archive).find(|name| name.ends_with("data.pkl")) else {
        bail!(Format, "a zip archive without data.pkl");
    };
    let folder = pickle.trim_end_matches("data.pkl").to_string();
    if let Ok(order) = entry(&mut archive, &format!("{folder}byteorder"), 16)
        && order != b"little"
    {
        bail!(
            Format,
            "saved on a big-endian machine; save it again on another one"
        );
    }
    let program = entry(&mut archive, &pickle, MAX_PICKLE)?;
    let (values, root, _) = pickle::run(&program)?;
    let tensors = flatten::tensors(&values, root)?;
    let mut storages: HashMap<&str, Vec<u8>> = HashMap::new();
    let needed = tensors.iter().filter(|(name, _)| wanted(name));
    let mut total = 0u64;
    for (name, tensor) in needed {
        let Storage { key, dtype, length } = &tensor.storage;
        if storages.contains_key(key.as_str()) {
            continue;
        }
        let bytes = (*length as u64).saturating_mul(dtype.map_or(1, |d| d.size()) as u64);
        total = total.saturating_add(bytes);
        // torch stores without compression; a re-zipped file may pack a little, not a thousandfold.
        if total > size.saturating_mul(64).max(1 << 20) {
            bail!(
                Limit,
                "{name}: the file of {size} bytes claims to hold {total}"
            );
        }
        let data = entry(&mut archive, &format!("{folder}data/{key}"), bytes)
            .map_err(|e| e.context(name))?;
        if data.len() as u64 != bytes {
            bail!(
                Format,
                "{name}: its storage has {} bytes instead of {bytes}; the file is damaged",
                data.len()
            );
        }
        storages.insert(key, data);
    }
    let found = |storage: &Storage| match storages.get(storage.key.as_str()) {
        Some(bytes) => Ok(bytes.as_slice()),
        None => bail!(Format, "storage {} is missing", storage.key),
    };
    flatten::arrays(tensors, wanted, found)
}

fn open(path: &Path) -> Result<Archive> {
    let file = BufReader::new(File::open(path).map_err(io)?);
    let archive = ZipArchive::new(file).map_err(damaged)?;
    if archive.len() > MAX_ENTRIES {
        bail!(Limit, "the archive has more than {MAX_ENTRIES} entries");
    }
    Ok(archive)
}

/// The readable names of an archive's entries.
fn names(archive: &Archive) -> impl Iterator<Item = String> {
    let readable = archive.file_names().filter_map(|name| name.ok());
    readable.map(|name| name.into_owned())
}

/// An entry's content, which must not be longer than `limit`.
fn entry(archive: &mut Archive, name: &str, limit: u64) -> Result<Vec<u8>> {
    let file = archive.by_name(name).map_err(damaged)?;
    let mut data = Vec::new();
    // Not the claimed size: only what is really there is allocated.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut data)
        .map_err(|e| Error::Format(format!("{name}: {e}")))?;
    if data.len() as u64 > limit {
        bail!(
            Limit,
            "{name} is longer than the {limit} bytes that it should be"
        );
    }
    Ok(data)
}

fn damaged(error: zip::result::ZipError) -> Error {
    Error::Format(format!("a damaged torch file ({error}); download it again"))
}
