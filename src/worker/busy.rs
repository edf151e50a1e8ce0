//! Counts work during which the process must not end.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    /// It has no destructor, so exit handlers can use it.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// Counts work during which the process must not end: a call, or objects that a worker still has to drop.
pub struct Busy(());

static BUSY: AtomicUsize = AtomicUsize::new(0);

impl Busy {
    /// Counts until it is dropped.
    #[expect(clippy::new_without_default, reason = "it counts")]
    pub fn new() -> Busy {
        BUSY.fetch_add(1, Ordering::SeqCst);
        Busy(())
    }

    /// How many are alive in the process.
    pub fn count() -> usize {
        BUSY.load(Ordering::SeqCst)
    }

    /// In a forked child, forgets the work of threads that exist only in the parent.
    pub fn forked() {
        BUSY.store(Own::count(), Ordering::SeqCst);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts the [`Busy`] work that cannot end before this thread continues.
pub struct Own(());

impl Own {
    /// Counts until it is dropped.
    #[expect(clippy::new_without_default, reason = "it counts")]
    pub fn new() -> Own {
        OWN.set(OWN.get() + 1);
        Own(())
    }

    /// How many are alive on this thread.
    pub fn count() -> usize {
        OWN.get()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        OWN.set(OWN.get().saturating_sub(1));
    }
}
