//! Detection and alignment against insightface, cv2 and PyTorch.

use crate::common::{
    Tensors, bound, data, device, fixture, max_abs, norm, numbers, onnxruntime, randn,
};
use facegrad::align::{Border, Crop, align};
use facegrad::config::{DetectorConfig, Engine, parse};
use facegrad::detect::Detector;
use facegrad::error::Result;
use facegrad::face::{Face, Landmarks, bbox_transform, kps_transform};
use facegrad::tensor::vjp;
use std::path::Path;
use tch::{Kind, Tensor};

fn detector(path: &Path, engine: Engine, sizes: &[u32]) -> Result<Detector> {
    let mut config: DetectorConfig = parse("test", &format!(r#"{{"path": {path:?}}}"#)).unwrap();
    config.engine = engine;
    config.onnxruntime = (engine != Engine::Torch).then(onnxruntime);
    if !sizes.is_empty() {
        config.det_sizes = sizes.iter().map(|&side| side.into()).collect();
    }
    Detector::new(&config, device())
}

/// Rows of x1, y1, x2, y2, score and ten coordinates, within the bounds: boxes and landmarks 0.5 px,
/// scores 2e-3. Every row needs its face; faces of nearly equal score may come in another order.
fn compare(what: &str, faces: &[Face], rows: &[f64]) {
    assert_eq!(faces.len(), rows.len() / 15, "{what}: number of faces");
    assert!(
        faces.is_sorted_by(|a, b| a.score >= b.score),
        "{what}: order"
    );
    let distance = |face: &Face, row: &[f64]| {
        let points = face.landmarks.iter().flatten().flatten();
        let pairs = face
            .bbox
            .iter()
            .chain(points)
            .zip(row[..4].iter().chain(&row[5..]));
        let pixels = pairs
            .map(|(got, want)| (got - want).abs())
            .fold(0.0, f64::max);
        (pixels / 0.5).max((face.score - row[4]).abs() / 2e-3)
    };
    for row in rows.chunks(15) {
        let nearest = faces
            .iter()
            .map(|face| distance(face, row))
            .fold(f64::MAX, f64::min);
        assert!(
            nearest <= 1.0,
            "{what}: {nearest} times the bound from {row:?}"
        );
    }
}

#[test]
fn every_scrfd_interface_decodes_as_insightface_does() {
    let expected = Tensors::open("detect/synthetic.safetensors");
    let image = expected.get("image");
    let mut seen = 0;
    for name in expected.names().into_iter().filter(|name| *name != "image") {
        let sizes: &[u32] = if name.contains("fixed") { &[] } else { &[128] };
        for engine in [Engine::Ort, Engine::Torch] {
            let path = fixture(&format!("detect/{name}.onnx"));
            let mut detector = detector(&path, engine, sizes).unwrap();
            let faces = detector.detect(&image).unwrap().remove(0);
            compare(
                &format!("{name} {engine:?}"),
                &faces,
                &expected.numbers(name),
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 14);
}

#[test]
fn photographs_give_insightfaces_faces() {
    let Some(path) = data("models/det_500m.onnx") else {
        return;
    };
    let expected = Tensors::open("detect/insightface.safetensors");
    for engine in [Engine::Ort, Engine::Torch] {
        for size in [128, 320, 640] {
            let mut detector = detector(&path, engine, &[size]).unwrap();
            for name in expected
                .names()
                .into_iter()
                .filter(|name| !name.contains('/'))
            {
                let faces = detector.detect(&expected.get(name)).unwrap().remove(0);
                let key = format!("{name}/{size}");
                compare(
                    &format!("{key} {engine:?}"),
                    &faces,
                    &expected.numbers(&key),
                );
            }
        }
    }
}

#[test]
fn photographs_give_the_golden_faces_and_a_list_of_sizes_finds_the_close_up() {
    let Some(path) = data("models/det_500m.onnx") else {
        return;
    };
    let (photos, golden) = (
        Tensors::open("detect/insightface.safetensors"),
        Tensors::open("golden/detections.safetensors"),
    );
    let mut one = detector(&path, Engine::Torch, &[640]).unwrap();
    for name in golden.names() {
        let faces = one.detect(&photos.get(name)).unwrap().remove(0);
        compare(name, &faces, &golden.numbers(name));
    }
    // The face that fills the frame is found at a small size only, and the merge finds it.
    let close_up = photos.get("A_dad_1");
    assert!(one.detect(&close_up).unwrap()[0].is_empty());
    let mut both = detector(&path, Engine::Torch, &[128, 640]).unwrap();
    assert_eq!(both.detect(&close_up).unwrap()[0].len(), 1);
    assert_eq!(
        both.detect(&photos.get("multi2_couple")).unwrap()[0].len(),
        2
    );
    assert!(both.detect(&photos.get("noface_cat")).unwrap()[0].is_empty());
}

#[test]
fn odd_pictures_have_no_faces_and_do_no_harm() {
    let path = fixture("detect/detector_9.onnx");
    let mut detector = detector(&path, Engine::Torch, &[64]).unwrap();
    let image = |h: i64, w: i64| Tensor::f_zeros([1, 3, h, w], (Kind::Float, device())).unwrap();
    detector.detect(&image(1, 1)).unwrap();
    detector.detect(&image(1, 3000)).unwrap();
    detector.detect(&image(3000, 1)).unwrap();
    let nan = image(8, 8).f_add_scalar(f64::NAN).unwrap();
    assert!(detector.detect(&nan).unwrap()[0].is_empty());
    assert!(
        detector
            .detect(&image(8, 8).f_narrow(0, 0, 0).unwrap())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn wrong_detectors_say_so() {
    let says = |result: Result<Detector>, status: i32, words: &str| {
        let error = result.err().unwrap();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains(words), "{error}");
    };
    let scrfd = fixture("detect/detector_9.onnx");
    says(
        detector(&fixture("nets/small.onnx"), Engine::Torch, &[]),
        103,
        "6, 9, 10 or 15 outputs",
    );
    says(
        detector(&fixture("nets/small.pth"), Engine::Torch, &[]),
        101,
        "expected an ONNX model",
    );
    says(
        detector(&scrfd, Engine::Torch, &[100]),
        8,
        "multiples of 32",
    );
    says(
        detector(
            &fixture("detect/detector_9_fixed.onnx"),
            Engine::Torch,
            &[640, 128],
        ),
        8,
        "fixed to 128x128",
    );
}

#[test]
fn crops_are_insightfaces() {
    let expected = Tensors::open("align/align.safetensors");
    let image = expected.get("image");
    let places: Vec<Landmarks> = expected
        .numbers("landmarks")
        .chunks(10)
        .map(|row| std::array::from_fn(|i| [row[2 * i], row[2 * i + 1]]))
        .collect();
    for size in [112, 128, 224] {
        let crops: Vec<Crop> = places
            .iter()
            .map(|place| Crop {
                sample: 0,
                transform: kps_transform(place, size).unwrap(),
                border: Border::Zeros,
            })
            .collect();
        let made = align(&image, &crops, size).unwrap();
        let want = numbers(&expected.get(&format!("norm_crop_{size}")));
        let total: f64 = numbers(&made)
            .iter()
            .zip(&want)
            .map(|(a, b)| (a - b).abs())
            .sum();
        let mean = total / want.len() as f64;
        assert!(mean <= 1.0, "size {size}: mean difference {mean} of 255");
    }
}

#[test]
fn square_crops_are_pad_and_resize() {
    let expected = Tensors::open("align/align.safetensors");
    let crops: Vec<Crop> = expected
        .numbers("boxes")
        .chunks(4)
        .map(|b| Crop {
            sample: 0,
            transform: bbox_transform(&[b[0], b[1], b[2], b[3]], 112).unwrap(),
            border: Border::Reflect,
        })
        .collect();
    let made = align(&expected.get("image"), &crops, 112).unwrap();
    // At the crop's own edge F.interpolate repeats its last pixel; the library has the image to go on.
    let inner = |x: &Tensor| x.f_narrow(2, 6, 100).unwrap().f_narrow(3, 6, 100).unwrap();
    let error = max_abs(&inner(&made), &inner(&expected.get("bbox_crops")));
    assert!(error <= 0.02, "off by {error} of 255");
}

#[test]
fn the_gradient_of_a_crop_is_its_finite_difference() {
    let crops = [
        (1, Border::Zeros),
        (0, Border::Reflect),
        (1, Border::Reflect),
    ]
    .map(|(sample, border)| Crop {
        sample,
        transform: [[0.7, 0.2, -2.0], [-0.2, 0.7, 3.0]],
        border,
    });
    let direction = randn(2, &[3, 3, 16, 16]);
    let leaf = randn(3, &[2, 3, 20, 24]).f_set_requires_grad(true).unwrap();
    let made = align(&leaf, &crops, 16).unwrap();
    let gradient = vjp(&made, &[&leaf], &direction, false).unwrap().remove(0);
    // Sampling is linear in the image, so any step is exact up to rounding.
    let along = randn(4, &[2, 3, 20, 24]);
    let change = align(&along, &crops, 16)
        .unwrap()
        .f_mul(&direction)
        .unwrap();
    let want: f64 = numbers(&change).iter().sum();
    let got: f64 = numbers(&gradient.f_mul(&along).unwrap()).iter().sum();
    let scale = norm(&gradient) * norm(&along);
    assert!(
        (got - want).abs() <= bound::gradient(1e-6) * scale,
        "{got} for {want}"
    );
}
