//! Windows: only the part of an image that a face's crop shows is decoded with a gradient.

use super::StepLoss;
use super::chunk::{Chunk, DecodedGroup, LatentGraph};
use super::images::LatentImages;
use super::norm_stats::FaceStatistics;
use crate::align::Frame;
use crate::batch::{Decoded, Sample};
use crate::config::Rect;
use crate::error::Result;
use crate::graph::Windows;
use crate::loss::{FaceCrop, FaceGroup, FoundFaces, GeneratedImages};
use crate::nets::vae::Statistics;
use crate::shared::lock;
use tch::Tensor;

/// Windows that are decoded together are enlarged to one size. Their areas may grow by this factor in all.
const MAX_WASTE: f64 = 1.25;

/// Latent pixels that are computed around a window whose statistics are not exact. The whole receptive field
/// would not make such a window exact either. `benches/window_photos.py` measures the cosines with this value.
const INEXACT_HALO: i64 = 2;

impl StepLoss {
    /// Finds the faces and decodes a window for each, in as few groups as the sizes of the windows allow. The tensor is
    /// [`FoundFaces::finite`].
    pub(super) fn window_groups(
        &mut self,
        chunk: &Chunk,
        graph: &mut LatentGraph,
        samples: &mut [Sample],
    ) -> Result<(Vec<DecodedGroup>, Option<Tensor>)> {
        let latents = graph.graph.value(graph.latents)?.shallow_clone();
        let clamp = lock(&self.loss).config().clamp;
        let remembered = self.remembers_statistics(chunk);
        let mut images = LatentImages::new(chunk.decoder.clone(), clamp, latents, remembered);
        let FoundFaces { faces, finite } =
            lock(&self.loss).find_faces(&mut images, &chunk.targets, samples)?;
        let found = self.norm_statistics(chunk, &mut images, &faces, samples)?;
        for (sample, &exact) in samples.iter_mut().zip(images.exact_passes()) {
            sample.exact_pass = exact;
        }
        let mut groups = vec![];
        for (group, windows) in self.planned(chunk, &images, faces, &found, samples)? {
            let rows = group.faces.iter().map(|face| face.sample).collect();
            let decode = self.decode(chunk).of_rows(rows).of_windows(windows);
            let images = graph.graph.apply(Box::new(decode), &[graph.latents])?;
            groups.push(DecodedGroup { images, group });
        }
        Ok((groups, finite))
    }

    /// Groups of faces whose windows have one size, with these windows.
    fn planned(
        &self,
        chunk: &Chunk,
        images: &LatentImages,
        faces: Vec<FaceCrop>,
        found: &FaceStatistics,
        samples: &[Sample],
    ) -> Result<Vec<(FaceGroup, Windows)>> {
        let (input_size, halo) = {
            let loss = lock(&self.loss);
            (loss.pipeline().input_size(), loss.config().window_halo)
        };
        let latent = images.latent_size();
        let (height, width) = images.size();
        let decoder = lock(chunk.decoder);
        let windows: Vec<Rect> = faces
            .iter()
            .map(|face| face.crop.support(input_size, (height, width)))
            .map(|support| decoder.windows(&[support], latent).swap_remove(0))
            .collect();
        let mut groups = vec![];
        for members in by_size(&windows) {
            let wanted: Vec<Rect> = members.iter().map(|&at| windows[at]).collect();
            let rects = decoder.windows(&wanted, latent);
            let own: Option<Vec<Statistics>> = members
                .iter()
                .map(|&at| found.statistics[at].as_ref().map(Statistics::share))
                .collect();
            let begun = found.begun.as_ref().map(|begun| begun.select(&members));
            let inexact = members
                .iter()
                .all(|&at| samples[faces[at].sample].decoded != Decoded::WindowExact);
            let frame = |&window: &Rect| Frame {
                window,
                height,
                width,
            };
            let group = FaceGroup {
                frames: rects.iter().map(frame).collect(),
                faces: (0..)
                    .zip(&members)
                    .map(|(row, &at)| faces[at].in_row(row))
                    .collect(),
            };
            let windows = Windows {
                rects,
                halo: halo.or(inexact.then_some(INEXACT_HALO)),
                statistics: own.map(|all| Statistics::join(&all)).transpose()?,
                begun: begun.transpose()?,
            };
            groups.push((group, windows));
        }
        Ok(groups)
    }
}

/// Groups of windows of similar size. Enlarged to one size, those of a group cover at most [`MAX_WASTE`] times
/// their own areas.
fn by_size(windows: &[Rect]) -> Vec<Vec<usize>> {
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
            together as f64 <= MAX_WASTE * all().map(area).sum::<i64>() as f64
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
    fn windows_of_similar_size_are_grouped() {
        let square = |side| Rect {
            x: 0,
            y: 0,
            width: side,
            height: side,
        };
        let sides = [64, 16, 64, 56, 16, 8];
        let groups = by_size(&sides.map(square));
        assert_eq!(groups, [vec![0, 2, 3], vec![1, 4], vec![5]]);
    }
}
