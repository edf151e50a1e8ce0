//! The choice of one face among several.

use super::{Face, Landmarks};
use crate::config::FaceChoice;

/// The index of the chosen face. `None` where there is no face, or for [`FaceChoice::Index`] no face of that number by
/// falling score. The image is `width`×`height` pixels.
pub fn choose(
    faces: &[Face],
    choice: FaceChoice,
    index: usize,
    width: f64,
    height: f64,
) -> Option<usize> {
    let best = |value: &dyn Fn(&Face) -> f64| {
        (0..faces.len()).max_by(|&a, &b| {
            value(&faces[a])
                .total_cmp(&value(&faces[b]))
                .then(b.cmp(&a))
        })
    };
    match choice {
        FaceChoice::Score => best(&|face| face.score),
        FaceChoice::Largest => best(&|face| {
            let [x1, y1, x2, y2] = face.bbox;
            (x2 - x1) * (y2 - y1)
        }),
        FaceChoice::Center => best(&|face| {
            let [x1, y1, x2, y2] = face.bbox;
            -((x1 + x2 - width).powi(2) + (y1 + y2 - height).powi(2))
        }),
        FaceChoice::Index => {
            let mut order: Vec<usize> = (0..faces.len()).collect();
            order.sort_by(|&a, &b| faces[b].score.total_cmp(&faces[a].score));
            order.get(index).copied()
        }
    }
}

/// The index of the face whose middle is nearest to the point `[x, y]`; `None` where there is no face.
pub fn nearest(faces: &[Face], point: [f64; 2]) -> Option<usize> {
    let distance = |face: &Face| {
        let [x, y] = middle(face.landmarks.as_ref(), Some(&face.bbox)).unwrap_or_default();
        (x - point[0]).powi(2) + (y - point[1]).powi(2)
    };
    (0..faces.len()).min_by(|&a, &b| distance(&faces[a]).total_cmp(&distance(&faces[b])))
}

/// The middle of a face's landmarks, or of its box where it has none.
pub fn middle(landmarks: Option<&Landmarks>, bbox: Option<&[f64; 4]>) -> Option<[f64; 2]> {
    if let Some(points) = landmarks {
        return Some(std::array::from_fn(|i| {
            points.iter().map(|p| p[i]).sum::<f64>() / 5.0
        }));
    }
    bbox.map(|[x1, y1, x2, y2]| [(x1 + x2) / 2.0, (y1 + y2) / 2.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_finds_its_face() {
        let face = |bbox: [f64; 4], score| Face {
            bbox,
            score,
            landmarks: None,
        };
        let faces = [
            face([0., 0., 60., 60.], 0.6),
            face([45., 45., 55., 55.], 0.7),
            face([80., 80., 95., 95.], 0.9),
        ];
        let pick = |choice, index| choose(&faces, choice, index, 100., 100.);
        assert_eq!(pick(FaceChoice::Score, 0), Some(2));
        assert_eq!(pick(FaceChoice::Largest, 0), Some(0));
        assert_eq!(pick(FaceChoice::Center, 0), Some(1));
        assert_eq!(pick(FaceChoice::Index, 1), Some(1));
        assert_eq!(pick(FaceChoice::Index, 3), None);
        assert_eq!(choose(&[], FaceChoice::Score, 0, 1., 1.), None);
    }

    #[test]
    fn the_nearest_face_is_found_by_points_or_by_its_box() {
        let at = |x: f64, landmarks: bool| Face {
            bbox: [x - 5.0, -5.0, x + 5.0, 5.0],
            score: 0.9,
            landmarks: landmarks.then_some([[x, 0.0]; 5]),
        };
        let faces = [at(0.0, true), at(40.0, false), at(90.0, true)];
        assert_eq!(nearest(&faces, [30.0, 1.0]), Some(1));
        assert_eq!(nearest(&faces, [70.0, 1.0]), Some(2));
        assert_eq!(nearest(&[], [0.0; 2]), None);
    }
}
