//! GroupNorm's statistics of earlier steps. At one noise level a sample's estimates differ little from
//! step to step, so the statistics of some serve the next; those of another sample, or of another noise
//! level, do not.

use crate::error::Result;
use crate::nets::vae::Statistics;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Above this level one estimate's noise moves the statistics so much that only the mean of several serves
/// another (`benches/window_photos.py`).
const SINGLE_MAX: f64 = 0.45;
/// How many.
const SEVERAL: usize = 4;
/// Statistics that are remembered of one sample.
const ENTRIES: usize = 12;

/// How far statistics serve around their noise level. They change faster the noisier the estimate is.
fn reach(level: f64) -> f64 {
    0.16 - 0.12 * level.clamp(0.0, 1.0)
}

/// What tells a training sample from all others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Identity {
    /// The host's name of it.
    Name(String),
    /// Its reference image: in training usually the picture itself.
    Content(u128),
}

/// A sample with the size (height, width) of its latent, which a bucketed data set may vary.
pub(super) type Key = (Identity, (i64, i64));

struct Entry {
    level: f64,
    uses: u64,
    statistics: Statistics,
}

/// Statistics of the samples that were met last, each at some noise levels.
pub(super) struct Remembered {
    refresh: u64,
    capacity: usize,
    clock: u64,
    samples: HashMap<Key, (u64, Vec<Entry>)>,
}

impl Remembered {
    /// Remembers `capacity` samples and each of their statistics for `refresh` uses.
    pub(super) fn new(refresh: u64, capacity: usize) -> Self {
        Self {
            refresh,
            capacity,
            clock: 0,
            samples: HashMap::new(),
        }
    }

    /// Statistics for a sample at a noise level, from those of levels near it; `None` where there are too few,
    /// or the nearest were used often enough.
    pub(super) fn recall(&mut self, key: &Key, level: f64) -> Result<Option<Statistics>> {
        self.clock += 1;
        let Some((used, entries)) = self.samples.get_mut(key) else {
            return Ok(None);
        };
        *used = self.clock;
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
        let parts = entries.iter().zip(weights);
        let parts: Vec<_> = parts
            .filter(|(_, weight)| *weight != 0.0)
            .map(|(entry, weight)| (&entry.statistics, weight))
            .collect();
        Ok(Some(Statistics::blend(&parts)?))
    }

    /// Forgets the sample that was used longest ago where `key` would be one too many.
    fn make_room(&mut self, key: &Key) {
        if !self.samples.contains_key(key) && self.samples.len() >= self.capacity {
            let oldest = self.samples.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.samples.remove(&key);
            }
        }
    }

    /// Keeps the statistics of a sample at a noise level, in place of those near it that are used up.
    pub(super) fn remember(&mut self, key: Key, level: f64, statistics: Statistics) {
        self.make_room(&key);
        let refresh = self.refresh;
        let (_, entries) = self.samples.entry(key).or_insert((self.clock, vec![]));
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
        if entries.len() > ENTRIES {
            // Of the two that are nearest to one another the one that served more.
            let gap = |at: &usize| entries[at + 1].level - entries[*at].level;
            let closest = (0..entries.len() - 1).min_by(|a, b| gap(a).total_cmp(&gap(b)));
            if let Some(at) = closest {
                let second = entries[at + 1].uses > entries[at].uses;
                entries.remove(at + usize::from(second));
            }
        }
    }
}

/// The weights of statistics at ascending `levels` for one at `level`: 0 for those too far away, in all 1. Between
/// levels the weights are those of a line through what is near, so that a steady change with the level cancels;
/// beyond all levels a mean. `None` where what is near does not suffice.
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
        false => (between || within(reach) >= 2) && within(width) >= SEVERAL,
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

/// All that is remembered but the statistics, which follow one another as their entries do.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedStatistics {
    /// From the one that was used longest ago: levels, in ascending order, and uses.
    samples: Vec<(Key, Vec<(f64, u64)>)>,
}

impl Remembered {
    /// What is remembered, and the statistics where there are any.
    pub(super) fn save(&self) -> Result<(SavedStatistics, Option<Statistics>)> {
        let mut by_use: Vec<_> = self.samples.iter().collect();
        by_use.sort_by_key(|(_, (used, _))| *used);
        let mut samples = vec![];
        let mut all = vec![];
        for (key, (_, entries)) in by_use {
            let levels = entries.iter().map(|entry| (entry.level, entry.uses));
            samples.push((key.clone(), levels.collect()));
            all.extend(entries.iter().map(|entry| entry.statistics.share()));
        }
        let all = (!all.is_empty()).then(|| Statistics::join(&all));
        Ok((SavedStatistics { samples }, all.transpose()?))
    }

    /// The number of statistics that [`SavedStatistics`] speaks of.
    pub(super) fn entries(saved: &SavedStatistics) -> i64 {
        saved
            .samples
            .iter()
            .map(|(_, levels)| levels.len() as i64)
            .sum()
    }

    /// Remembers what was saved and nothing else. `all` has [`Remembered::entries`] samples.
    pub(super) fn restore(
        &mut self,
        saved: SavedStatistics,
        all: Option<&Statistics>,
    ) -> Result<()> {
        let mut next = Self::new(self.refresh, self.capacity);
        let mut at = 0;
        for (key, levels) in saved.samples {
            next.clock += 1;
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
            next.make_room(&key);
            next.samples.insert(key, (next.clock, entries));
        }
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_change_with_the_level_cancels() {
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
    fn beyond_all_levels_it_is_a_mean() {
        let weights = weights(&[0.2, 0.25], 0.3).unwrap();
        assert!(weights[1] > weights[0] && weights[0] > 0.0, "{weights:?}");
        assert!((weights[0] + weights[1] - 1.0).abs() < 1e-12);
    }

    #[test]
    fn what_is_near_must_suffice() {
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
