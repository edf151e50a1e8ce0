//! Where a window's GroupNorms get the statistics of the whole map from: `norm_stats` of the configuration.

use super::StepLoss;
use super::chunk::Chunk;
use super::images::LatentImages;
use super::norm_cache::{Identity, SampleKey};
use crate::batch::{Decoded, Sample};
use crate::config::NormStats;
use crate::error::{Result, bail};
use crate::log::{Level, emit};
use crate::loss::{FaceCrop, GeneratedImages};
use crate::nets::vae::{Begun, Statistics};
use crate::shared::lock;
use crate::tensor::content_hash;

/// The noise level above which cached statistics are taken anew, where the configuration names none.
const CACHED_MAX: f64 = 0.6;
/// Cached statistics of exact passes are kept up to this far above their limit, because averages just below it draw on
/// them.
const KEPT_ABOVE_MAX: f64 = 0.1;

/// The statistics for the window of every face, for all of them or for none.
pub(super) struct FaceStatistics {
    pub statistics: Vec<Option<Statistics>>,
    /// What the decoder's first blocks made of the faces' samples, one row per face, where it was needed.
    pub begun: Option<Begun>,
}

impl StepLoss {
    /// The statistics for the window of every face. Sets `decoded` of their samples.
    pub(super) fn norm_statistics(
        &mut self,
        chunk: &Chunk,
        images: &mut LatentImages,
        faces: &[FaceCrop],
        samples: &mut [Sample],
    ) -> Result<FaceStatistics> {
        let policy = self.audits.norm_stats();
        let needed = lock(chunk.decoder).needs_statistics();
        if policy == NormStats::Predicted && !needed && !self.told_no_norms {
            self.told_no_norms = true;
            emit(
                Level::Info,
                "norm_stats: the decoder has no GroupNorm, so its windows are exact without statistics",
            );
        }
        let none = |decoded: Decoded, samples: &mut [Sample]| {
            for face in faces {
                samples[face.sample].decoded = decoded;
            }
            FaceStatistics {
                statistics: faces.iter().map(|_| None).collect(),
                begun: None,
            }
        };
        match policy {
            _ if faces.is_empty() || !needed => Ok(none(Decoded::WindowExact, samples)),
            NormStats::Window => Ok(none(Decoded::Window, samples)),
            NormStats::Exact => {
                let mut found = none(Decoded::WindowExact, samples);
                take_exact(images, faces, &mut found.statistics)?;
                Ok(found)
            }
            NormStats::Cached => {
                let statistics = self.cached_statistics(chunk, images, faces, samples)?;
                Ok(FaceStatistics {
                    statistics,
                    begun: None,
                })
            }
            NormStats::Auto | NormStats::Predicted => {
                self.predicted_statistics(chunk, images, faces, samples)
            }
        }
    }

    /// Whether a step keeps statistics for later steps.
    pub(super) fn remembers_statistics(&self, chunk: &Chunk) -> bool {
        lock(chunk.decoder).needs_statistics()
            && match self.audits.norm_stats() {
                NormStats::Cached | NormStats::Predicted | NormStats::Auto => true,
                NormStats::Exact | NormStats::Window => false,
            }
    }

    /// Statistics that the model predicts. Where it refuses, those of this step, from which it then learns.
    fn predicted_statistics(
        &mut self,
        chunk: &Chunk,
        images: &mut LatentImages,
        faces: &[FaceCrop],
        samples: &mut [Sample],
    ) -> Result<FaceStatistics> {
        let t_max = lock(&self.loss).config().norm_stats_t_max;
        let rows: Vec<usize> = faces.iter().map(|face| face.sample).collect();
        let begun = lock(chunk.decoder).begin(&images.latents(&rows)?)?;
        let features = begun.features()?;
        let level = |at: usize| chunk.levels.as_ref().map(|levels| levels[at]);
        let mut statistics: Vec<Option<Statistics>> = faces.iter().map(|_| None).collect();
        let mut learn = vec![];
        for (slot, &at) in rows.iter().enumerate() {
            let own = features.f_select(0, slot as i64)?;
            samples[at].decoded = Decoded::WindowExact;
            if images.has_statistics(at) {
                if self.norm_model.wants() {
                    learn.push((slot, own));
                }
                continue;
            }
            let above = matches!((level(at), t_max), (Some(level), Some(most)) if level > most);
            let device = lock(chunk.decoder).device();
            let predicted = match above {
                true => None,
                false => self.norm_model.predict(&own, level(at), device)?.ok(),
            };
            match predicted {
                Some(predicted) => {
                    samples[at].decoded = Decoded::WindowPredicted;
                    statistics[slot] = Some(predicted);
                }
                None => learn.push((slot, own)),
            }
        }
        take_exact(images, faces, &mut statistics)?;
        for (slot, features) in learn {
            if let Some(exact) = &statistics[slot] {
                let level = level(rows[slot]);
                self.norm_model.learn(&features, exact, level)?;
            }
        }
        Ok(FaceStatistics {
            statistics,
            begun: Some(begun),
        })
    }

    /// Statistics that are cached for the same sample at near noise levels. Where there are none, those of this step, which
    /// are then cached.
    fn cached_statistics(
        &mut self,
        chunk: &Chunk,
        images: &mut LatentImages,
        faces: &[FaceCrop],
        samples: &mut [Sample],
    ) -> Result<Vec<Option<Statistics>>> {
        let t_max = lock(&self.loss).config().norm_stats_t_max;
        let t_max = t_max.unwrap_or(CACHED_MAX);
        let mut statistics: Vec<Option<Statistics>> = faces.iter().map(|_| None).collect();
        let mut keys = vec![];
        for (slot, face) in faces.iter().enumerate() {
            let at = face.sample;
            let Some((key, level)) = cache_key(chunk, at, images.latent_size())? else {
                bail!(
                    Argument,
                    "sample {}: `norm_stats` is \"cached\", which needs its time, and its reference image or \
                     a name of its own in `sample_ids`",
                    chunk.targets.number(at)
                );
            };
            samples[at].decoded = Decoded::WindowExact;
            if !images.has_statistics(at) && level <= t_max {
                statistics[slot] = self.norm_cache.recall(&key, level)?;
                if statistics[slot].is_some() {
                    samples[at].decoded = Decoded::WindowCached;
                }
            }
            let exact = statistics[slot].is_none();
            keys.push(exact.then_some((key, level)));
        }
        take_exact(images, faces, &mut statistics)?;
        for (slot, key) in keys.into_iter().enumerate() {
            if let (Some((key, level)), Some(own)) = (key, &statistics[slot])
                && level <= t_max + KEPT_ABOVE_MAX
            {
                self.norm_cache.remember(key, level, own.share());
            }
        }
        Ok(statistics)
    }
}

/// Fills the gaps with statistics of this step. Decodes the images that were not decoded yet.
fn take_exact(
    images: &mut LatentImages,
    faces: &[FaceCrop],
    statistics: &mut [Option<Statistics>],
) -> Result<()> {
    let missing: Vec<usize> = (0..faces.len())
        .filter(|&slot| statistics[slot].is_none())
        .map(|slot| faces[slot].sample)
        .filter(|&at| !images.has_statistics(at))
        .collect();
    if !missing.is_empty() {
        let _images = images.decoded(&missing)?;
    }
    for (own, face) in statistics.iter_mut().zip(faces) {
        if own.is_none() {
            *own = images.take_statistics(face.sample);
        }
    }
    Ok(())
}

/// The key of a sample's statistics in the cache, and its noise level; `None` where the sample cannot be identified or
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
