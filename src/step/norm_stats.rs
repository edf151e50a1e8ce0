//! Where a window's GroupNorms get the statistics of the whole map from: `norm_stats` of the configuration.

use super::StepLoss;
use super::chunk::Chunk;
use super::images::LatentImages;
use super::norm_cache::{Identity, SampleKey};
use crate::batch::{Decoded, Sample};
use crate::config::NormStats;
use crate::error::{Result, bail};
use crate::loss::{FaceCrop, GeneratedImages};
use crate::nets::vae::Statistics;
use crate::shared::lock;
use crate::tensor::content_hash;

/// Statistics of exact passes are kept up to this far above `norm_stats_t_max`, because averages just below the
/// limit draw on them.
const KEPT_ABOVE_MAX: f64 = 0.1;

impl StepLoss {
    /// The statistics for the window of every face: for all of them or for none. Sets `decoded` of their samples.
    pub(super) fn norm_statistics(
        &mut self,
        chunk: &Chunk,
        images: &mut LatentImages,
        faces: &[FaceCrop],
        samples: &mut [Sample],
    ) -> Result<Vec<Option<Statistics>>> {
        let policy = self.audits.norm_stats();
        let needed = lock(chunk.decoder).needs_statistics();
        if !needed || policy == NormStats::Window {
            let decoded = match needed {
                true => Decoded::Window,
                false => Decoded::WindowExact,
            };
            for face in faces {
                samples[face.sample].decoded = decoded;
            }
            return Ok(faces.iter().map(|_| None).collect());
        }
        let t_max = lock(&self.loss).config().norm_stats_t_max;
        let mut statistics: Vec<Option<Statistics>> = faces.iter().map(|_| None).collect();
        let mut keys = vec![];
        for (slot, face) in faces.iter().enumerate() {
            let at = face.sample;
            let key = match policy {
                NormStats::Exact => None,
                _ => cache_key(chunk, at, images.latent_size())?,
            };
            if key.is_none() && policy == NormStats::Cached {
                bail!(
                    Argument,
                    "sample {}: `norm_stats` is \"cached\", which needs its time, and its reference image or \
                     a name of its own in `sample_ids`",
                    chunk.targets.number(at)
                );
            }
            samples[at].decoded = Decoded::WindowExact;
            if let Some((key, level)) = &key
                && !images.has_statistics(at)
                && *level <= t_max
            {
                statistics[slot] = self.norm_cache.recall(key, *level)?;
                if statistics[slot].is_some() {
                    samples[at].decoded = Decoded::WindowCached;
                }
            }
            keys.push(key);
        }
        let missing: Vec<usize> = (0..faces.len())
            .filter(|&slot| statistics[slot].is_none())
            .map(|slot| faces[slot].sample)
            .filter(|&at| !images.has_statistics(at))
            .collect();
        if !missing.is_empty() {
            let _images = images.decoded(&missing)?;
        }
        for ((slot, face), key) in faces.iter().enumerate().zip(keys) {
            if statistics[slot].is_some() {
                continue;
            }
            statistics[slot] = images.take_statistics(face.sample);
            if let (Some((key, level)), Some(own)) = (key, &statistics[slot])
                && level <= t_max + KEPT_ABOVE_MAX
            {
                self.norm_cache.remember(key, level, own.share());
            }
        }
        Ok(statistics)
    }
}

/// What a sample's statistics are kept by, and its noise level; `None` where the sample cannot be identified or
/// its noise level is not known.
fn cache_key(chunk: &Chunk, sample: usize, size: (i64, i64)) -> Result<Option<(SampleKey, f64)>> {
    let Some(level) = chunk.levels.as_ref().map(|levels| levels[sample]) else {
        return Ok(None);
    };
    let targets = &chunk.targets;
    let identity = match (targets.sample_id(sample), targets.reference_id(sample)) {
        (Some(name), _) => Identity::Name(name.to_string()),
        // Many samples share one registered id, so it does not identify a sample.
        (None, Some(_)) => return Ok(None),
        (None, None) => {
            let Some(images) = &targets.references else {
                return Ok(None);
            };
            let row = targets.reference_row(sample) as i64;
            Identity::Content(content_hash(&images.f_select(0, row)?)?)
        }
    };
    Ok(Some(((identity, size), level)))
}
