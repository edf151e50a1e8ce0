//! The directory of a zip archive, and its entries, stored or deflated. PyTorch writes nothing else. General readers
//! are not used, because they believe the counts and sizes in the directory before they have seen the bytes.

use super::source::{Source, buffer};
use crate::error::{Result, bail, brief};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use std::collections::HashMap;

/// An entry without its name.
struct Entry {
    method: u16,
    encrypted: bool,
    crc: u32,
    packed: u64,
    size: u64,
    header: u64,
}

/// The bytes that an entry of the directory costs without its name.
const ENTRY: usize = 256;

/// An archive's directory.
pub struct Archive<'a> {
    source: &'a Source<'a>,
    entries: HashMap<String, Entry>,
}

impl<'a> Archive<'a> {
    /// Reads the directory.
    pub fn open(source: &'a Source<'a>) -> Result<Archive<'a>> {
        let directory = directory(source)?;
        let mut entries = HashMap::new();
        let mut rest = directory.as_slice();
        while !rest.is_empty() {
            let Some((name, entry, next)) = central(rest) else {
                bail!(Format, "{}", damaged("a damaged directory"));
            };
            source.budget().take(ENTRY + 2 * name.len())?;
            let name = String::from_utf8_lossy(name).into_owned();
            if entries.contains_key(&name) {
                bail!(Format, "{}", damaged(&format!("{} twice", brief(&name))));
            }
            entries.insert(name, entry);
            rest = next;
        }
        Ok(Archive { source, entries })
    }

    /// The names of the entries, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The content of an entry, which must not be longer than `limit`; `None` where there is no entry of that name.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        self.content(entry, limit)
            .map(Some)
            .map_err(|e| e.context(brief(name)))
    }

    fn content(&self, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
        if entry.size > limit {
            bail!(
                Limit,
                "it is longer than the {limit} bytes that it should be"
            );
        }
        if entry.encrypted {
            bail!(
                Format,
                "encrypted, which torch never writes; save it again without a password"
            );
        }
        let head = self.source.read(entry.header, 30)?;
        if !head.starts_with(b"PK\x03\x04") {
            bail!(
                Format,
                "{}",
                damaged("its content is not where the directory says")
            );
        }
        let start = entry.header + 30 + u64::from(u16_at(&head, 26)) + u64::from(u16_at(&head, 28));
        let data = match entry.method {
            0 if entry.packed == entry.size => self.source.read(start, entry.size)?,
            8 => self.inflate(&self.source.read(start, entry.packed)?, entry.size)?,
            0 => bail!(Format, "{}", damaged("two sizes for a stored entry")),
            other => bail!(
                Format,
                "compressed by method {other}, which torch never writes; save it again"
            ),
        };
        let mut crc = Crc::new();
        crc.update(&data);
        if crc.sum() != entry.crc {
            bail!(
                Format,
                "{}",
                damaged("the content does not match its check sum")
            );
        }
        Ok(data)
    }

    /// Unpacks `packed`, which must give exactly `size` bytes.
    fn inflate(&self, packed: &[u8], size: u64) -> Result<Vec<u8>> {
        let count = usize::try_from(size).unwrap_or(usize::MAX);
        self.source.budget().take(count)?;
        let mut data = buffer(count)?;
        let mut inflate = Decompress::new(false);
        let status = inflate.decompress_vec(packed, &mut data, FlushDecompress::Finish);
        if !matches!(status, Ok(Status::StreamEnd)) || data.len() != count {
            bail!(Format, "{}", damaged("the content does not unpack"));
        }
        Ok(data)
    }
}

/// The bytes of the central directory.
fn directory(source: &Source) -> Result<Vec<u8>> {
    // The end record has 22 bytes and a comment of up to 65,535; before it lies zip64's locator.
    let tail_start = source.size().saturating_sub(22 + 65_535 + 20);
    let tail = source.read(tail_start, source.size() - tail_start)?;
    let end = (0..tail.len().saturating_sub(21)).rev().find(|&at| {
        tail[at..].starts_with(b"PK\x05\x06")
            && at + 22 + usize::from(u16_at(&tail, at + 20)) <= tail.len()
    });
    let Some(end) = end else {
        bail!(
            Format,
            "{}",
            damaged("the directory at its end is missing: it is cut off")
        );
    };
    let (mut size, mut start) = (
        u64::from(u32_at(&tail, end + 12)),
        u64::from(u32_at(&tail, end + 16)),
    );
    let mut before = tail_start + end as u64;
    if let Some(locator) = end.checked_sub(20).map(|at| &tail[at..end])
        && locator.starts_with(b"PK\x06\x07")
    {
        let at = u64_at(locator, 8);
        let record = source.read(at, 56)?;
        if !record.starts_with(b"PK\x06\x06") {
            bail!(
                Format,
                "{}",
                damaged("the directory is not where its end says")
            );
        }
        (size, start) = (u64_at(&record, 40), u64_at(&record, 48));
        before = at;
    }
    if start.checked_add(size).is_none_or(|end| end > before) {
        bail!(
            Format,
            "{}",
            damaged("the directory reaches beyond its own end")
        );
    }
    source.read(start, size)
}

/// The first entry of a directory: its name, the entry, and what follows.
fn central(bytes: &[u8]) -> Option<(&[u8], Entry, &[u8])> {
    let (head, rest) = bytes.split_at_checked(46)?;
    if !head.starts_with(b"PK\x01\x02") {
        return None;
    }
    let (name, rest) = rest.split_at_checked(u16_at(head, 28).into())?;
    let (extra, rest) = rest.split_at_checked(u16_at(head, 30).into())?;
    let (_comment, rest) = rest.split_at_checked(u16_at(head, 32).into())?;
    let mut entry = Entry {
        method: u16_at(head, 10),
        encrypted: u16_at(head, 8) & 1 == 1,
        crc: u32_at(head, 16),
        packed: u32_at(head, 20).into(),
        size: u32_at(head, 24).into(),
        header: u32_at(head, 42).into(),
    };
    zip64(extra, &mut entry)?;
    Some((name, entry, rest))
}

/// Reads numbers that do not fit into 32 bits from the extra field 1. It holds, in this order, those whose short number
/// is 2³²−1.
fn zip64(mut extra: &[u8], entry: &mut Entry) -> Option<()> {
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let mut field = extra.get(4..4 + length)?;
        extra = &extra[4 + length..];
        if id != 1 {
            continue;
        }
        for number in [&mut entry.size, &mut entry.packed, &mut entry.header] {
            if *number == u64::from(u32::MAX) {
                let (long, rest) = field.split_at_checked(8)?;
                *number = u64_at(long, 0);
                field = rest;
            }
        }
    }
    Some(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap_or_default())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

fn damaged(what: &str) -> String {
    format!("a damaged torch file ({what}); download it again")
}
