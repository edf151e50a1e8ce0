//! Decodes the outputs of an SCRFD network to faces.

use crate::config::DetectionSize;
use crate::error::{Result, bail};
use crate::face::Face;
use crate::weights::onnx::Model;

/// One output of the network: rows of 1 (score), 4 (box) or 10 (landmarks) numbers.
pub struct Output {
    /// Numbers of a row.
    pub width: usize,
    /// The rows, one after the other.
    pub values: Vec<f32>,
}

/// What the outputs of a model mean.
pub struct Layout {
    strides: Vec<i64>,
    anchors: usize,
    points: bool,
}

impl Layout {
    /// By the number of outputs (`scrfd.py`, lines 120-137): 6 or 9 are three strides with two anchors,
    /// 10 or 15 five strides with one; 9 and 15 have points.
    pub fn of(model: &Model) -> Result<Layout> {
        let (levels, anchors, points) = match model.outputs.len() {
            6 => (3, 2, false),
            9 => (3, 2, true),
            10 => (5, 1, false),
            15 => (5, 1, true),
            other => bail!(
                Weights,
                "expected an SCRFD detector with 6, 9, 10 or 15 outputs, the model has {other}; InsightFace's \
                 are det_10g.onnx, det_2.5g.onnx, det_500m.onnx, scrfd_*.onnx"
            ),
        };
        if model.inputs.len() != 1 {
            bail!(
                Weights,
                "expected one input, the model has {}",
                model.inputs.len()
            );
        }
        Ok(Layout {
            strides: (0..levels).map(|level| 8 << level).collect(),
            anchors,
            points,
        })
    }
}

/// The faces with a score above `threshold`, in pixels of the original image.
pub fn decode(
    layout: &Layout,
    outputs: &[Output],
    size: DetectionSize,
    scale: f64,
    threshold: f64,
) -> Result<Vec<Face>> {
    let scores = level_order(outputs, 1);
    let boxes = level_order(outputs, 4);
    let points = level_order(outputs, 10);
    let levels = layout.strides.len();
    let expected = if layout.points { levels } else { 0 };
    if scores.len() != levels || boxes.len() != levels || points.len() != expected {
        bail!(
            Weights,
            "expected {levels} outputs of scores, {levels} of boxes and {expected} of points, got {}, {} and {}",
            scores.len(),
            boxes.len(),
            points.len()
        );
    }
    let mut faces = vec![];
    for (level, &stride) in layout.strides.iter().enumerate() {
        let cells = |pixels: u32| (i64::from(pixels) as usize).div_ceil(stride as usize);
        let (lines, cells) = (cells(size.height), cells(size.width));
        let rows = lines * cells * layout.anchors;
        let point_rows = points.get(level).map_or(rows, |p| p.len() / 10);
        if scores[level].len() != rows || boxes[level].len() != rows * 4 || point_rows != rows {
            bail!(
                Weights,
                "stride {stride} at size {size}: expected {rows} rows, got {} scores, {} boxes, {point_rows} points",
                scores[level].len(),
                boxes[level].len() / 4
            );
        }
        for (row, &score) in scores[level].iter().enumerate() {
            if f64::from(score) < threshold || !score.is_finite() {
                continue;
            }
            let cell = row / layout.anchors;
            // Anchors stand on the corners of the cells, without half a stride.
            let step = stride as f64;
            let (x, y) = ((cell % cells) as f64 * step, (cell / cells) as f64 * step);
            let at = |values: &[f32], i: usize| f64::from(values[i]) * step;
            let b = &boxes[level][row * 4..row * 4 + 4];
            let bbox = [x - at(b, 0), y - at(b, 1), x + at(b, 2), y + at(b, 3)];
            let landmarks = points.get(level).map(|points| {
                let p = &points[row * 10..row * 10 + 10];
                std::array::from_fn(|i| {
                    [(x + at(p, 2 * i)) / scale, (y + at(p, 2 * i + 1)) / scale]
                })
            });
            faces.push(Face {
                bbox: bbox.map(|v| v / scale),
                score: f64::from(score),
                landmarks,
            });
        }
    }
    faces.retain(|face| {
        let points = face.landmarks.iter().flatten().flatten();
        face.bbox.iter().chain(points).all(|v| v.is_finite())
    });
    Ok(faces)
}

/// The outputs whose rows are `width` wide, the finest level (most rows) first.
fn level_order(outputs: &[Output], width: usize) -> Vec<&[f32]> {
    let mut found: Vec<&[f32]> = outputs
        .iter()
        .filter(|output| output.width == width)
        .map(|output| output.values.as_slice())
        .collect();
    found.sort_by_key(|values| std::cmp::Reverse(values.len()));
    found
}
