//! Steps that decode no more than the faces.

use super::case::*;
use crate::common::{bound, cosine, device, fixture, numbers, randn, relative};
use facegrad::batch::{Decoded, Report, Targets};
use facegrad::config::{VaeConfig, parse};
use facegrad::face::FacePlace;
use facegrad::log::set_sink;
use facegrad::nets::vae::Decoder;
use facegrad::step::Step;
use serde_json::json;
use std::sync::Arc;

fn decoded(report: &Report) -> Vec<Decoded> {
    report.samples.iter().map(|s| s.decoded).collect()
}

/// Where windows need no statistics, or have those of the same step, the loss is that of whole images; the
/// gradient too, but for what flows through the statistics.
#[test]
fn windows_give_the_loss_of_whole_images() {
    for (name, exact) in [
        ("tiny", true),
        ("flux2_patches", false),
        ("flux_tokens", false),
        ("diptych", false),
    ] {
        let case = Case::named(name);
        for policy in [
            json!({}),
            json!({"recompute": "blocks"}),
            json!({"slicing": true}),
        ] {
            let config = case.with(json!({"decode": "window_only", "norm_stats": "exact"}));
            let (report, gradient) = case.run(&config, policy.clone());
            let want = numbers(&case.get("loss"))[0];
            assert!(
                (report.loss / want - 1.0).abs() <= bound::value(1e-5),
                "{name} {policy}"
            );
            assert_eq!(decoded(&report), [Decoded::WindowExact; 3]);
            assert_eq!(report.exact_passes(), if exact { 0 } else { 3 });
            let want = case.get("gradient");
            if exact {
                let error = relative(&gradient, &want);
                assert!(error <= bound::gradient(1e-5), "{name} {policy}: {error}");
            } else {
                let same = cosine(&gradient, &want);
                println!("{name}: {same}");
                assert!(same >= 0.98, "{name} {policy}: {same}");
            }
        }
    }
}

#[test]
fn faces_at_borders_beside_and_around_the_picture_are_those_of_whole_images() {
    let case = Case::named("tiny");
    let face = |scale: f64, x: f64, y: f64| FacePlace {
        bbox: None,
        landmarks: Some(
            facegrad::face::template(112).map(|p| [p[0] * scale + x, p[1] * scale + y]),
        ),
    };
    let boxed = |bbox: [f64; 4]| FacePlace {
        bbox: Some(bbox),
        landmarks: None,
    };
    for (mode, faces) in [
        (
            "kps",
            [
                face(0.3, -15.0, -20.0),
                face(0.3, 65.0, 80.0),
                face(0.4, 20.0, 20.0),
            ],
        ),
        (
            "kps",
            [
                face(9.0, -400.0, -400.0),
                face(0.5, 300.0, 10.0),
                face(0.01, 40.0, 50.0),
            ],
        ),
        (
            "bbox",
            [
                boxed([-20.0, -30.0, 30.0, 20.0]),
                boxed([60.0, 70.0, 99.0, 130.0]),
                boxed([30.0, 30.0, 31.0, 31.0]),
            ],
        ),
        (
            "bbox",
            [
                boxed([-500.0, -500.0, 900.0, 900.0]),
                boxed([-90.0, 20.0, -50.0, 60.0]),
                boxed([0.0, 0.0, 80.0, 96.0]),
            ],
        ),
    ] {
        let run = |decode: &str| {
            let config = case.with(json!({"decode": decode, "face_align_mode": mode}));
            let mut targets = Targets {
                faces: faces.to_vec(),
                ..case.targets()
            };
            for reference in &mut targets.reference_faces {
                reference.bbox = Some([10.0, 10.0, 70.0, 80.0]);
            }
            let vae = case.vae(json!({}));
            loss(&config, &vae)
                .step(&case.step(), &targets, true)
                .unwrap()
        };
        let ((want, want_gradient), (got, gradient)) = (run("full"), run("window"));
        let (want_gradient, gradient) = (want_gradient.unwrap(), gradient.unwrap());
        for (row, (a, b)) in got.samples.iter().zip(&want.samples).enumerate() {
            assert_eq!(a.outcome, b.outcome, "{mode} {row}");
            assert!(
                (a.similarity - b.similarity).abs() <= bound::value(1e-5),
                "{mode} {row}"
            );
        }
        assert_eq!(want.counted(), 3);
        let error = relative(&gradient, &want_gradient);
        assert!(error <= bound::gradient(1e-4), "{mode}: {error}");
    }
}

