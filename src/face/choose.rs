//! Which of several faces a sample is about.

use super::Face;
use crate::config::FaceChoice;

/// The index of the chosen face; `None` where there is none, or no `index`-th by score. The image is
/// `width`×`height` pixels.
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
}
