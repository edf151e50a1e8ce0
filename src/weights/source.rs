//! Reads the content of one file piece by piece, within its [`Budget`].

use super::budget::Budget;
use crate::error::{Error, Result, bail};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

/// The largest file: larger than any published network.
const MAX_FILE: u64 = 64 << 30;

/// A regular file, or bytes in memory.
pub struct Source<'a> {
    content: Content<'a>,
    size: u64,
    budget: Budget,
}

enum Content<'a> {
    File(File),
    Bytes(&'a [u8]),
}

impl Source<'_> {
    /// Opens a regular file. Reading a pipe could wait for ever, and a device has no end.
    pub fn open(path: &Path) -> Result<Source<'static>> {
        regular(&std::fs::metadata(path).map_err(io)?)?;
        let mut options = OpenOptions::new();
        options.read(true);
        // If the path has become a pipe meanwhile, opening it must not wait.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
        let file = options.open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        regular(&metadata)?;
        let size = metadata.len();
        if size > MAX_FILE {
            bail!(Limit, "{size} bytes; at most {MAX_FILE} are read");
        }
        Ok(Source {
            content: Content::File(file),
            size,
            budget: Budget::of(size),
        })
    }

    /// The content of a file that is in memory already.
    pub fn of(bytes: &[u8]) -> Source<'_> {
        Source {
            content: Content::Bytes(bytes),
            size: bytes.len() as u64,
            budget: Budget::of(bytes.len() as u64),
        }
    }

    /// The size in bytes when the file was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What reading this file may still cost.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The whole content.
    pub fn all(&self) -> Result<Vec<u8>> {
        self.read(0, self.size)
    }

    /// `length` bytes from `at` on, all of which must be there.
    pub fn read(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let end = at.checked_add(length).filter(|&end| end <= self.size);
        let (Some(end), Ok(count)) = (end, usize::try_from(length)) else {
            bail!(
                Format,
                "the file of {} bytes ends before byte {at} + {length}; it is cut off or damaged; download it again",
                self.size
            );
        };
        self.budget.take(count)?;
        let mut data = buffer(count)?;
        match &self.content {
            Content::Bytes(bytes) => data.extend_from_slice(&bytes[at as usize..end as usize]),
            Content::File(file) => {
                let mut file = file;
                file.seek(SeekFrom::Start(at)).map_err(io)?;
                // The buffer has exactly this length; `read_to_end` would reserve more to see the end.
                data.resize(count, 0);
                file.read_exact(&mut data).map_err(io)?;
            }
        }
        Ok(data)
    }

    /// Calls `each` with the content, piece by piece.
    pub fn pieces(&self, mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut piece = vec![0; 1 << 16];
        match &self.content {
            Content::Bytes(bytes) => each(bytes),
            Content::File(file) => {
                let mut file = file.take(self.size);
                loop {
                    match file.read(&mut piece) {
                        Ok(0) => break,
                        Ok(count) => each(&piece[..count]),
                        Err(e) if e.kind() == ErrorKind::Interrupted => {}
                        Err(e) => return Err(io(e)),
                    }
                }
            }
        }
        Ok(())
    }

    /// `result`, or an error where the size of the file has changed, because then what was read cannot be trusted.
    pub fn settled<T>(&self, result: Result<T>) -> Result<T> {
        if let Content::File(file) = &self.content {
            let now = file.metadata().map_err(io)?.len();
            if now != self.size {
                bail!(
                    Io,
                    "the file changed while it was read, from {} bytes to {now}; try again when it is complete",
                    self.size
                );
            }
        }
        result
    }
}

/// An empty buffer with room for `count` elements. It is an error where the machine has no room; Rust's own containers
/// would end the process.
pub fn buffer<T>(count: usize) -> Result<Vec<T>> {
    let mut data = Vec::new();
    if data.try_reserve_exact(count).is_err() {
        bail!(
            OutOfMemory,
            "no memory for {count} numbers of {} bytes",
            size_of::<T>()
        );
    }
    Ok(data)
}

/// The text of a small file that belongs to another one; `None` where there is no regular file.
pub fn text(path: &Path, limit: u64) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    let read = || {
        let source = Source::open(path)?;
        if source.size() > limit {
            bail!(Limit, "{} bytes; at most {limit} are read", source.size());
        }
        String::from_utf8(source.settled(source.all())?)
            .map_err(|_| Error::Format("not a text in UTF-8".into()))
    };
    read().map(Some).map_err(|e| e.context(path.display()))
}

fn regular(metadata: &Metadata) -> Result<()> {
    if metadata.is_dir() {
        bail!(Format, "a folder; give the weights file inside it");
    }
    if !metadata.is_file() {
        bail!(
            Format,
            "a pipe, a socket or a device, not a regular file; write the content into a file and give that"
        );
    }
    Ok(())
}

pub(super) fn io(error: std::io::Error) -> Error {
    Error::Io(match error.kind() {
        ErrorKind::NotFound => "no such file".into(),
        ErrorKind::PermissionDenied => "no permission to read it".into(),
        ErrorKind::UnexpectedEof => "the file became shorter while it was read".into(),
        _ => error.to_string(),
    })
}
