//! Which part of its input every block of a decoder computes for windows of the image.

use super::block::{Block, ReceptiveField};
use super::regions::Regions;
use crate::config::Rect;

/// What every block of a decoder computes for windows of its image.
pub(super) struct WindowPlan {
    /// How many blocks, from the first, see whole maps.
    pub head: usize,
    /// Per block the regions of its input that it sees, or of its output that it computes where it attends; `None`:
    /// all of it. One more entry after the last block: the windows in its output.
    pub regions: Vec<Option<Regions>>,
}

/// The first blocks of a decoder, which see whole maps whatever the windows are.
pub(super) struct Head {
    blocks: usize,
    /// Whether the last of them computes only a region of its output.
    attends: bool,
}

impl Head {
    pub(super) fn of(blocks: &[&dyn Block]) -> Head {
        let far =
            |block: &&dyn Block| !matches!(block.receptive_field(), ReceptiveField::Near { .. });
        match blocks.iter().rposition(far) {
            None => Head {
                blocks: 0,
                attends: false,
            },
            Some(last) => Head {
                blocks: last + 1,
                attends: blocks[last].receptive_field() == ReceptiveField::Attends,
            },
        }
    }

    /// How many of them also compute their whole output.
    pub(super) fn whole(&self) -> usize {
        self.blocks - usize::from(self.attends)
    }
}

impl WindowPlan {
    /// The plan for `windows` of one size in the image of `map` (height, width) latent pixels. Every block computes
    /// only what the blocks after it need. The margins shrink towards the image, so even the whole receptive field
    /// costs little where maps are large. `halo`: the most latent pixels that are computed around a window,
    /// whatever the receptive field.
    pub(super) fn new(
        blocks: &[&dyn Block],
        map: (i64, i64),
        windows: &[Rect],
        halo: Option<i64>,
    ) -> WindowPlan {
        // Pixels per latent pixel: before every block and after the last.
        let mut scales = vec![1];
        for block in blocks {
            let scale = scales[scales.len() - 1];
            scales.push(match block.receptive_field() {
                ReceptiveField::Near { scale: more, .. } => scale * more,
                ReceptiveField::Whole | ReceptiveField::Attends => scale,
            });
        }
        let most: Option<Vec<Rect>> = halo.map(|halo| {
            let around = |window: &Rect| grown(&shrunk(window, scales[blocks.len()]), halo);
            windows.iter().map(around).collect()
        });
        let head = Head::of(blocks);
        // The regions of the map before a block that are needed, last block first.
        let mut seen = vec![windows.to_vec()];
        for (at, block) in blocks.iter().enumerate().rev() {
            let ReceptiveField::Near { margin, scale } = block.receptive_field() else {
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
            let needed = one_size(needed.collect(), size);
            seen.push(needed);
        }
        seen.reverse();
        let mut regions: Vec<Option<Regions>> = vec![None; blocks.len() + 1];
        for at in 1..seen.len() {
            // The output of the block before is what it saw, enlarged.
            let scale = scales[head.blocks + at] / scales[head.blocks + at - 1];
            let inside = seen[at].iter().zip(&seen[at - 1]);
            let inside = inside.map(|(rect, of)| Rect {
                x: rect.x - of.x * scale,
                y: rect.y - of.y * scale,
                ..*rect
            });
            regions[head.blocks + at] = Some(Regions(inside.collect()));
        }
        regions[head.whole()] = Some(Regions(seen.swap_remove(0)));
        WindowPlan {
            head: head.blocks,
            regions,
        }
    }
}

/// The smallest windows of one size, on the grid of latent pixels, that contain `windows` of an image of `map`
/// (height, width) latent pixels, as far as they lie in the image.
pub(super) fn rounded(windows: &[Rect], map: (i64, i64), scale: i64) -> Vec<Rect> {
    let on_map = windows.iter().map(|window| {
        let rect = shrunk(window, scale);
        // A window outside the image becomes the nearest latent pixel.
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
    let same = one_size(on_map.collect(), map);
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

/// The pixels of a map `scale` times smaller that `r` touches.
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

/// The rectangles, enlarged to the size of the largest and moved into a map of (height, width) where they would leave
/// it.
fn one_size(rects: Vec<Rect>, map: (i64, i64)) -> Vec<Rect> {
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
