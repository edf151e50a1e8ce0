//! What a call says about a batch of generated images, and what it reports about each of them. The loss and
//! the score share these types.

mod gate;
mod report;
mod targets;

pub use gate::gate;
pub use report::{Audit, Decoded, Located, Outcome, Report, Sample};
pub use targets::Targets;