/// The reference's landmarks are those of another image size.
#[test]
fn windows_follow_references_of_any_size() {
    let case = Case::named("tiny");
    let run = |decode: &str| {
        let config = case.with(json!({"decode": decode, "landmarks": "reference"}));
        let targets = case.targets();
        let references = targets.references.as_ref().unwrap();
        let doubled = |known: &FacePlace| FacePlace {
            bbox: None,
            landmarks: known
                .landmarks
                .map(|l| l.map(|p| [2.0 * p[0] + 0.5, 2.0 * p[1] + 0.5])),
        };
        let targets = Targets {
            references: Some(references.upsample_bilinear2d([192, 160], false, None, None)),
            reference_faces: targets.reference_faces.iter().map(doubled).collect(),
            faces: vec![],
            ..targets
        };
        loss(&config, &case.vae(json!({})))
            .step(&case.step(), &targets, true)
            .unwrap()
    };
    let ((want, want_gradient), (got, gradient)) = (run("full"), run("window_only"));
    assert_eq!(got.counted(), 3);
    assert!((got.loss / want.loss - 1.0).abs() <= bound::value(1e-5));
    assert!(relative(&gradient.unwrap(), &want_gradient.unwrap()) <= bound::gradient(1e-5));
}

#[test]
fn statistics_are_remembered_by_sample_and_noise() {
    let case = Case::named("flow");
    // The whole receptive field, so that statistics of the same step make the same gradient.
    let policy = json!({"decode": "window", "norm_stats": "cached", "norm_stats_refresh": 2, "window_halo": 64});
    let mut loss = loss(&case.with(policy), &case.vae(json!({})));
    let mut run = |times: [f64; 3], change: &dyn Fn(&mut Targets)| {
        let mut targets = case.targets();
        change(&mut targets);
        let at = Step {
            times: times.to_vec(),
            ..case.step()
        };
        let (report, gradient) = loss.step(&at, &targets, true).unwrap();
        let gradient = gradient.unwrap();
        (
            decoded(&report),
            report.exact_passes(),
            report.loss,
            gradient,
        )
    };
    let (exact, cached) = (Decoded::WindowExact, Decoded::WindowCached);
    let same = &|_: &mut Targets| {};
    // The last is above the limit.
    let times = [0.2, 0.4, 0.8];
    let first = run(times, same);
    assert_eq!((first.0, first.1), (vec![exact; 3], 3));
    for _ in 0..2 {
        let (how, passes, value, gradient) = run(times, same);
        assert_eq!((how, passes), (vec![cached, cached, exact], 1));
        assert!((value / first.2 - 1.0).abs() <= bound::value(1e-6));
        assert!(relative(&gradient, &first.3) <= bound::gradient(1e-5));
    }
    // Used up.
    assert_eq!(run(times, same).0, [exact; 3]);
    // A near noise level serves, a far one does not.
    assert_eq!(run([0.25, 0.25, 0.8], same).0, [cached, exact, exact]);
    // Between 0.25 and 0.4.
    assert_eq!(run([0.8, 0.32, 0.8], same).0, [exact, cached, exact]);
    // Where the noise is high, only the mean of several serves.
    for (level, how) in [
        (0.56, exact),
        (0.58, exact),
        (0.6, exact),
        (0.62, exact),
        (0.59, cached),
    ] {
        assert_eq!(run([level, 0.8, 0.8], same).0, [how, exact, exact]);
    }
    // Another picture is another sample, unless it has the same name.
    let other = |targets: &mut Targets| {
        targets.references = targets.references.as_ref().map(|r| r * 0.99);
    };
    assert_eq!(run([0.21, 0.4, 0.8], &other).0, [exact; 3]);
    let named = |targets: &mut Targets| {
        targets.sample_ids = ["a", "b", "c"].map(|id| Some(id.to_string())).to_vec();
    };
    assert_eq!(run(times, &named).0, [exact; 3]);
    let both = |targets: &mut Targets| {
        other(targets);
        named(targets);
    };
    assert_eq!(run(times, &both).0, [cached, cached, exact]);
}

