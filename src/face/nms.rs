//! Greedy non-maximum suppression.

use super::Face;

/// Keeps the box with the highest score among boxes that overlap by more than `threshold` (intersection over union).
/// The result is ordered by falling score. Widths and heights count both end pixels (+1), as in insightface
/// `model_zoo/scrfd.py`.
pub fn nms(mut faces: Vec<Face>, threshold: f64) -> Vec<Face> {
    faces.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Face> = vec![];
    for face in faces {
        if kept
            .iter()
            .all(|k| overlap(&k.bbox, &face.bbox) <= threshold)
        {
            kept.push(face);
        }
    }
    kept
}

fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let area = |b: &[f64; 4]| (b[2] - b[0] + 1.0) * (b[3] - b[1] + 1.0);
    let width = (a[2].min(b[2]) - a[0].max(b[0]) + 1.0).max(0.0);
    let height = (a[3].min(b[3]) - a[1].max(b[1]) + 1.0).max(0.0);
    let common = width * height;
    common / (area(a) + area(b) - common)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn face(x: f64, y: f64, side: f64, score: f64) -> Face {
        Face {
            bbox: [x, y, x + side, y + side],
            score,
            landmarks: None,
        }
    }

    #[test]
    fn the_weaker_of_two_overlapping_goes() {
        let kept = nms(
            vec![
                face(0., 0., 10., 0.6),
                face(1., 1., 10., 0.9),
                face(40., 40., 10., 0.7),
            ],
            0.4,
        );
        assert_eq!(kept.iter().map(|f| f.score).collect::<Vec<_>>(), [0.9, 0.7]);
    }

    proptest! {
        #[test]
        fn doing_it_twice_changes_nothing(
            raw in prop::collection::vec((0.0..100.0f64, 0.0..100.0f64, 1.0..40.0f64, 0.0..1.0f64), 0..40)
        ) {
            let once = nms(raw.iter().map(|r| face(r.0, r.1, r.2, r.3)).collect(), 0.4);
            prop_assert_eq!(&nms(once.clone(), 0.4), &once);
        }
    }
}
