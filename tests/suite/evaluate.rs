//! The evaluator against insightface's FaceAnalysis, and what it compares.

use crate::common::{Tensors, bound, data, device, fixture, max_abs, numbers, onnxruntime, row};
use facegrad::align::{Border, Crop, align_pixels};
use facegrad::batch::{Located, Outcome, Targets};
use facegrad::config::{EvaluatorConfig, parse};
use facegrad::error::Result;
use facegrad::face::{FacePlace, kps_transform};
use facegrad::score::Evaluator;
use facegrad::tensor::pixels;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// An evaluator over the models of `pack` with further keys of its detector and of itself.
fn evaluator(pack: &str, detector: Value, own: Value) -> Result<Evaluator> {
    let names = match pack {
        "buffalo_l" => ["det_10g.onnx", "w600k_r50.onnx"],
        _ => ["det_500m.onnx", "w600k_mbf.onnx"],
    };
    let file = |name: &str| fixture(&format!("evaluate/models/{pack}/{name}"));
    let mut config = json!({"detector": {"path": file(names[0])}, "recogniser": file(names[1])});
    for (target, keys) in [("/detector", detector), ("", own)] {
        let target = config.pointer_mut(target).unwrap().as_object_mut().unwrap();
        target.extend(keys.as_object().unwrap().clone());
    }
    let config: EvaluatorConfig = parse("test", &config.to_string())?;
    Evaluator::new(config, device())
}

fn torch(detector: Value, own: Value) -> Evaluator {
    let merged = |mut keys: Value| {
        keys["engine"] = json!("torch");
        keys
    };
    evaluator("buffalo_sc", merged(detector), merged(own)).unwrap()
}

#[test]
fn photographs_give_insightfaces_faces_and_embeddings() {
    if data("models/det_500m.onnx").is_none() {
        return;
    }
    let expected = Tensors::open("evaluate/insightface.safetensors");
    let photos = Tensors::open("detect/insightface.safetensors");
    for (engine, pack) in [
        ("ort", "buffalo_sc"),
        ("torch", "buffalo_sc"),
        ("ort", "buffalo_l"),
        ("torch", "buffalo_l"),
    ] {
        let mut keys = json!({"engine": engine});
        if engine == "ort" {
            keys["onnxruntime"] = json!(onnxruntime());
        }
        for (label, sizes) in [
            ("320", vec![320]),
            ("640", vec![640]),
            ("128+640", vec![128, 640]),
        ] {
            let mut detector = keys.clone();
            detector["det_sizes"] = json!(sizes);
            let mut evaluator = evaluator(pack, detector, keys.clone()).unwrap();
            let width = 15 + evaluator.recogniser().dim() as usize;
            let mut seen = 0;
            for name in photos.names().into_iter().filter(|n| !n.contains('/')) {
                let what = format!("{pack}/{name}/{label}");
                let rows = expected.numbers(&what);
                let faces = evaluator.faces(&photos.get(name), true).unwrap().remove(0);
                assert_eq!(faces.len(), rows.len() / width, "{what} {engine}");
                for (found, row) in faces.iter().zip(rows.chunks(width)) {
                    let off = (0..4).map(|i| (found.face.bbox[i] - row[i]).abs());
                    assert!(off.fold(0.0, f64::max) <= 0.5, "{what} {engine}: box");
                    assert!((found.face.score - row[4]).abs() <= 2e-3, "{what} {engine}");
                    let embedding = found.embedding.as_ref().unwrap();
                    let cosine: f64 = embedding
                        .iter()
                        .zip(&row[15..])
                        .map(|(a, b)| f64::from(*a) * b)
                        .sum();
                    assert!(cosine >= 0.9995, "{what} {engine}: cosine {cosine}");
                    seen += 1;
                }
            }
            assert!(seen >= 9, "{pack} {label}: {seen} faces");
        }
    }
}

#[test]
fn crops_are_norm_crops() {
    let expected = Tensors::open("align/align.safetensors");
    let image = expected.get("image").f_div_scalar(255.0).unwrap();
    let picture = pixels(&image).unwrap().remove(0).unwrap();
    for size in [112, 128, 224] {
        let want = numbers(&expected.get(&format!("norm_crop_{size}")));
        let mut made = vec![];
        for row in expected.numbers("landmarks").chunks(10) {
            let points = std::array::from_fn(|i| [row[2 * i], row[2 * i + 1]]);
            let crop = Crop {
                sample: 0,
                transform: kps_transform(&points, size).unwrap(),
                border: Border::Zeros,
            };
            made.extend(align_pixels(&picture, &crop, size));
        }
        let total: f64 = made
            .iter()
            .zip(&want)
            .map(|(a, b)| (f64::from(*a) - b).abs())
            .sum();
        let mean = total / want.len() as f64;
        assert!(mean <= 1.0, "size {size}: mean difference {mean} of 255");
    }
}

