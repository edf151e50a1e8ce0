//! The identity loss on images. One file per stage, in this order: `gate`, `locate`, `crop`, `embed`, `compare`.
//! `evaluate` runs them all; `node` makes the loss a node of a graph.

mod compare;
mod crop;
mod embed;
mod evaluate;
mod gate;
mod group;
mod images;
mod locate;
pub mod node;

pub(crate) use group::{FaceCrop, FaceGroup, FoundFaces};
pub(crate) use images::GeneratedImages;

use crate::config::LossConfig;
use crate::error::Result;
use crate::face::FacePlace;
use crate::pipeline::Pipeline;
use crate::reference::References;
use tch::Tensor;

/// The most reference faces that are kept where several levels of each are compared.
const MAX_CACHED_MAPS: usize = 256;

/// A loss on images: its configuration, its networks and its references.
pub struct Loss {
    config: LossConfig,
    pipeline: Pipeline,
    references: References,
}

impl Loss {
    /// A loss over networks that are already loaded.
    pub fn new(config: LossConfig, pipeline: Pipeline) -> Self {
        // The feature maps of a face take a megabyte or more, its embedding takes two kilobytes.
        let capacity = match pipeline.levels.several() {
            true => config.reference_cache.min(MAX_CACHED_MAPS),
            false => config.reference_cache,
        };
        Self {
            references: References::new(config.reference_mode, capacity),
            config,
            pipeline,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &LossConfig {
        &self.config
    }

    /// The networks.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    pub(crate) fn references(&self) -> &References {
        &self.references
    }

    pub(crate) fn references_mut(&mut self) -> &mut References {
        &mut self.references
    }

    /// Registers `id` with the faces of `images` `[K,3,H,W]` (RGB in [0, 1]) and replaces an earlier one.
    /// `places` is empty or says per image where its face is. Returns how many images are used.
    ///
    /// # Errors
    /// `Argument` where no image has a face.
    pub fn set_reference(
        &mut self,
        id: &str,
        images: &Tensor,
        places: &[FacePlace],
    ) -> Result<usize> {
        self.references.register(&self.pipeline, id, images, places)
    }

    /// Removes a registered id; false where it was not registered.
    pub fn remove_reference(&mut self, id: &str) -> bool {
        self.references.remove(id)
    }
}
