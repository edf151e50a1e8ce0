//! Pictures of which there are only latents: decoded as far as somebody looks.

use super::pictures::{Pictures, finite};
use super::report::Decoded;
use super::statistics::{Identity, Key};
use super::{Candidate, Loss, Sample, Targets};
use crate::align::Frame;
use crate::config::{ClampPolicy, NormStats, Rect};
use crate::error::{Result, bail};
use crate::graph::Windows;
use crate::latent::clamp_image;
use crate::nets::vae::{Decoder, Statistics};
use crate::shared::{Shared, lock};
use crate::tensor::content_hash;
use tch::Tensor;

/// How much more than their own areas windows that are decoded together may cover.
const WASTE: f64 = 1.25;

/// Latent pixels around a window whose statistics are not exact: the whole receptive field would not make it exact
/// either. The cosines that `benches/window_photos.py` shows are with so many.
const INEXACT_HALO: i64 = 2;

/// Exact passes so far above the limit of remembered statistics are remembered: means below it reach up there.
const BEYOND: f64 = 0.1;

/// VAE-space latents `[N,C,h,w]`, and the statistics of those that were decoded as a whole.
pub(super) struct Undecoded {
    decoder: Shared<Decoder>,
    clamp: ClampPolicy,
    latents: Tensor,
    surveyed: Vec<Option<Statistics>>,
    passes: Vec<bool>,
}

impl Undecoded {
    pub(super) fn new(decoder: Shared<Decoder>, clamp: ClampPolicy, latents: Tensor) -> Self {
        let count = latents.size()[0] as usize;
        Self {
            decoder,
            clamp,
            latents,
            surveyed: (0..count).map(|_| None).collect(),
            passes: vec![false; count],
        }
    }

    fn latent_size(&self) -> (i64, i64) {
        let size = self.latents.size();
        (size[2], size[3])
    }
}

impl Pictures for Undecoded {
    fn size(&self) -> (i64, i64) {
        let (height, width) = self.latent_size();
        let scale = lock(&self.decoder).scale_factor();
        (height * scale, width * scale)
    }

    /// What overflows on its way through the decoder is found by the loss itself.
    fn finite(&self) -> Result<Vec<bool>> {
        finite(&self.latents)
    }

    fn show(&mut self, rows: &[i64]) -> Result<Tensor> {
        let decoder = lock(&self.decoder);
        let index = Tensor::f_from_slice(rows)?.f_to_device(self.latents.device())?;
        let (images, statistics) = decoder.survey(&self.latents.f_index_select(0, &index)?)?;
        for (at, &row) in (0..).zip(rows) {
            self.passes[row as usize] = true;
            if let Some(statistics) = &statistics {
                self.surveyed[row as usize] = Some(statistics.sample(at)?);
            }
        }
        clamp_image(&images, self.clamp)
    }
}

/// Windows that are decoded together, and the faces in them.
pub(super) struct Group {
    pub windows: Windows,
    pub frames: Vec<Frame>,
    pub candidates: Vec<Candidate>,
}

impl Group {
    /// The samples of the windows.
    pub(super) fn rows(&self) -> Vec<i64> {
        self.candidates.iter().map(|c| c.sample as i64).collect()
    }
}

impl Loss {
    /// The windows of the candidates, in as few groups as their sizes allow. `levels`: the samples' noise,
    /// where known.
    pub(super) fn windows(
        &mut self,
        pictures: &mut Undecoded,
        candidates: &[Candidate],
        targets: &Targets,
        levels: Option<&[f64]>,
        samples: &mut [Sample],
    ) -> Result<Vec<Group>> {
        let statistics = self.norms(pictures, candidates, targets, levels, samples)?;
        for (at, sample) in samples.iter_mut().enumerate() {
            sample.exact_pass = pictures.passes[at];
        }
        let latent = pictures.latent_size();
        let picture = pictures.size();
        let decoder = lock(&pictures.decoder);
        let mut windows = vec![];
        for candidate in candidates {
            let seen = self.pipeline.support(&candidate.crop, picture);
            windows.push(decoder.windows(&[seen], latent).swap_remove(0));
        }
        let mut groups = vec![];
        for members in alike(&windows) {
            let wanted: Vec<Rect> = members.iter().map(|&at| windows[at]).collect();
            let rects = decoder.windows(&wanted, latent);
            let own = members
                .iter()
                .map(|&at| statistics[at].as_ref().map(Statistics::share));
            let own: Option<Vec<Statistics>> = own.collect();
            let inexact = members
                .iter()
                .all(|&at| samples[candidates[at].sample].decoded != Decoded::WindowExact);
            let (height, width) = picture;
            groups.push(Group {
                frames: rects
                    .iter()
                    .map(|&window| Frame {
                        window,
                        height,
                        width,
                    })
                    .collect(),
                windows: Windows {
                    rects,
                    halo: self.config.window_halo.or(inexact.then_some(INEXACT_HALO)),
                    statistics: own.map(|all| Statistics::join(&all)).transpose()?,
                },
                candidates: members.iter().map(|&at| candidates[at].clone()).collect(),
            });
        }
        Ok(groups)
    }

