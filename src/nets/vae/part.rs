//! Rectangles of the maps of a batch, and which of them a decoder has to compute for a window of its
//! image.

use super::block::{Block, Reach};
use crate::config::Rect;
use crate::error::{Result, bail};
use tch::Tensor;

/// One rectangle a sample, all of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part(Vec<Rect>);

impl Part {
    fn all_alike(&self) -> Option<Rect> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().all(|rect| rect == first).then_some(*first)
    }

    /// The rectangles of `map`, `[B,C,height,width]`.
    pub(super) fn of(&self, map: &Tensor) -> Result<Tensor> {
        let cut =
            |map: &Tensor, r: &Rect| map.f_narrow(2, r.y, r.height)?.f_narrow(3, r.x, r.width);
        if let Some(rect) = self.all_alike() {
            return Ok(cut(map, &rect)?);
        }
        let rects = (0..).zip(&self.0);
        let parts = rects.map(|(at, rect)| Ok(cut(&map.f_narrow(0, at, 1)?, rect)?));
        Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The adjoint of [`Part::of`]: a map of `size` that is zero around the rectangles.
    pub(super) fn adjoint(&self, part: &Tensor, size: &[i64]) -> Result<Tensor> {
        let &[_, _, height, width] = size else {
            bail!(Internal, "a part of a map of shape {size:?}");
        };
        let pad = |part: &Tensor, r: &Rect| {
            let around = [r.x, width - r.x - r.width, r.y, height - r.y - r.height];
            part.f_constant_pad_nd(around)
        };
        if let Some(rect) = self.all_alike() {
            return Ok(pad(part, &rect)?);
        }
        let rects = (0..).zip(&self.0);
        let maps = rects.map(|(at, rect)| Ok(pad(&part.f_narrow(0, at, 1)?, rect)?));
        Ok(Tensor::f_cat(&maps.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// What every block of a decoder has to compute for windows of its image.
pub(super) struct Plan {
    /// How many blocks see whole maps.
    pub head: usize,
    /// Per block the part of what comes in that it sees, or that it computes where it attends; `None`
    /// for all of it. Behind the last block: the windows in what it computes.
    pub parts: Vec<Option<Part>>,
}

impl Plan {
    /// For `windows` of one size in the image of `map` (height, width) latent pixels. Every block gets
    /// what the blocks behind it need and not more: the maps shrink on their way to the image, so even
    /// the whole receptive field costs little where maps are large. `halo`: at most so many latent
    /// pixels around the window, whatever the receptive field.
    pub(super) fn new(
        blocks: &[&dyn Block],
        map: (i64, i64),
        windows: &[Rect],
        halo: Option<i64>,
    ) -> Plan {
        // Pixels per latent pixel: in front of every block and behind the last.
        let mut scales = vec![1];
        for block in blocks {
            let scale = scales[scales.len() - 1];
            scales.push(match block.reach() {
                Reach::Near { scale: more, .. } => scale * more,
                Reach::Whole | Reach::Attends => scale,
            });
        }
        let most: Option<Vec<Rect>> = halo.map(|halo| {
            let around = |window: &Rect| grown(&shrunk(window, scales[blocks.len()]), halo);
            windows.iter().map(around).collect()
        });
        let (mut head, mut attends) = (0, false);
        // What is seen of the map in front of a block, last block first.
        let mut seen = vec![windows.to_vec()];
        for (at, block) in blocks.iter().enumerate().rev() {
            let Reach::Near { margin, scale } = block.reach() else {
                (head, attends) = (at + 1, block.reach() == Reach::Attends);
                break;
            };
            let size = (map.0 * scales[at], map.1 * scales[at]);
            let needed = seen[seen.len() - 1]
                .iter()
                .enumerate()
                .map(|(row, wanted)| {
                    let all = common(&shrunk(&grown(wanted, margin), scale), &whole(size));
                    match &most {
                        None => all,
                        Some(most) => {
                            let within = common(&all, &times(&most[row], scales[at]));
                            hull(&within, &shrunk(wanted, scale))
                        }
                    }
                });
            let needed = alike(needed.collect(), size);
            seen.push(needed);
        }
        seen.reverse();
        let mut parts: Vec<Option<Part>> = vec![None; blocks.len() + 1];
        for at in 1..seen.len() {
            // What the block before computes is what it saw, enlarged.
            let scale = scales[head + at] / scales[head + at - 1];
            let inside = seen[at].iter().zip(&seen[at - 1]);
            let inside = inside.map(|(rect, of)| Rect {
                x: rect.x - of.x * scale,
                y: rect.y - of.y * scale,
                ..*rect
            });
            parts[head + at] = Some(Part(inside.collect()));
        }
        parts[head - usize::from(attends)] = Some(Part(seen.swap_remove(0)));
        Plan { head, parts }
    }
}

/// Windows of one size, whole latent pixels, that hold `windows` of an image of `map` latent pixels, or
/// as much of them as there is of the image.
pub(super) fn rounded(windows: &[Rect], map: (i64, i64), scale: i64) -> Vec<Rect> {
    let on_map = windows.iter().map(|window| {
        let rect = shrunk(window, scale);
        // A window beside the picture becomes the pixel that is nearest to it.
        let place = |from: i64, length: i64, most: i64| {
            let first = from.clamp(0, most - 1);
            (first, (from + length).clamp(first + 1, most) - first)
        };
        let (x, width) = place(rect.x, rect.width, map.1);
        let (y, height) = place(rect.y, rect.height, map.0);
        Rect {
            x,
            y,
            width,
            height,
        }
    });
    let same = alike(on_map.collect(), map);
    same.iter().map(|rect| times(rect, scale)).collect()
}

fn whole((height, width): (i64, i64)) -> Rect {
    let (x, y) = (0, 0);
    Rect {
        x,
        y,
        width,
        height,
    }
}

fn grown(r: &Rect, margin: i64) -> Rect {
    Rect {
        x: r.x - margin,
        y: r.y - margin,
        width: r.width + 2 * margin,
        height: r.height + 2 * margin,
    }
}

fn times(r: &Rect, scale: i64) -> Rect {
    Rect {
        x: r.x * scale,
        y: r.y * scale,
        width: r.width * scale,
        height: r.height * scale,
    }
}

/// Every pixel of a map `scale` times smaller that `r` touches.
fn shrunk(r: &Rect, scale: i64) -> Rect {
    let (x, y) = (r.x.div_euclid(scale), r.y.div_euclid(scale));
    let up = |end: i64| (end + scale - 1).div_euclid(scale);
    Rect {
        x,
        y,
        width: up(r.x + r.width) - x,
        height: up(r.y + r.height) - y,
    }
}

fn between(x: (i64, i64), y: (i64, i64)) -> Rect {
    Rect {
        x: x.0,
        y: y.0,
        width: x.1 - x.0,
        height: y.1 - y.0,
    }
}

fn common(a: &Rect, b: &Rect) -> Rect {
    between(
        (a.x.max(b.x), (a.x + a.width).min(b.x + b.width)),
        (a.y.max(b.y), (a.y + a.height).min(b.y + b.height)),
    )
}

fn hull(a: &Rect, b: &Rect) -> Rect {
    between(
        (a.x.min(b.x), (a.x + a.width).max(b.x + b.width)),
        (a.y.min(b.y), (a.y + a.height).max(b.y + b.height)),
    )
}

/// The rectangles grown to the size of the largest, moved into a map of (height, width) where they
/// would leave it.
fn alike(rects: Vec<Rect>, map: (i64, i64)) -> Vec<Rect> {
    let width = rects.iter().map(|r| r.width).max().unwrap_or(0);
    let height = rects.iter().map(|r| r.height).max().unwrap_or(0);
    let place = |from: i64, length: i64, all: i64, most: i64| {
        (from - (all - length) / 2).clamp(0, most - all)
    };
    let moved = rects.iter().map(|r| Rect {
        x: place(r.x, r.width, width, map.1),
        y: place(r.y, r.height, height, map.0),
        width,
        height,
    });
    moved.collect()
}
