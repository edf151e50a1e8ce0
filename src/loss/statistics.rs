//! GroupNorm's statistics of earlier steps. At one noise level a sample's estimates differ little from
//! step to step, so the statistics of one serve the next; those of another sample, or of another noise
//! level, do not.

use crate::error::Result;
use crate::nets::vae::Statistics;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Statistics serve noise levels up to so far away, and twice that between two of them.
const REACH: f64 = 0.1;

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

    /// Statistics for a sample at a noise level: between those of the levels below and above, or those of
    /// the nearest; `None` where none is near enough, or it was used often enough.
    pub(super) fn recall(&mut self, key: &Key, level: f64) -> Result<Option<Statistics>> {
        self.clock += 1;
        let Some((used, entries)) = self.samples.get_mut(key) else {
            return Ok(None);
        };
        *used = self.clock;
        let above = entries.partition_point(|entry| entry.level < level);
        let (low, high) = (
            above.checked_sub(1),
            (above < entries.len()).then_some(above),
        );
        if let (Some(low), Some(high)) = (low, high) {
            let gap = entries[high].level - entries[low].level;
            if gap <= 2.0 * REACH
                && [low, high]
                    .iter()
                    .all(|&at| entries[at].uses < self.refresh)
            {
                let weight = (level - entries[low].level) / gap.max(f64::MIN_POSITIVE);
                entries[low].uses += 1;
                entries[high].uses += 1;
                let (low, high) = (&entries[low].statistics, &entries[high].statistics);
                return Ok(Some(low.between(high, weight)?));
            }
        }
        let distance = |at: usize| (entries[at].level - level).abs();
        let nearest = low
            .into_iter()
            .chain(high)
            .min_by(|&a, &b| distance(a).total_cmp(&distance(b)));
        match nearest.filter(|&at| distance(at) <= REACH) {
            Some(at) if entries[at].uses < self.refresh => {
                entries[at].uses += 1;
                Ok(Some(entries[at].statistics.share()))
            }
            _ => Ok(None),
        }
    }

    /// Keeps the statistics of a sample at a noise level, in place of those of nearly the same level and
    /// of those near it that are used up.
    pub(super) fn remember(&mut self, key: Key, level: f64, statistics: Statistics) {
        if !self.samples.contains_key(&key) && self.samples.len() >= self.capacity {
            let oldest = self.samples.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.samples.remove(&key);
            }
        }
        let refresh = self.refresh;
        let (_, entries) = self.samples.entry(key).or_insert((self.clock, vec![]));
        entries.retain(|entry| {
            let distance = (entry.level - level).abs();
            distance > REACH / 2.0 && (distance > 2.0 * REACH || entry.uses < refresh)
        });
        let at = entries.partition_point(|entry| entry.level < level);
        entries.insert(
            at,
            Entry {
                level,
                uses: 0,
                statistics,
            },
        );
    }
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
            next.samples.insert(key, (next.clock, entries));
        }
        *self = next;
        Ok(())
    }
}
