//! Gating: which samples are left out before any network runs.

use super::Loss;
use crate::batch::{Outcome, Sample, Targets, gate};

impl Loss {
    /// The samples of a batch of `count` images, marked where they are left out.
    pub(crate) fn gate(&self, targets: &Targets, count: usize) -> Vec<Sample> {
        let mut samples = gate(targets, count, Some(&self.config.face_types));
        if !self.config.use_face_loss {
            for sample in &mut samples {
                sample.outcome = Outcome::Disabled;
            }
        }
        samples
    }
}
