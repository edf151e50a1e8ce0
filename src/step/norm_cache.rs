//! GroupNorm statistics of earlier steps. At one noise level a sample's estimates of x0 differ little from step to
//! step, so the statistics of earlier steps can be used again. Those of another sample or of a distant noise level
//! cannot.

use crate::error::Result;
use crate::nets::vae::Statistics;
use lru::LruCache;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// Above this noise level a single estimate is too noisy, and only averages of several are used
/// (`benches/window_photos.py`).
const SINGLE_MAX: f64 = 0.45;
/// Minimum number of estimates to average above [`SINGLE_MAX`].
const MIN_ESTIMATES: usize = 4;
/// Maximum number of estimates that are kept per sample.
const MAX_ENTRIES: usize = 12;

/// How far from their own noise level statistics are used. They change faster with the level where the estimate is
/// noisier.
fn reach(level: f64) -> f64 {
    0.16 - 0.12 * level.clamp(0.0, 1.0)
}

/// What identifies a training sample.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Identity {
    /// The name that the host gives it.
    Name(String),
    /// The hash of its reference image, which in training usually is the sample itself.
    Content(u128),
}

/// A sample with the size (height, width) of its latent, which may vary in a bucketed data set.
pub(super) type SampleKey = (Identity, (i64, i64));

struct Entry {
    level: f64,
    uses: u64,
    statistics: Statistics,
}

/// Statistics of the samples that were used most recently, each at some noise levels in ascending order.
pub(super) struct NormCache {
    refresh: u64,
    samples: LruCache<SampleKey, Vec<Entry>>,
}

impl NormCache {
    /// A cache of `capacity` samples, at least one. Statistics are used `refresh` times before they are computed
    /// anew.
    pub(super) fn new(refresh: u64, capacity: usize) -> Self {
        // `LruCache::new` would allocate the whole capacity at once.
        let mut samples = LruCache::unbounded();
        samples.resize(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN));
        Self { refresh, samples }
    }

    /// Statistics for a sample at a noise level, averaged from those at levels near it. `None` where there are too
    /// few, or where the nearest were used often enough.
    pub(super) fn recall(&mut self, key: &SampleKey, level: f64) -> Result<Option<Statistics>> {
        let Some(entries) = self.samples.get_mut(key) else {
            return Ok(None);
        };
        let levels: Vec<f64> = entries.iter().map(|entry| entry.level).collect();
        let Some(weights) = weights(&levels, level) else {
            return Ok(None);
        };
        let distance = |entry: &Entry| (entry.level - level).abs();
        let nearest = entries
            .iter_mut()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)));
        match nearest {
            Some(nearest) if nearest.uses < self.refresh => nearest.uses += 1,
            _ => return Ok(None),
        }
        let parts: Vec<_> = entries
            .iter()
            .zip(weights)
            .filter(|(_, weight)| *weight != 0.0)
            .map(|(entry, weight)| (&entry.statistics, weight))
            .collect();
        Ok(Some(Statistics::blend(&parts)?))
    }

    /// Adds the statistics of a sample at a noise level. Used-up entries near that level are removed.
    pub(super) fn remember(&mut self, key: SampleKey, level: f64, statistics: Statistics) {
        let refresh = self.refresh;
        let entries = self.samples.get_or_insert_mut(key, Vec::new);
        entries.retain(|entry| {
            entry.uses < refresh || (entry.level - level).abs() > 2.0 * reach(level)
        });
        let at = entries.partition_point(|entry| entry.level < level);
        let entry = Entry {
            level,
            uses: 0,
            statistics,
        };
        entries.insert(at, entry);
        if entries.len() > MAX_ENTRIES {
            // Of the two entries that are closest to each other, the one that was used less is removed.
            let gap = |at: &usize| entries[at + 1].level - entries[*at].level;
            let closest = (0..entries.len() - 1).min_by(|a, b| gap(a).total_cmp(&gap(b)));
            if let Some(at) = closest {
                let second = entries[at + 1].uses > entries[at].uses;
                entries.remove(at + usize::from(second));
            }
        }
    }
}

