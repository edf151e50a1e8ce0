//! The affine map from a face in an image to the square that a recogniser sees. All maps go from image pixels to crop
//! pixels, with pixel centres at integers on both sides.

use super::{Affine, Landmarks};

/// Where the five points lie in a 112×112 crop: `arcface_dst` of insightface `utils/face_align.py`.
const TEMPLATE: Landmarks = [
    [38.2946, 51.6963],
    [73.5318, 51.5014],
    [56.0252, 71.7366],
    [41.5493, 92.3655],
    [70.7299, 92.2041],
];

/// The template for a crop of `size` pixels. It is scaled by `size / 112`; where `size` is a multiple of 128 and not of
/// 112, it is scaled by `size / 128` and moved right by 8 of 128 pixels (`estimate_norm` of insightface).
pub fn template(size: i64) -> Landmarks {
    let wide = size % 112 != 0 && size % 128 == 0;
    let ratio = size as f64 / if wide { 128.0 } else { 112.0 };
    let shift = if wide { 8.0 * ratio } else { 0.0 };
    TEMPLATE.map(|[x, y]| [x * ratio + shift, y * ratio])
}

/// The similarity (rotation, scale, translation; no reflection) that maps landmarks closest to the template in the
/// least-squares sense (Umeyama 1991; in two dimensions it has a closed form). `None` for points that coincide or are
/// not finite.
pub fn kps_transform(landmarks: &Landmarks, size: i64) -> Option<Affine> {
    similarity(landmarks, &template(size))
}

fn similarity(from: &Landmarks, to: &Landmarks) -> Option<Affine> {
    let mean = |points: &Landmarks| -> [f64; 2] {
        std::array::from_fn(|i| points.iter().map(|p| p[i]).sum::<f64>() / 5.0)
    };
    let (mf, mt) = (mean(from), mean(to));
    let (mut dot, mut cross, mut spread) = (0.0, 0.0, 0.0);
    for (f, t) in from.iter().zip(to) {
        let (fx, fy, tx, ty) = (f[0] - mf[0], f[1] - mf[1], t[0] - mt[0], t[1] - mt[1]);
        dot += fx * tx + fy * ty;
        cross += fx * ty - fy * tx;
        spread += fx * fx + fy * fy;
    }
    let (a, b) = (dot / spread, cross / spread);
    let map = [
        [a, -b, mt[0] - a * mf[0] + b * mf[1]],
        [b, a, mt[1] - b * mf[0] - a * mf[1]],
    ];
    usable(map)
}

/// Side of the crop of mode `bbox`, relative to the longer side of the box.
const MARGIN: f64 = 1.2;

/// The map from the square of side 1.2·max(w, h) around the box's centre to a crop of `size` pixels, as a resize with
/// half-pixel centres maps it. `None` for a box without area or with numbers that are not finite.
pub fn bbox_transform(bbox: &[f64; 4], size: i64) -> Option<Affine> {
    let [x1, y1, x2, y2] = *bbox;
    if !(x2 > x1 && y2 > y1) {
        return None;
    }
    let side = MARGIN * (x2 - x1).max(y2 - y1);
    let scale = size as f64 / side;
    let shift = |low: f64, high: f64| (0.5 + side / 2.0 - (low + high) / 2.0) * scale - 0.5;
    usable([[scale, 0.0, shift(x1, x2)], [0.0, scale, shift(y1, y2)]])
}

/// The inverse of a map made by a function of this file.
pub fn invert(map: &Affine) -> Affine {
    let [[a, b, c], [d, e, f]] = *map;
    let det = a * e - b * d;
    [
        [e / det, -b / det, (b * f - c * e) / det],
        [-d / det, a / det, (c * d - a * f) / det],
    ]
}

/// The map, where it can be inverted without losing all precision.
fn usable(map: Affine) -> Option<Affine> {
    let det = map[0][0] * map[1][1] - map[0][1] * map[1][0];
    let finite = map.iter().flatten().all(|v| v.is_finite());
    (finite && det.is_finite() && det > 1e-12).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(map: &Affine, [x, y]: [f64; 2]) -> [f64; 2] {
        std::array::from_fn(|i| map[i][0] * x + map[i][1] * y + map[i][2])
    }

    proptest! {
        #[test]
        fn a_known_similarity_is_recovered(
            angle in -3.1..3.1f64, scale in 0.05..20.0f64, x in -500.0..500.0f64, y in -500.0..500.0f64
        ) {
            let (s, c) = angle.sin_cos();
            let placed = template(112).map(|[px, py]| {
                [scale * (c * px - s * py) + x, scale * (s * px + c * py) + y]
            });
            let map = kps_transform(&placed, 112).unwrap();
            for (point, target) in placed.iter().zip(template(112)) {
                let got = apply(&map, *point);
                prop_assert!((got[0] - target[0]).abs() < 1e-8 && (got[1] - target[1]).abs() < 1e-8);
                let back = apply(&invert(&map), got);
                prop_assert!((back[0] - point[0]).abs() < 1e-7 && (back[1] - point[1]).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn what_spans_no_area_has_no_transform() {
        assert_eq!(kps_transform(&[[3.0, 4.0]; 5], 112), None);
        assert_eq!(kps_transform(&[[f64::NAN, 4.0]; 5], 112), None);
        assert_eq!(bbox_transform(&[5.0, 5.0, 5.0, 9.0], 112), None);
        assert_eq!(bbox_transform(&[5.0, 5.0, f64::INFINITY, 9.0], 112), None);
    }

    #[test]
    fn a_box_fills_the_crop_up_to_its_margin() {
        let map = bbox_transform(&[10.0, 20.0, 110.0, 100.0], 120).unwrap();
        // 1.2 · 100 pixels from x = 0 and y = 0, one to one.
        assert_eq!(apply(&map, [0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(apply(&map, [119.0, 119.0]), [119.0, 119.0]);
    }

    #[test]
    fn sizes_of_128_shift_the_template() {
        assert_eq!(template(224)[0], [76.5892, 103.3926]);
        assert_eq!(template(128)[0], [46.2946, 51.6963]);
    }
}