#[test]
fn bytes_and_floats_are_the_same_picture() {
    let mut evaluator = synthetic();
    let image = Tensors::open("detect/synthetic.safetensors").get("image");
    let bytes = image.f_mul_scalar(255.0).unwrap().f_round().unwrap();
    let bytes = bytes.f_to_kind(Kind::Uint8).unwrap();
    let of = |evaluator: &mut Evaluator, image: &Tensor| {
        let faces = evaluator.faces(image, true).unwrap().remove(0);
        let embeddings = faces.into_iter().map(|f| f.embedding.unwrap());
        embeddings.collect::<Vec<_>>().concat()
    };
    let (floats, bytes) = (of(&mut evaluator, &image), of(&mut evaluator, &bytes));
    assert!(floats.len() > 2 * evaluator.recogniser().dim() as usize);
    assert!(max_abs(&row(&floats), &row(&bytes)) <= bound::value(0.0));
}

/// A detector that finds faces in noise and a small recogniser: works without any real model.
fn synthetic() -> Evaluator {
    let config = json!({
        "detector": {"path": fixture("detect/detector_9.onnx"), "det_sizes": [128], "engine": "torch"},
        "recogniser": fixture("nets/small.onnx"),
        "engine": "torch",
    });
    Evaluator::new(parse("test", &config.to_string()).unwrap(), device()).unwrap()
}

#[test]
fn a_picture_that_is_not_finite_has_no_faces_and_says_so() {
    let mut evaluator = synthetic();
    let image = Tensors::open("detect/synthetic.safetensors").get("image");
    let nan = image.f_add_scalar(f64::NAN).unwrap();
    assert!(evaluator.faces(&nan, true).unwrap()[0].is_empty());
    let targets = Targets {
        references: Some(image.shallow_clone()),
        ..Targets::default()
    };
    let report = evaluator.compare(&nan, &targets).unwrap();
    assert_eq!(report.samples[0].outcome, Outcome::NonFinite);
    assert_eq!((report.loss, report.counted()), (0.0, 0));
    let report = evaluator.compare(&image, &targets).unwrap();
    assert!((report.samples[0].similarity - 1.0).abs() < bound::value(1e-6));
    let swapped = Targets {
        references: Some(nan),
        ..Targets::default()
    };
    let report = evaluator.compare(&image, &swapped).unwrap();
    assert_eq!(report.samples[0].outcome, Outcome::NoReferenceFace);
}

#[test]
fn retries_find_the_face_that_fills_the_frame() {
    if data("models/det_500m.onnx").is_none() {
        return;
    }
    let close_up = Tensors::open("detect/insightface.safetensors").get("A_dad_1");
    let size = close_up.size();
    let found = |keys: Value| {
        let faces = torch(keys, json!({})).faces(&close_up, false).unwrap();
        faces[0].iter().map(|f| f.face.clone()).collect::<Vec<_>>()
    };
    assert!(found(json!({})).is_empty());
    let smaller = found(json!({"retry_sizes": [320, 128]}));
    let padded = found(json!({"retry_padding": 0.5}));
    assert_eq!((smaller.len(), padded.len()), (1, 1));
    for (a, b) in smaller[0].bbox.iter().zip(&padded[0].bbox) {
        // The same face in the picture's own pixels.
        assert!(
            (a - b).abs() < 0.1 * size[2] as f64,
            "{smaller:?} {padded:?}"
        );
    }
    assert!(found(json!({"retry_sizes": [320], "min_size": 1000})).is_empty());
}

