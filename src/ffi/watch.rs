//! Warns where a host's images are not in the range that they should be in.

use crate::error::Result;
use crate::log::warn_host;
use crate::tensor::unusual_range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use tch::Tensor;

/// How many batches are checked per object. A trainer that uses a wrong range does so from its first step on.
const LOOKS: u32 = 32;

/// Checks the first images of an object, and warns once about every wrong range.
pub(super) struct Watch {
    looks: AtomicU32,
    warned: Mutex<Vec<&'static str>>,
}

impl Watch {
    /// A watch that has checked nothing yet.
    pub fn new() -> Watch {
        Watch {
            looks: AtomicU32::new(LOOKS),
            warned: Mutex::default(),
        }
    }

    /// Checks a batch `[N,3,H,W]`, which is the host's argument `name`.
    pub fn look(&self, name: &str, images: &Tensor) -> Result<()> {
        let left = self.looks.load(Ordering::Relaxed);
        if left == 0 {
            return Ok(());
        }
        self.looks.store(left - 1, Ordering::Relaxed);
        let Some((least, largest, advice)) = unusual_range(images)? else {
            return Ok(());
        };
        let mut warned = self.warned.lock().unwrap_or_else(|e| e.into_inner());
        if !warned.contains(&advice) {
            warned.push(advice);
            warn_host!(
                "{name}: values from {least:.3} to {largest:.3} came, where RGB in [0, 1] is expected; {advice}. Similarities \
                 and losses of such pictures are wrong"
            );
        }
        Ok(())
    }
}
