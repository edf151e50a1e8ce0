//! The limit of the memory that reading a file takes. A file names sizes, counts and references, and a reader that
//! believes them can be made to allocate without end. Every reader here asks its budget before it keeps something, so
//! the size of the file bounds the memory. It bounds the time too, because every step reads or keeps something.

use crate::error::{Result, bail};
use std::cell::Cell;

/// Bytes that a reader may keep for every byte of the file, the file's own content included.
pub const FACTOR: usize = 8;
/// Bytes that a reader may keep in addition, for files of any size.
pub const ALLOWANCE: usize = 32 << 20;

/// The beginning of the error for a file that asks for more.
pub const OVER: &str = "reading it would take more than";

/// The bytes that are left for one file.
#[derive(Debug)]
pub struct Budget {
    total: Cell<usize>,
    left: Cell<usize>,
}

impl Budget {
    /// The budget of a file of `size` bytes.
    pub fn of(size: u64) -> Budget {
        let budget = Budget {
            total: Cell::new(ALLOWANCE),
            left: Cell::new(ALLOWANCE),
        };
        budget.grow(size);
        budget
    }

    /// Adds `size` bytes of content that lie in a file that belongs to the first.
    pub fn grow(&self, size: u64) {
        let more = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .saturating_mul(FACTOR);
        self.total.set(self.total.get().saturating_add(more));
        self.left.set(self.left.get().saturating_add(more));
    }

    /// Takes `bytes` off the budget. Readers call this before they allocate.
    ///
    /// # Errors
    /// `Limit` where fewer bytes are left.
    pub fn take(&self, bytes: usize) -> Result<()> {
        match self.left.get().checked_sub(bytes) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => bail!(
                Limit,
                "{OVER} {} bytes of memory, {FACTOR} times its size and {} MiB; no real \
                 file of this kind does",
                self.total.get(),
                ALLOWANCE >> 20
            ),
        }
    }
}