    /// The statistics for every candidate's GroupNorms, as the policy says: all or none.
    fn norms(
        &mut self,
        pictures: &mut Undecoded,
        candidates: &[Candidate],
        targets: &Targets,
        levels: Option<&[f64]>,
        samples: &mut [Sample],
    ) -> Result<Vec<Option<Statistics>>> {
        let policy = self.trust.norm_stats();
        let needed = lock(&pictures.decoder).needs_statistics();
        if !needed || policy == NormStats::Window {
            let decoded = if needed {
                Decoded::Window
            } else {
                Decoded::WindowExact
            };
            for candidate in candidates {
                samples[candidate.sample].decoded = decoded;
            }
            return Ok(candidates.iter().map(|_| None).collect());
        }
        let size = pictures.latent_size();
        let mut found: Vec<Option<Statistics>> = candidates.iter().map(|_| None).collect();
        let mut keys = vec![];
        for (slot, candidate) in candidates.iter().enumerate() {
            let at = candidate.sample;
            let key = match policy {
                NormStats::Exact => None,
                _ => self.key(targets, at, size, levels)?,
            };
            if key.is_none() && policy == NormStats::Cached {
                bail!(
                    Argument,
                    "sample {}: `norm_stats` is \"cached\", which needs its time, and its reference image or \
                     a name of its own in `sample_ids`",
                    targets.number(at)
                );
            }
            samples[at].decoded = Decoded::WindowExact;
            if let Some((key, level)) = &key
                && pictures.surveyed[at].is_none()
                && *level <= self.config.norm_stats_t_max
            {
                found[slot] = self.statistics.recall(key, *level)?;
                if found[slot].is_some() {
                    samples[at].decoded = Decoded::WindowCached;
                }
            }
            keys.push(key);
        }
        let missing = (0..candidates.len()).filter(|&slot| {
            found[slot].is_none() && pictures.surveyed[candidates[slot].sample].is_none()
        });
        let missing: Vec<i64> = missing.map(|slot| candidates[slot].sample as i64).collect();
        if !missing.is_empty() {
            let _images = pictures.show(&missing)?;
        }
        for ((slot, candidate), key) in candidates.iter().enumerate().zip(keys) {
            if found[slot].is_some() {
                continue;
            }
            found[slot] = pictures.surveyed[candidate.sample].take();
            if let (Some((key, level)), Some(own)) = (key, &found[slot])
                && level <= self.config.norm_stats_t_max + BEYOND
            {
                self.statistics.remember(key, level, own.share());
            }
        }
        Ok(found)
    }

    /// What a sample's statistics are remembered by, and its noise level; `None` where one is not known.
    fn key(
        &self,
        targets: &Targets,
        sample: usize,
        size: (i64, i64),
        levels: Option<&[f64]>,
    ) -> Result<Option<(Key, f64)>> {
        let Some(level) = levels.map(|levels| levels[sample]) else {
            return Ok(None);
        };
        let identity = match (targets.sample_id(sample), targets.reference_id(sample)) {
            (Some(name), _) => Identity::Name(name.to_string()),
            // Many samples share a registered person.
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
}

/// The windows that are worth being decoded together: as one size, they cover at most [`WASTE`] times
/// their own areas.
fn alike(windows: &[Rect]) -> Vec<Vec<usize>> {
    let area = |at: &usize| windows[*at].width * windows[*at].height;
    let mut order: Vec<usize> = (0..windows.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(area(at)));
    let mut groups: Vec<Vec<usize>> = vec![];
    for at in order {
        let fits = groups.iter_mut().find(|group| {
            let all = || group.iter().chain([&at]);
            let width = all().map(|&at| windows[at].width).max().unwrap_or(0);
            let height = all().map(|&at| windows[at].height).max().unwrap_or(0);
            let together = width * height * all().count() as i64;
            together as f64 <= WASTE * all().map(area).sum::<i64>() as f64
        });
        match fits {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_like_size_go_together() {
        let square = |side| Rect {
            x: 0,
            y: 0,
            width: side,
            height: side,
        };
        let sides = [64, 16, 64, 56, 16, 8];
        let groups = alike(&sides.map(square));
        assert_eq!(groups, [vec![0, 2, 3], vec![1, 4], vec![5]]);
    }
}
