//! The fused step: from a model's prediction to the weighted loss and its gradient with respect to the
//! prediction. `run` gates the samples and cuts them into chunks; `pass` runs the forward and backward pass of a chunk,
//! through whole images or through `windows`; `norm_stats` says where the GroupNorm statistics of a window come from.

mod audit;
mod chunk;
mod gate;
mod images;
mod input;
mod noise;
mod norm_cache;
mod norm_model;
mod norm_stats;
mod pass;
mod ridge;
mod run;
mod state;
mod windows;

pub use input::Step;

use crate::loss::Loss;
use crate::nets::vae::Decoder;
use crate::shared::{Shared, lock};
use audit::AuditPolicy;
use norm_cache::NormCache;
use norm_model::NormModel;

/// A loss with the VAE of its training steps, and what these keep from one step to the next.
pub struct StepLoss {
    loss: Shared<Loss>,
    decoder: Option<Shared<Decoder>>,
    norm_cache: NormCache,
    norm_model: NormModel,
    /// Whether the host was told that the decoder has no GroupNorm.
    told_no_norms: bool,
    audits: AuditPolicy,
}

impl StepLoss {
    /// The steps of a loss. Without a decoder there are no steps, and the state holds references alone.
    pub fn new(loss: Shared<Loss>, decoder: Option<Shared<Decoder>>) -> Self {
        let (norm_cache, audits) = {
            let loss = lock(&loss);
            let config = loss.config();
            (
                NormCache::new(config.norm_stats_refresh, config.norm_stats_cache),
                AuditPolicy::new(config),
            )
        };
        Self {
            loss,
            decoder,
            norm_cache,
            norm_model: NormModel::default(),
            told_no_norms: false,
            audits,
        }
    }

    /// The loss on images that the steps use.
    pub fn loss(&self) -> &Shared<Loss> {
        &self.loss
    }
}
