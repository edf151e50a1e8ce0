//! The loss on images against the same chain in PyTorch, and its rules about what counts.

use crate::common::{Tensors, bound, cosine, device, fixture, numbers, randn, relative};
use facegrad::align::Alignment;
use facegrad::batch::{Located, Outcome, Report, Targets};
use facegrad::config::{BackboneConfig, DetectorConfig, LossConfig, parse};
use facegrad::detect::Detector;
use facegrad::face::{FacePlace, Landmarks};
use facegrad::graph::Graph;
use facegrad::loss::Loss;
use facegrad::loss::node::face_loss;
use facegrad::nets::{Levels, Recogniser};
use facegrad::pipeline::Pipeline;
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};

fn recogniser() -> Recogniser {
    let json = format!(r#"{{"path": {:?}}}"#, fixture("nets/small.safetensors"));
    let config: BackboneConfig = parse("test", &json).unwrap();
    Recogniser::load(&config, device()).unwrap()
}

fn loss_with(json: &str, detector: bool) -> Loss {
    let config = LossConfig::parse(json).unwrap();
    let detector = detector.then(|| {
        let path = fixture("detect/detector_9.onnx");
        let json = format!(r#"{{"path": {path:?}, "engine": "torch", "det_sizes": [64]}}"#);
        let config: DetectorConfig = parse("test", &json).unwrap();
        Arc::new(Mutex::new(Detector::new(&config, device()).unwrap()))
    });
    let recogniser = recogniser();
    let pipeline = Pipeline {
        detector,
        levels: Levels::new(config.levels.as_ref(), &recogniser).unwrap(),
        recogniser: Arc::new(Mutex::new(recogniser)),
        align_mode: config.face_align_mode,
        choice: config.face_choice,
        index: config.face_index,
        is_score: config.is_score(),
    };
    Loss::new(config, pipeline)
}

const KPS: &str = r#"{"face_align_mode": "kps"}"#;

fn known(rows: &[f64]) -> Vec<FacePlace> {
    rows.chunks(10)
        .map(|row| FacePlace {
            bbox: None,
            landmarks: Some(std::array::from_fn(|i| [row[2 * i], row[2 * i + 1]]) as Landmarks),
        })
        .collect()
}

/// The fixture's batch of three.
fn chain() -> (Tensors, Targets) {
    let chain = Tensors::open("chain/chain.safetensors");
    let targets = Targets {
        references: Some(chain.get("references")),
        faces: known(&chain.numbers("landmarks")),
        reference_faces: known(&chain.numbers("reference_landmarks")),
        weights: chain.numbers("weights"),
        ..Targets::default()
    };
    (chain, targets)
}

#[test]
fn value_and_gradient_are_pytorchs() {
    let (chain, targets) = chain();
    let images = chain.get("images");
    let (report, gradient) = loss_with(KPS, false)
        .evaluate(&images, &targets, true)
        .unwrap();
    let want = chain.numbers("loss")[0];
    assert!(
        (report.loss - want).abs() <= bound::value(1e-5) * want,
        "{} for {want}",
        report.loss
    );
    let error = relative(&gradient.unwrap(), &chain.get("gradient"));
    assert!(error <= bound::gradient(1e-5), "gradient off by {error:e}");
    for (sample, want) in report.samples.iter().zip(chain.numbers("similarity")) {
        assert!((sample.similarity - want).abs() <= bound::value(1e-5));
        assert_eq!(
            (sample.located, sample.alignment),
            (Located::Given, Alignment::Kps)
        );
    }
}

#[test]
fn a_score_is_near_the_loss_and_has_no_gradient() {
    let (chain, targets) = chain();
    let images = chain.get("images");
    let mut score = loss_with(r#"{"face_loss_type": "non_differentiable"}"#, false);
    let (report, gradient) = score.evaluate(&images, &targets, false).unwrap();
    let want = chain.numbers("loss")[0];
    // Pixels and crops are rounded to 8 bits.
    assert!(gradient.is_none() && report.loss != want);
    assert!((report.loss - want).abs() <= 0.02 * want, "{}", report.loss);
    assert!(
        report
            .samples
            .iter()
            .all(|sample| sample.alignment == Alignment::Kps)
    );
    let error = score.evaluate(&images, &targets, true).unwrap_err();
    assert!(
        error
            .message()
            .contains("a score without a gradient; expected NULL"),
        "{error}"
    );
    let mut graph = Graph::new();
    let node = graph.input(images, true);
    let shared = Arc::new(Mutex::new(score));
    assert!(face_loss(&mut graph, node, &shared, &targets).is_err());
    let several = r#"{"face_loss_type": "non_differentiable", "levels": {"layer1": 1}}"#;
    let error = LossConfig::parse(several).unwrap_err();
    assert!(error.message().contains("embeddings alone"), "{error}");
}

#[test]
fn the_gradient_is_the_finite_difference() {
    let (chain, targets) = chain();
    let images = chain.get("images");
    let mut loss = loss_with(KPS, false);
    let (_, gradient) = loss.evaluate(&images, &targets, true).unwrap();
    let gradient = gradient.unwrap();
    // Along the gradient itself the change is largest, and so is the precision.
    let step = gradient.f_div(&gradient.f_norm().unwrap()).unwrap();
    let mut at = |by: f64| {
        let moved = images.f_add(&step.f_mul_scalar(by).unwrap()).unwrap();
        loss.evaluate(&moved, &targets, false).unwrap().0.loss
    };
    let difference = (at(0.01) - at(-0.01)) / 0.02;
    let norm = gradient.f_norm().unwrap().f_double_value(&[]).unwrap();
    assert!(
        (difference - norm).abs() <= 2e-3 * norm,
        "{difference} for {norm}"
    );
}

#[test]
fn the_graph_and_the_fused_call_agree() {
    let (chain, targets) = chain();
    let images = chain.get("images");
    let mut loss = loss_with(KPS, false);
    let (report, fused) = loss.evaluate(&images, &targets, true).unwrap();
    let loss = Arc::new(Mutex::new(loss));
    let mut graph = Graph::new();
    let input = graph.input(images, true);
    let (node, same) = face_loss(&mut graph, input, &loss, &targets).unwrap();
    assert_eq!(same.counted(), report.counted());
    assert!((same.loss - report.loss).abs() <= bound::value(0.0) * report.loss);
    assert_eq!(
        graph.value(node).unwrap().f_double_value(&[]).unwrap() as f32,
        same.loss as f32
    );
    graph.backward(node, None).unwrap();
    let whole = graph.gradient(input).unwrap();
    assert!(relative(&whole, &fused.unwrap()) <= bound::gradient(0.0));
    let half = Tensor::f_full([], 0.5, (Kind::Float, device())).unwrap();
    graph.backward(node, Some(half)).unwrap();
    let doubled = graph.gradient(input).unwrap().f_mul_scalar(2.0).unwrap();
    assert!(relative(&doubled, &whole) <= bound::gradient(0.0));
}

#[test]
fn what_is_gated_counts_nothing_and_has_no_gradient() {
    let (chain, mut targets) = chain();
    let images = chain.get("images");
    targets.data_types = ["person", "person_hair", "person_head"]
        .map(String::from)
        .to_vec();
    let (report, gradient) = loss_with(KPS, false)
        .evaluate(&images, &targets, true)
        .unwrap();
    let outcomes: Vec<Outcome> = report.samples.iter().map(|s| s.outcome).collect();
    assert_eq!(
        outcomes,
        [Outcome::Counted, Outcome::DataType, Outcome::Counted]
    );
    let similarity = chain.numbers("similarity");
    let want = 0.1 * ((1.0 - similarity[0]) + 2.0 * (1.0 - similarity[2])) / 2.0;
    assert!((report.loss - want).abs() <= bound::value(1e-5) * want);
    let rows = numbers(
        &gradient
            .unwrap()
            .f_abs()
            .unwrap()
            .f_flatten(1, -1)
            .unwrap()
            .f_sum_dim_intlist([1i64].as_slice(), false, None)
            .unwrap(),
    );
    assert!(rows[0] > 0.0 && rows[1] == 0.0 && rows[2] > 0.0, "{rows:?}");

    // All out: nothing, and no error.
    targets.data_types = vec!["landscape".into(); 3];
    let (report, gradient) = loss_with(KPS, false)
        .evaluate(&images, &targets, true)
        .unwrap();
    assert_eq!(
        (report.loss, report.mean_distance, report.counted()),
        (0.0, 0.0, 0)
    );
    assert_eq!(
        numbers(&gradient.unwrap())
            .iter()
            .filter(|g| **g != 0.0)
            .count(),
        0
    );

    let off = r#"{"use_face_loss": false, "face_align_mode": "kps"}"#;
    let (report, _) = loss_with(off, false)
        .evaluate(&images, &targets, true)
        .unwrap();
    assert!(
        report
            .samples
            .iter()
            .all(|s| s.outcome == Outcome::Disabled)
    );
}

#[test]
fn a_sample_that_is_not_finite_is_dropped_and_the_others_stay() {
    let (chain, targets) = chain();
    let images = chain.get("images");
    let _ = images.f_select(0, 1).unwrap().f_fill_(f64::NAN).unwrap();
    let (report, gradient) = loss_with(KPS, false)
        .evaluate(&images, &targets, true)
        .unwrap();
    assert_eq!(report.samples[1].outcome, Outcome::NonFinite);
    assert_eq!(report.counted(), 2);
    let gradient = gradient.unwrap();
    let scale = 3.0 / 2.0;
    for row in [0, 2] {
        let want = chain
            .get("gradient")
            .f_select(0, row)
            .unwrap()
            .f_mul_scalar(scale)
            .unwrap();
        assert!(relative(&gradient.f_select(0, row).unwrap(), &want) <= bound::gradient(1e-5));
    }
    assert!(
        numbers(&gradient.f_select(0, 1).unwrap())
            .iter()
            .all(|g| *g == 0.0)
    );
}

#[test]
fn low_precision_images_get_gradients_of_their_own_dtype() {
    let (chain, targets) = chain();
    for kind in [Kind::Half, Kind::BFloat16] {
        let images = chain.get("images").f_to_kind(kind).unwrap();
        let (_, gradient) = loss_with(KPS, false)
            .evaluate(&images, &targets, true)
            .unwrap();
        let gradient = gradient.unwrap();
        assert_eq!(gradient.kind(), kind);
        assert!(
            cosine(&gradient, &chain.get("gradient")) >= 0.99,
            "{kind:?}"
        );
    }
}

#[test]
fn references_by_id_by_batch_and_cached_are_the_same() {
    let (chain, targets) = chain();
    let (images, references) = (chain.get("images"), chain.get("references"));
    let mut loss = loss_with(KPS, false);
    let (want, _) = loss.evaluate(&images, &targets, false).unwrap();
    for row in 0..3usize {
        let one = references.f_narrow(0, row as i64, 1).unwrap();
        loss.set_reference(
            &format!("id{row}"),
            &one,
            &targets.reference_faces[row..=row],
        )
        .unwrap();
    }
    let by_id = Targets {
        reference_ids: (0..3).map(|row| Some(format!("id{row}"))).collect(),
        faces: targets.faces.clone(),
        weights: targets.weights.clone(),
        ..Targets::default()
    };
    let (report, _) = loss.evaluate(&images, &by_id, false).unwrap();
    assert!((report.loss - want.loss).abs() <= bound::value(1e-6));
    let (again, _) = loss.evaluate(&images, &targets, false).unwrap();
    let same = (again.loss - want.loss).abs() <= bound::value(0.0) * want.loss;
    assert!(same, "a cached reference changes nothing");

    assert!(loss.remove_reference("id0") && !loss.remove_reference("id0"));
    let error = loss.evaluate(&images, &by_id, false).unwrap_err();
    assert!(
        error.message().contains("\"id0\" was not registered"),
        "{error}"
    );
    // Two images of one person: the mean is as near to both.
    let used = loss
        .set_reference("both", &references, &targets.reference_faces)
        .unwrap();
    assert_eq!(used, 3);
}

#[test]
fn a_target_ends_the_push() {
    let (chain, mut targets) = chain();
    targets.weights.clear();
    let images = chain.get("images");
    let lowest = chain
        .numbers("similarity")
        .into_iter()
        .fold(f64::MAX, f64::min);
    let json = format!(
        r#"{{"face_align_mode": "kps", "target_similarity": {}}}"#,
        lowest - 0.01
    );
    let (report, gradient) = loss_with(&json, false)
        .evaluate(&images, &targets, true)
        .unwrap();
    assert_eq!(report.counted(), 3);
    assert!(numbers(&gradient.unwrap()).iter().all(|g| *g == 0.0));
}

#[test]
fn where_no_face_is_found_is_reported() {
    let (chain, _) = chain();
    let images = chain.get("images");
    let black = images.f_zeros_like().unwrap();
    // The synthetic detector sees faces in noise and none in black.
    let targets = |references: &Tensor| Targets {
        references: Some(references.shallow_clone()),
        ..Targets::default()
    };
    let mut loss = loss_with(KPS, true);
    let seen = |report: &Report| report.samples.iter().map(|s| s.outcome).collect::<Vec<_>>();
    let noise = randn(1, &[3, 3, 96, 80]).f_sigmoid().unwrap();
    let (report, _) = loss.evaluate(&noise, &targets(&black), true).unwrap();
    assert_eq!(seen(&report), [Outcome::NoReferenceFace; 3]);
    let (report, gradient) = loss.evaluate(&black, &targets(&noise), true).unwrap();
    assert_eq!(seen(&report), [Outcome::NoFace; 3]);
    assert_eq!(report.loss, 0.0);
    assert!(numbers(&gradient.unwrap()).iter().all(|g| *g == 0.0));
    // Landmarks of the reference take the place of detection.
    for mode in ["reference", "detect_or_reference"] {
        let json = format!(r#"{{"face_align_mode": "kps", "landmarks": "{mode}"}}"#);
        let (report, _) = loss_with(&json, true)
            .evaluate(&black, &targets(&noise), true)
            .unwrap();
        assert!(
            report
                .samples
                .iter()
                .all(|s| s.located == Located::Reference),
            "{mode}"
        );
    }
}

#[test]
fn a_face_without_usable_landmarks_falls_back_to_its_box() {
    let (chain, mut targets) = chain();
    for face in &mut targets.faces {
        face.landmarks = None;
        face.bbox = Some([10.0, 10.0, 70.0, 80.0]);
    }
    let mut images = chain.get("images");
    let (report, _) = loss_with(KPS, false)
        .evaluate(&images, &targets, true)
        .unwrap();
    assert!(
        report
            .samples
            .iter()
            .all(|s| s.alignment == Alignment::BboxFallback)
    );
    targets.faces[0].bbox = Some([10.0, 10.0, 10.0, 10.0]);
    let (report, _) = loss_with(KPS, false)
        .evaluate(&images, &targets, true)
        .unwrap();
    assert_eq!(report.samples[0].outcome, Outcome::Degenerate);
    images = images.f_narrow(0, 0, 0).unwrap();
    let none = Targets::default();
    let (report, gradient) = loss_with(KPS, false)
        .evaluate(&images, &none, true)
        .unwrap();
    assert_eq!((report.samples.len(), gradient.unwrap().size()[0]), (0, 0));
}

#[test]
fn wrong_targets_are_refused_before_any_work() {
    let (chain, good) = chain();
    let images = chain.get("images");
    let mut loss = loss_with(KPS, false);
    let mut refused = |change: &dyn Fn(&mut Targets), words: &str| {
        let (_, mut targets) = self::chain();
        change(&mut targets);
        let error = loss.evaluate(&images, &targets, true).unwrap_err();
        assert!(error.message().contains(words), "{error}");
    };
    refused(
        &|t| {
            t.references = None;
            t.reference_faces.clear();
        },
        "has no reference",
    );
    refused(
        &|t| t.data_types = vec!["person".into()],
        "data_types: expected 3",
    );
    refused(&|t| t.weights = vec![1.0, -1.0, 1.0], "sample_weights[1]");
    refused(&|t| t.faces.truncate(2), "expected 3 entries");
    refused(&|t| t.faces.clear(), "no detector");
    assert!(
        loss.evaluate(&images, &good, true).is_ok(),
        "the next correct call works"
    );
    assert!(
        LossConfig::parse(r#"{"face_loss_wieght": 0.1}"#)
            .unwrap_err()
            .message()
            .contains("face_loss_weight")
    );
    assert!(LossConfig::parse(r#"{"face_loss_weight": -1}"#).is_err());
    assert!(LossConfig::parse(r#"{"target_similarity": 2}"#).is_err());
}