/// The weights that average statistics at ascending `levels` into those at `level`. They sum to 1 and are 0 for levels
/// that are too far away. Between two levels they are those of a line fitted to the near levels, so that a linear
/// change with the level has no effect. Below or above all levels they are those of a weighted mean. `None` where too
/// few levels are near.
fn weights(levels: &[f64], level: f64) -> Option<Vec<f64>> {
    let reach = reach(level);
    let offsets: Vec<f64> = levels.iter().map(|other| other - level).collect();
    let above = levels.partition_point(|other| *other < level);
    let between =
        above > 0 && above < levels.len() && levels[above] - levels[above - 1] <= 2.0 * reach;
    let width = 2.0 * reach;
    let within = |most: f64| offsets.iter().filter(|offset| offset.abs() <= most).count();
    let suffices = match level <= SINGLE_MAX {
        true => between || within(reach) >= 1,
        false => (between || within(reach) >= 2) && within(width) >= MIN_ESTIMATES,
    };
    if !suffices {
        return None;
    }
    let kernel: Vec<f64> = offsets
        .iter()
        .map(|offset| (1.0 - offset.abs() / width).max(0.0))
        .collect();
    let moment = |power: i32| -> f64 {
        let terms = kernel.iter().zip(&offsets);
        terms
            .map(|(weight, offset)| weight * offset.powi(power))
            .sum()
    };
    let (zeroth, first, second) = (moment(0), moment(1), moment(2));
    let spread = zeroth * second - first * first;
    Some(match between && spread > 1e-12 {
        true => {
            let line = kernel.iter().zip(&offsets);
            line.map(|(weight, offset)| weight * (second - first * offset) / spread)
                .collect()
        }
        false => kernel.iter().map(|weight| weight / zeroth).collect(),
    })
}

/// Everything in the cache but the statistics themselves, which follow each other in the order of the entries.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedNormCache {
    /// The least recently used sample first: levels in ascending order, and uses.
    samples: Vec<(SampleKey, Vec<(f64, u64)>)>,
}

impl SavedNormCache {
    /// The number of statistics that belong to this index.
    pub(super) fn entries(&self) -> i64 {
        self.samples
            .iter()
            .map(|(_, levels)| levels.len() as i64)
            .sum()
    }
}

impl NormCache {
    /// The index, and the statistics where there are any.
    pub(super) fn save(&self) -> Result<(SavedNormCache, Option<Statistics>)> {
        let mut samples = vec![];
        let mut all = vec![];
        for (key, entries) in self.samples.iter().rev() {
            let levels = entries.iter().map(|entry| (entry.level, entry.uses));
            samples.push((key.clone(), levels.collect()));
            all.extend(entries.iter().map(|entry| entry.statistics.share()));
        }
        let all = (!all.is_empty()).then(|| Statistics::join(&all));
        Ok((SavedNormCache { samples }, all.transpose()?))
    }

    /// Replaces the content by what was saved. `all` has [`SavedNormCache::entries`] samples.
    pub(super) fn restore(
        &mut self,
        saved: SavedNormCache,
        all: Option<&Statistics>,
    ) -> Result<()> {
        let mut next = Self::new(self.refresh, self.samples.cap().get());
        let mut at = 0;
        for (key, levels) in saved.samples {
            let mut entries = vec![];
            for (level, uses) in levels {
                let Some(all) = all else { break };
                entries.push(Entry {
                    level,
                    uses,
                    statistics: all.sample(at)?,
                });
                at += 1;
            }
            entries.sort_by(|a, b| a.level.total_cmp(&b.level));
            next.samples.put(key, entries);
        }
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_change_with_the_level_has_no_effect() {
        let levels = [0.12, 0.2, 0.27, 0.36, 0.55];
        let weights = weights(&levels, 0.25).unwrap();
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let value: f64 = levels
            .iter()
            .zip(&weights)
            .map(|(x, w)| (3.0 * x + 1.0) * w)
            .sum();
        assert!((value - 1.75).abs() < 1e-12, "{value}");
        assert_eq!(weights[4], 0.0, "too far away");
    }

    #[test]
    fn above_all_levels_it_is_a_weighted_mean() {
        let weights = weights(&[0.2, 0.25], 0.3).unwrap();
        assert!(weights[1] > weights[0] && weights[0] > 0.0, "{weights:?}");
        assert!((weights[0] + weights[1] - 1.0).abs() < 1e-12);
    }

    #[test]
    fn too_few_near_levels_give_nothing() {
        assert_eq!(weights(&[], 0.3), None);
        assert_eq!(weights(&[0.3], 0.3), Some(vec![1.0]));
        assert_eq!(weights(&[0.3, 0.3], 0.3), Some(vec![0.5, 0.5]));
        assert_eq!(weights(&[0.1], 0.3), None, "too far");
        assert_eq!(weights(&[0.55], 0.55), None, "one where only a mean serves");
        assert_eq!(weights(&[0.5, 0.6], 0.55), None, "two, too");
        assert!(weights(&[0.42, 0.5, 0.6, 0.65], 0.55).is_some());
        assert_eq!(
            weights(&[0.4, 0.41, 0.42, 0.66], 0.55),
            None,
            "too wide a gap"
        );
    }
}