#[test]
fn what_cannot_be_remembered_is_exact_or_an_error() {
    let case = Case::named("flow");
    let targets = || Targets {
        reference_ids: vec![Some("anna".to_string()); 3],
        ..case.targets()
    };
    let vae = case.vae(json!({}));
    let run = |norm_stats: &str| {
        let policy = json!({"decode": "window", "norm_stats": norm_stats});
        let mut loss = loss(&case.with(policy), &vae);
        let given = case.targets();
        let images = given.references.unwrap();
        let faces = &given.reference_faces;

        loss.loss()
            .lock()
            .unwrap()
            .set_reference("anna", &images, faces)
            .unwrap();
        let _first = loss.step(&case.step(), &targets(), true)?;
        loss.step(&case.step(), &targets(), true)
            .map(|(report, _)| report)
    };
    let report = run("auto").unwrap();
    assert_eq!(
        (decoded(&report), report.exact_passes()),
        (vec![Decoded::WindowExact; 3], 3)
    );
    let report = run("window").unwrap();
    assert_eq!(
        (decoded(&report), report.exact_passes()),
        (vec![Decoded::Window; 3], 0)
    );
    let error = run("cached").unwrap_err();
    assert!(error.to_string().contains("sample_ids"), "{error}");
}

#[test]
fn audits_compare_with_whole_images_and_turn_back_to_them() {
    let case = Case::named("flow");
    let policy = json!({"decode": "window", "norm_stats": "window", "audit_every": 2, "audit_cosine": 0.99999});
    let mut loss = loss(&case.with(policy), &case.vae(json!({})));
    let mut run = |number: u64| {
        let at = Step {
            number,
            ..case.step()
        };
        loss.step(&at, &case.targets(), true).unwrap()
    };
    let (report, _) = run(1);
    assert_eq!(decoded(&report), [Decoded::Window; 3]);
    assert!(report.worst_audit().is_none());
    // The step that audits has the exact loss and gradient.
    let (report, gradient) = run(2);
    let want = numbers(&case.get("loss"))[0];
    assert!((report.loss / want - 1.0).abs() <= bound::value(1e-5));
    assert!(relative(&gradient.unwrap(), &case.get("gradient")) <= bound::gradient(1e-5));
    let audit = report.worst_audit().unwrap();
    println!("{audit:?}");
    assert!(audit.cosine < 0.99999 && audit.cosine > 0.3 && audit.norm_ratio > 0.3);
    assert!(report.samples.iter().all(|s| s.audit.is_some()));
    // Statistics of the windows are given up, then windows.
    assert_eq!(decoded(&run(3).0), [Decoded::WindowExact; 3]);
    let better = run(4).0.worst_audit().unwrap();
    assert!(better.cosine > audit.cosine, "{better:?}");
    assert_eq!(decoded(&run(5).0), [Decoded::Full; 3]);

    // What agrees stays.
    let tiny = Case::named("tiny");
    let agreeing =
        tiny.with(json!({"decode": "window", "audit_every": 1, "audit_cosine": 0.99999}));
    let mut loss = self::loss(&agreeing, &tiny.vae(json!({})));
    for _ in 0..2 {
        let (report, _) = loss.step(&tiny.step(), &tiny.targets(), true).unwrap();
        assert_eq!(decoded(&report), [Decoded::WindowExact; 3]);
        let audit = report.worst_audit().unwrap();
        assert!(audit.cosine > 0.99999 && (audit.norm_ratio - 1.0).abs() < bound::gradient(1e-4));
    }
}

#[test]
fn torchscript_is_decoded_whole_or_refused() {
    let case = Case::named("tiny");
    let config: VaeConfig = parse(
        "test",
        &json!({
            "path": fixture("decoders/taef1.torchscript.pt"),
            "family": "torchscript",
            "latent_channels": 16,
        })
        .to_string(),
    )
    .unwrap();
    let vae = shared(Decoder::load(&config, device()).unwrap());
    let lines = shared(vec![]);
    let sink = lines.clone();
    let keep = move |_: facegrad::log::Level, text: &str| {
        if text.contains("TorchScript") {
            sink.lock().unwrap().push(text.to_string());
        }
    };
    let _alone = lock_log();
    set_sink(Some((facegrad::log::Level::Info, Arc::new(keep))));
    let at = || Step {
        prediction: randn(1, &[3, 16, 12, 10]),
        ..case.step()
    };
    let with = |decode: &str| case.with(json!({"decode": decode, "latent_format": "none"}));
    let mut window = loss(&with("window"), &vae);
    for _ in 0..2 {
        let (report, _) = window.step(&at(), &case.targets(), true).unwrap();
        assert_eq!(decoded(&report), [Decoded::Full; 3]);
    }
    set_sink(None);
    assert_eq!(lines.lock().unwrap().len(), 1);
    let mut only = loss(&with("window_only"), &vae);
    let error = only.step(&at(), &case.targets(), true).unwrap_err();
    assert!(error.to_string().contains("TorchScript"), "{error}");
}
