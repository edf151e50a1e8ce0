//! Whether a host's pictures come in the range that they should be in.

use crate::error::Result;
use crate::log::warn_host;
use crate::tensor::unusual_range;
use std::sync::atomic::{AtomicU32, Ordering};
use tch::Tensor;

/// How many batches an object looks at: a trainer that mistakes the range does so from its first step on.
const LOOKS: u32 = 32;

/// Looks at an object's first pictures and warns once.
pub(super) struct Watch(AtomicU32);

impl Watch {
    /// A watch that has seen nothing.
    pub fn new() -> Watch {
        Watch(AtomicU32::new(LOOKS))
    }

    /// Looks at a batch `[N,3,H,W]`, the host's argument `name`.
    pub fn look(&self, name: &str, images: &Tensor) -> Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        if left == 0 {
            return Ok(());
        }
        let unusual = unusual_range(images)?;
        let left = if unusual.is_some() { 0 } else { left - 1 };
        self.0.store(left, Ordering::Relaxed);
        if let Some((least, largest, advice)) = unusual {
            warn_host!(
                "{name}: values from {least:.3} to {largest:.3} came, where RGB in [0, 1] is expected; {advice}. Similarities \
                 and losses of such pictures are wrong"
            );
        }
        Ok(())
    }
}