#[test]
fn people_are_compared_by_image_by_id_and_by_place() {
    if data("models/det_500m.onnx").is_none() {
        return;
    }
    let photos = Tensors::open("detect/insightface.safetensors");
    let obama = photos.get("C_obama_1");
    let mut similarity = vec![];
    for pooling in ["centroid", "mean", "max"] {
        let mut evaluator = torch(json!({}), json!({"pooling": pooling}));
        let other = photos.get("C_obama_2");
        let targets = Targets {
            references: Some(other.shallow_clone()),
            ..Targets::default()
        };
        let by_image = evaluator.compare(&obama, &targets).unwrap();
        assert_eq!(by_image.samples[0].located, Located::Detected);
        assert_eq!(evaluator.register("one", &other, &[]).unwrap(), 1);
        let by_id = |id: &str| Targets {
            reference_ids: vec![Some(id.to_string())],
            ..Targets::default()
        };
        let one = evaluator.compare(&obama, &by_id("one")).unwrap();
        assert!((one.mean_distance - by_image.mean_distance).abs() < bound::value(1e-6));
        // The same picture and its mirror image are two references of one person.
        let both = Tensor::f_cat(&[&other, &other.f_flip([3]).unwrap()], 0).unwrap();
        assert_eq!(evaluator.register("two", &both, &[]).unwrap(), 2);
        similarity.push(evaluator.compare(&obama, &by_id("two")).unwrap().samples[0].similarity);
        assert!(evaluator.remove("two") && !evaluator.remove("two"));
        let error = evaluator.compare(&obama, &by_id("two")).unwrap_err();
        assert!(error.message().contains("not registered"), "{error}");
    }
    let [centroid, mean, max] = similarity[..] else {
        panic!()
    };
    assert!(
        max > mean && centroid > mean && mean > 0.4,
        "{similarity:?}"
    );

    // The couple: the nearest face to a point, and both people at once.
    let mut evaluator = torch(json!({}), json!({}));
    let couple = photos.get("multi2_couple");
    let faces = evaluator.faces(&couple, false).unwrap().remove(0);
    for found in &faces {
        let known = FacePlace {
            bbox: Some(found.face.bbox),
            landmarks: None,
        };
        let targets = Targets {
            references: Some(obama.shallow_clone()),
            faces: vec![known],
            ..Targets::default()
        };
        let report = evaluator.compare(&couple, &targets).unwrap();
        assert_eq!(report.samples[0].bbox, Some(found.face.bbox));
    }
    for (id, found) in ["first", "second"].iter().zip(&faces) {
        let known = FacePlace::from(&found.face);
        evaluator.register(id, &couple, &[known]).unwrap();
    }
    let ids = ["second", "first", "first"].map(String::from);
    let report = evaluator.find(&couple, &ids).unwrap();
    let boxes: Vec<_> = report.samples.iter().map(|s| s.bbox).collect();
    assert_eq!(boxes[0], Some(faces[1].face.bbox));
    // Two of three get the two faces; who is left over has none.
    assert_eq!(report.counted(), 2);
    assert!(report.samples[0].similarity > 0.999);
    assert_eq!(
        report
            .samples
            .iter()
            .filter(|s| s.outcome == Outcome::NoFace)
            .count(),
        1
    );
}

#[test]
fn engines_and_providers_that_are_not_there_are_errors() {
    let config = |keys: Value| {
        let mut config = json!({
            "detector": fixture("detect/detector_9.onnx"), "recogniser": fixture("nets/small.onnx"),
        });
        let target = config.as_object_mut().unwrap();
        target.extend(keys.as_object().unwrap().clone());
        config
    };
    let says = |config: Value, status: i32, words: &str| {
        let error = parse::<EvaluatorConfig>("evaluator config", &config.to_string())
            .and_then(|config| Evaluator::new(config, device()))
            .err()
            .unwrap();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains(words), "{error}");
    };
    let library = onnxruntime();
    let missing = json!({"providers": ["cuda", "cpu"], "onnxruntime": library});
    says(
        config(missing),
        202,
        "CUDAExecutionProvider is not in this ONNX Runtime",
    );
    let torch = json!({"engine": "torch", "providers": ["cpu"]});
    says(config(torch), 8, "leave one of them out");
    let unknown = json!({"providers": ["cudo"]});
    says(config(unknown), 8, "did you mean `cuda`?");
    says(
        json!({"detector": "a.onnx"}),
        8,
        "expected `detector` and `recogniser`",
    );
    let mut weights = config(json!({"engine": "ort", "onnxruntime": library}));
    weights["recogniser"] = json!(fixture("nets/small.pth"));
    says(weights, 8, "ONNX Runtime runs ONNX files alone");
    let cpu = json!({"providers": ["cpu"], "onnxruntime": library, "engine": "ort"});
    let evaluator =
        Evaluator::new(parse("test", &config(cpu).to_string()).unwrap(), device()).unwrap();
    assert!(
        evaluator
            .detector()
            .description()
            .contains("providers [Cpu]")
    );
}

#[test]
fn a_batch_baked_into_the_file_is_no_obstacle() {
    let embed = |name: &str, engine: &str| {
        let mut keys = json!({
            "detector": {"path": fixture("detect/detector_9.onnx"), "det_sizes": [128], "engine": "torch"},
            "recogniser": fixture(name), "engine": engine,
        });
        if engine == "ort" {
            keys["onnxruntime"] = json!(onnxruntime());
        }
        let config = parse("test", &keys.to_string()).unwrap();
        let image = Tensors::open("detect/synthetic.safetensors").get("image");
        let faces = Evaluator::new(config, device())
            .unwrap()
            .faces(&image, true)
            .unwrap();
        let rows: Vec<f32> = faces[0]
            .iter()
            .flat_map(|f| f.embedding.clone().unwrap())
            .collect();
        row(&rows)
    };
    let want = embed("nets/small.onnx", "torch");
    for (name, engine) in [
        ("nets/small_single.onnx", "torch"),
        ("nets/small.onnx", "ort"),
        ("nets/small_single.onnx", "ort"),
    ] {
        let error = max_abs(&embed(name, engine), &want);
        assert!(
            error < bound::value(1e-4),
            "{name} {engine}: off by {error}"
        );
    }
}
