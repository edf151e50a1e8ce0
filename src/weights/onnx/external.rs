//! The other files of a model whose tensors lie beside it. Exporters write them for models above 2 GB, and
//! `torch.onnx.export` does by default. They are read only from the model's own folder.

use super::wire::fields;
use crate::error::{Result, bail, brief};
use crate::weights::budget::Budget;
use crate::weights::source::Source;
use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

/// The files beside a model.
pub struct Neighbours<'a> {
    model: Option<&'a Path>,
    /// The file that was read last, still open, because a model's tensors mostly lie in one file.
    last: RefCell<Option<(PathBuf, Source<'static>)>>,
    counted: RefCell<HashSet<PathBuf>>,
}

impl<'a> Neighbours<'a> {
    /// The files beside the model at a path; none where the model was not read from a file.
    pub fn of(model: Option<&'a Path>) -> Self {
        Neighbours {
            model,
            last: RefCell::default(),
            counted: RefCell::default(),
        }
    }

    /// The `bytes` bytes of a tensor, from the file and the offset that `entries`, its `external_data`, name.
    pub fn read(&self, entries: &[&[u8]], bytes: usize, budget: &Budget) -> Result<Vec<u8>> {
        let (mut location, mut offset, mut length) = ("", 0u64, None);
        for entry in entries {
            let (mut key, mut text) = ("", "");
            for field in fields(entry) {
                match field? {
                    (1, value) => key = value.text()?,
                    (2, value) => text = value.text()?,
                    _ => {}
                }
            }
            match key {
                "location" => location = text,
                "offset" => offset = number(key, text)?,
                "length" => length = Some(number(key, text)?),
                _ => {}
            }
        }
        if let Some(length) = length
            && length != bytes as u64
        {
            bail!(
                Format,
                "its sizes need {bytes} bytes, but {length} lie in {}; it is damaged",
                brief(location)
            );
        }
        let path = self.path(location)?;
        let read = || {
            let mut last = self.last.borrow_mut();
            if last.as_ref().is_none_or(|(open, _)| *open != path) {
                let source = Source::open(&path)?;
                if self.counted.borrow_mut().insert(path.clone()) {
                    budget.grow(source.size());
                }
                *last = Some((path.clone(), source));
            }
            let Some((_, source)) = &*last else {
                bail!(Internal, "no open file");
            };
            budget.take(bytes)?;
            source.settled(source.read(offset, bytes as u64))
        };
        read().map_err(|e| e.context(format!("the model's data file {}", brief(location))))
    }

    /// The file of that name in the model's folder.
    fn path(&self, location: &str) -> Result<PathBuf> {
        let Some(model) = self.model else {
            bail!(
                Format,
                "its data lies in another file, {}; give the model as a file, with that one beside it",
                brief(location)
            );
        };
        let inside = Path::new(location)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !inside || location.contains(['\\', '\0']) {
            bail!(
                Format,
                "its data lies in `{}`, which is not a file in the model's folder; nothing outside it is read",
                brief(location)
            );
        }
        let folder = model.parent().unwrap_or(Path::new(""));
        let path = folder.join(location);
        let Ok(real) = path.canonicalize() else {
            bail!(
                Io,
                "the model's data file {} is missing; put it beside the model, under this name, or save the \
                 model in one file: onnx.save(onnx.load(path), path)",
                brief(location)
            );
        };
        // If the model itself is a link, a link may lead to the folder that the model's link points to, as in the cache
        // of huggingface_hub.
        let inside = folder
            .join(".")
            .canonicalize()
            .is_ok_and(|home| real.starts_with(home));
        let beside = || Some(real.parent()? == model.canonicalize().ok()?.parent()?);
        if !inside && beside() != Some(true) {
            bail!(
                Format,
                "the model's data file {} is a link that leaves the model's folder; nothing outside it is read",
                brief(location)
            );
        }
        Ok(real)
    }
}

fn number(key: &str, text: &str) -> Result<u64> {
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) => bail!(
            Format,
            "external data: {key}: expected a number, got `{}`",
            brief(text)
        ),
    }
}
