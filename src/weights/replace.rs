//! Replaces the content of a file as a whole.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Replaces the content of a file by `bytes`: on the disk, all of them or none. They are first written to another file
/// beside it, so the old content stays until the new is complete.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e: io::Error| Error::Io(format!("{}: {e}", path.display()));
    // A link stays a link. The file that it leads to is replaced.
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(e) => return Err(failed(e)),
    };
    if target.exists() && !target.is_file() {
        return Err(Error::Io(format!(
            "{}: it is there already and no regular file; give another path",
            path.display()
        )));
    }
    let part = part(&target);
    let written = write(&part, bytes).and_then(|()| std::fs::rename(&part, &target));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(failed)?;
    // Only after this does the new name survive a crash. Some file systems cannot do it.
    if let Ok(folder) = File::open(folder(&target)) {
        let _ = folder.sync_all();
    }
    Ok(())
}

fn write(part: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(part)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A name beside the target that no other process writes to.
fn part(target: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{count}.part", std::process::id()));
    folder(target).join(name)
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
