//! The kind of a file, by its first bytes.

use super::source::Source;
use crate::error::{Result, bail};
use std::path::Path;

/// A kind of weights file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `.safetensors`
    Safetensors,
    /// `torch.save` since 1.6: a zip archive with a pickle and the storages.
    TorchZip,
    /// `torch.save` before 1.6: pickles and storages one after the other.
    TorchLegacy,
    /// `torch.jit.save`: a zip archive with code.
    TorchScript,
    /// An ONNX model.
    Onnx,
}

/// The kind of a file, decided by its content.
///
/// Errors: as [`super::load`].
pub fn kind(path: &Path) -> Result<Kind> {
    let source = Source::open(path)?;
    source.settled(of(&source))
}

/// The kind of a file's content.
pub(super) fn of(source: &Source) -> Result<Kind> {
    let head = source.read(0, source.size().min(512))?;
    match of_head(&head, source.size())? {
        Some(kind) => Ok(kind),
        None => super::torch::zip_kind(source),
    }
}

/// The kind by the first bytes; `None` for a zip archive, whose entries tell its kind.
fn of_head(head: &[u8], size: u64) -> Result<Option<Kind>> {
    if head.is_empty() {
        bail!(Format, "the file is empty; download it again");
    }
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Ok(None);
    }
    if head.starts_with(b"version https://git-lfs") {
        bail!(
            Format,
            "a git-lfs pointer, not the file itself; run `git lfs pull`"
        );
    }
    let text = String::from_utf8_lossy(head).trim_start().to_lowercase();
    if text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("<?xml") {
        bail!(
            Format,
            "a web page, not weights: the download was refused or redirected; download it again"
        );
    }
    if head.get(257..262) == Some(b"ustar") {
        bail!(Format, "a tar archive; unpack it and give the file inside");
    }
    if head.starts_with(&[0x1f, 0x8b]) {
        bail!(Format, "gzip-compressed; unpack it first");
    }
    // The legacy magic number 0x1950a86a20f9469cfc6c as a pickled long.
    if head.starts_with(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.") {
        return Ok(Some(Kind::TorchLegacy));
    }
    if head.len() > 9 {
        let header = u64::from_le_bytes(head[..8].try_into().unwrap_or_default());
        if head[8] == b'{' && header > 0 && header <= size {
            return Ok(Some(Kind::Safetensors));
        }
    }
    // ModelProto: field 1 (ir_version, a varint) comes first in every file that exporters write;
    // field 8 (opset_import) or 7 (graph) in the few that omit it.
    if matches!(head[0], 0x08 | 0x3a | 0x42) {
        return Ok(Some(Kind::Onnx));
    }
    if head.starts_with(&[0x80]) {
        bail!(
            Format,
            "a plain pickle, which only Python can read; load it with torch and torch.save it"
        );
    }
    bail!(
        Format,
        "not a weights file: expected safetensors, a torch .pth/.pt or ONNX, found bytes {:02x?}",
        &head[..head.len().min(8)]
    );
}
