//! What reading a file may cost. A file names sizes, counts and references; whoever believes them can be
//! made to allocate without end. Every reader here asks before it keeps something, so that all that one
//! file makes is bounded by its size: in memory, and with it in time, for nothing is done without being
//! read or kept.

use crate::error::{Result, bail};
use std::cell::Cell;

/// Bytes that a reader may keep for every byte of the file, the file's own content included.
pub const FACTOR: usize = 8;
/// Bytes that a reader may keep besides, for files of any size.
pub const ALLOWANCE: usize = 32 << 20;

/// How the error of a file that asks for more begins.
pub const OVER: &str = "reading it would take more than";

/// The bytes that are left for one file.
#[derive(Debug)]
pub struct Budget {
    total: Cell<usize>,
    left: Cell<usize>,
}

impl Budget {
    /// For a file of `size` bytes.
    pub fn of(size: u64) -> Budget {
        let budget = Budget {
            total: Cell::new(ALLOWANCE),
            left: Cell::new(ALLOWANCE),
        };
        budget.grow(size);
        budget
    }

    /// Another `size` bytes of content, in a file that belongs to the first.
    pub fn grow(&self, size: u64) {
        let more = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .saturating_mul(FACTOR);
        self.total.set(self.total.get().saturating_add(more));
        self.left.set(self.left.get().saturating_add(more));
    }

    /// Takes `bytes` off what is left. To be asked before they are allocated.
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
