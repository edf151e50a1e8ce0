//! Generated images that exist only as latents. They are decoded without a gradient, and only where the pixels
//! or the GroupNorm statistics of the whole image are needed.

use crate::config::ClampPolicy;
use crate::error::Result;
use crate::latent::clamp_image;
use crate::loss::GeneratedImages;
use crate::nets::vae::{Decoder, Statistics};
use crate::shared::{Shared, lock};
use crate::tensor::{finite_rows, select_rows};
use tch::Tensor;

/// VAE-space latents `[N,C,h,w]`, and the GroupNorm statistics of those that were decoded as a whole.
pub(super) struct LatentImages {
    decoder: Shared<Decoder>,
    clamp: ClampPolicy,
    latents: Tensor,
    remembered: bool,
    statistics: Vec<Option<Statistics>>,
    exact_passes: Vec<bool>,
}

impl LatentImages {
    /// `remembered`: whether their statistics are kept for later steps.
    pub(super) fn new(
        decoder: Shared<Decoder>,
        clamp: ClampPolicy,
        latents: Tensor,
        remembered: bool,
    ) -> Self {
        let count = latents.size()[0] as usize;
        Self {
            decoder,
            clamp,
            latents,
            remembered,
            statistics: (0..count).map(|_| None).collect(),
            exact_passes: vec![false; count],
        }
    }

    /// Height and width of the latents.
    pub(super) fn latent_size(&self) -> (i64, i64) {
        let size = self.latents.size();
        (size[2], size[3])
    }

    /// The latents of some images.
    pub(super) fn latents(&self, rows: &[usize]) -> Result<Tensor> {
        select_rows(&self.latents, rows)
    }

    /// Whether the statistics of an image are there.
    pub(super) fn has_statistics(&self, row: usize) -> bool {
        self.statistics[row].is_some()
    }

    /// Takes out the statistics of an image that was decoded.
    pub(super) fn take_statistics(&mut self, row: usize) -> Option<Statistics> {
        self.statistics[row].take()
    }

    /// Per image whether it was decoded as a whole.
    pub(super) fn exact_passes(&self) -> &[bool] {
        &self.exact_passes
    }
}

impl GeneratedImages for LatentImages {
    fn size(&self) -> (i64, i64) {
        let (height, width) = self.latent_size();
        let scale = lock(&self.decoder).scale_factor();
        (height * scale, width * scale)
    }

    /// Checks the latents. Numbers that overflow in the decoder are found when faces are compared.
    fn finite(&self) -> Result<Tensor> {
        finite_rows(&self.latents)
    }

    fn are_remembered(&self) -> bool {
        self.remembered
    }

    fn decoded(&mut self, rows: &[usize]) -> Result<Tensor> {
        let latents = select_rows(&self.latents, rows)?;
        let (images, statistics) = lock(&self.decoder).decode_with_statistics(&latents)?;
        for (at, &row) in (0..).zip(rows) {
            self.exact_passes[row] = true;
            if let Some(statistics) = &statistics {
                self.statistics[row] = Some(statistics.sample(at)?);
            }
        }
        clamp_image(&images, self.clamp)
    }
}
