//! The fused step against the same chain in PyTorch and diffusers, finite differences, and its rules
//! about what counts.
#![cfg(feature = "torch")]

mod common;

use common::{Tensors, cosine, fixture, numbers, relative};
use facegrad::config::{BackboneConfig, LossConfig, VaeConfig, parse};
use facegrad::error::Result;
use facegrad::log::set_sink;
use facegrad::loss::{Decoded, Known, Loss, Outcome, Pipeline, Report, Step, Targets, step};
use facegrad::nets::Recogniser;
use facegrad::nets::vae::Decoder;
use facegrad::shared::Shared;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor};

fn shared<T>(value: T) -> Shared<T> {
    Arc::new(Mutex::new(value))
}

fn decoder(name: &str, more: Value) -> Result<Decoder> {
    let mut config =
        json!({ "path": fixture(&format!("step/{name}.safetensors")), "norm_num_groups": 8 });
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let config: VaeConfig = parse("test", &config.to_string())?;
    Decoder::load(&config, Device::Cpu)
}

fn loss(config: &Value) -> Shared<Loss> {
    let config = LossConfig::parse(&config.to_string()).unwrap();
    let json = json!({ "path": fixture("nets/small.safetensors") }).to_string();
    let backbone: BackboneConfig = parse("test", &json).unwrap();
    let pipeline = Pipeline {
        detector: None,
        recogniser: shared(Recogniser::load(&backbone, Device::Cpu).unwrap()),
        align_mode: config.face_align_mode,
        choice: config.face_choice,
        index: config.face_index,
    };
    shared(Loss::new(config, pipeline))
}

fn known(rows: &[f64]) -> Vec<Known> {
    rows.chunks(10)
        .map(|row| Known {
            bbox: None,
            landmarks: Some(std::array::from_fn(|i| [row[2 * i], row[2 * i + 1]])),
        })
        .collect()
}

/// One of the fixture's cases: a configuration, and what PyTorch made of it.
struct Case {
    about: Value,
    tensors: Tensors,
}

impl Case {
    fn all() -> Vec<Value> {
        let text = std::fs::read_to_string(fixture("step/cases.json")).unwrap();
        serde_json::from_str::<Vec<Value>>(&text).unwrap()
    }

    fn named(name: &str) -> Case {
        let about = Case::all().into_iter().find(|c| c["name"] == name).unwrap();
        Case {
            about,
            tensors: Tensors::open("step/steps.safetensors"),
        }
    }

    fn get(&self, name: &str) -> Tensor {
        self.tensors.get(&self.path(name))
    }

    fn optional(&self, name: &str) -> Option<Tensor> {
        self.tensors.has(&self.path(name)).then(|| self.get(name))
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.about["name"].as_str().unwrap())
    }

    fn config(&self) -> Value {
        self.about["config"].clone()
    }

    fn with(&self, more: Value) -> Value {
        let mut config = self.config();
        let keys = config.as_object_mut().unwrap();
        keys.extend(more.as_object().unwrap().clone());
        config
    }

    fn vae(&self, more: Value) -> Shared<Decoder> {
        shared(decoder(self.about["vae"].as_str().unwrap(), more).unwrap())
    }

    fn step(&self) -> Step {
        let pairs = self
            .optional("coefficients")
            .map_or(vec![], |t| numbers(&t));
        let custom = !pairs.is_empty();
        Step {
            x_t: self.optional("x_t"),
            prediction: self.get("prediction"),
            times: if custom {
                vec![]
            } else {
                numbers(&self.get("times"))
            },
            coefficients: pairs.chunks(2).map(|p| (p[0], p[1])).collect(),
            size: self.about["size"]
                .as_array()
                .map(|s| (s[0].as_i64().unwrap(), s[1].as_i64().unwrap())),
            number: 0,
            gradient_norm: None,
        }
    }

    fn targets(&self) -> Targets {
        let chain = Tensors::open("chain/chain.safetensors");
        Targets {
            references: Some(chain.get("references")),
            faces: known(&chain.numbers("landmarks")),
            reference_faces: known(&chain.numbers("reference_landmarks")),
            weights: numbers(&self.get("weights")),
            ..Targets::default()
        }
    }

    fn run(&self, config: &Value, vae: Value) -> (Report, Tensor) {
        let (report, gradient) = step(
            &loss(config),
            &self.vae(vae),
            self.step(),
            self.targets(),
            true,
        )
        .unwrap();
        (report, gradient.unwrap())
    }
}

#[test]
fn every_case_is_pytorchs() {
    for about in Case::all() {
        let name = about["name"].as_str().unwrap();
        let case = Case::named(name);
        let (report, gradient) = case.run(&case.config(), json!({}));
        let want = numbers(&case.get("loss"))[0];
        assert!(
            (report.loss / want - 1.0).abs() <= 1e-5,
            "{name}: {} {want}",
            report.loss
        );
        let error = relative(&gradient, &case.get("gradient"));
        println!("{name}: {error:.1e}");
        assert!(error <= 1e-5, "{name}: {error}");
        assert_eq!(
            report.counted(),
            about["counted"].as_array().unwrap().len(),
            "{name}"
        );
    }
}

#[test]
fn memory_policies_change_nothing() {
    for name in ["flux_tokens", "flux2_patches", "tiny", "window"] {
        let case = Case::named(name);
        let (want, want_gradient) = case.run(&case.config(), json!({}));
        for policy in [
            json!({"recompute": "blocks"}),
            json!({"slicing": true}),
            json!({"recompute": "blocks", "slicing": true}),
        ] {
            let (report, gradient) = case.run(&case.config(), policy.clone());
            assert!(
                (report.loss / want.loss - 1.0).abs() <= 1e-5,
                "{name} {policy}"
            );
            let error = relative(&gradient, &want_gradient);
            assert!(error <= 1e-5, "{name} {policy}: {error}");
            for (a, b) in report.samples.iter().zip(&want.samples) {
                assert_eq!(
                    (a.outcome, a.weight),
                    (b.outcome, b.weight),
                    "{name} {policy}"
                );
            }
        }
    }
}

#[test]
fn the_gradient_has_the_predictions_dtype() {
    let case = Case::named("flow");
    let want = case.get("gradient");
    for kind in [Kind::BFloat16, Kind::Half] {
        let mut low = case.step();
        low.prediction = low.prediction.to_kind(kind);
        low.x_t = low.x_t.map(|x| x.to_kind(kind));
        let vae = case.vae(json!({}));
        let (_, gradient) = step(&loss(&case.config()), &vae, low, case.targets(), true).unwrap();
        let gradient = gradient.unwrap();
        assert_eq!(gradient.kind(), kind);
        assert!(cosine(&gradient, &want) >= 0.99, "{kind:?}");
    }
}

/// Along the gradient's own direction the loss falls as the gradient says.
#[test]
fn finite_differences_agree_for_every_prediction() {
    for about in Case::all() {
        let name = about["name"].as_str().unwrap();
        if about["config"]["clamp"] == "straight_through" {
            continue; // Its gradient is not the value's, by design.
        }
        let case = Case::named(name);
        let (loss, vae) = (loss(&case.config()), case.vae(json!({})));
        let (_, gradient) = step(&loss, &vae, case.step(), case.targets(), true).unwrap();
        let gradient = gradient.unwrap();
        let norm = gradient.norm().double_value(&[]);
        // Long enough to rise above f32's rounding, short enough to be nearly straight.
        let length = 2e-4 / norm;
        let at = |sign: f64| {
            let mut moved = case.step();
            moved.prediction = &moved.prediction + &gradient * (sign * length / norm);
            step(&loss, &vae, moved, case.targets(), false)
                .unwrap()
                .0
                .loss
        };
        let measured = (at(1.0) - at(-1.0)) / (2.0 * length);
        assert!(
            (measured / norm - 1.0).abs() <= 0.02,
            "{name}: {measured} {norm}"
        );
    }
}

#[test]
fn gates_are_per_sample_and_cost_nothing() {
    let case = Case::named("flow");
    let run = |config: Value, number: u64, data_types: &[&str], vae: &Shared<Decoder>| {
        let mut at = case.step();
        at.number = number;
        let targets = Targets {
            data_types: data_types.iter().map(|s| s.to_string()).collect(),
            ..case.targets()
        };
        let (report, gradient) = step(&loss(&config), vae, at, targets, true).unwrap();
        (report, gradient.unwrap())
    };
    let outcomes = |report: &Report| report.samples.iter().map(|s| s.outcome).collect::<Vec<_>>();
    let vae = case.vae(json!({}));
    let (report, gradient) = run(
        case.with(json!({"t_max": 0.6})),
        0,
        &["person", "landscape", "person_head"],
        &vae,
    );
    assert_eq!(
        outcomes(&report),
        [Outcome::Counted, Outcome::DataType, Outcome::Time]
    );
    assert_eq!(gradient.select(0, 1).abs().max().double_value(&[]), 0.0);
    assert!(gradient.select(0, 0).abs().max().double_value(&[]) > 0.0);

    // A decoder for other latents cannot run, so what succeeds did not decode.
    let other = shared(decoder("flux2", json!({})).unwrap());
    for (config, number, outcome) in [
        (case.with(json!({"every_n_steps": 4})), 3, Outcome::Step),
        (case.with(json!({"t_min": 0.9})), 0, Outcome::Time),
        (
            case.with(json!({"use_face_loss": false})),
            0,
            Outcome::Disabled,
        ),
        (
            case.with(json!({"time_weight": {"table": [0, 0]}})),
            0,
            Outcome::ZeroWeight,
        ),
    ] {
        let (report, gradient) = run(config.clone(), number, &[], &other);
        assert_eq!(outcomes(&report), [outcome; 3], "{config}");
        assert_eq!((report.loss, report.counted()), (0.0, 0));
        assert_eq!(gradient.abs().max().double_value(&[]), 0.0);
    }
    let (report, _) = run(case.with(json!({"every_n_steps": 4})), 8, &[], &vae);
    assert_eq!(report.counted(), 3);
}

#[test]
fn a_sample_with_nan_is_dropped_alone() {
    let case = Case::named("flux_tokens");
    for policy in [json!({}), json!({"recompute": "blocks", "slicing": true})] {
        let broken = case.step();
        let _ = broken.prediction.get(1).get(3).fill_(f64::NAN);
        let vae = case.vae(policy);
        let loss = loss(&case.config());
        let (report, gradient) = step(&loss, &vae, broken, case.targets(), true).unwrap();
        let gradient = gradient.unwrap();
        assert_eq!(report.samples[1].outcome, Outcome::NonFinite);
        assert_eq!(report.counted(), 2);
        assert_eq!(gradient.isfinite().all().int64_value(&[]), 1);
        // The mean is over two now.
        let expected = case.get("gradient") * 1.5;
        for row in [0, 2] {
            let error = relative(&gradient.get(row), &expected.get(row));
            assert!(error <= 1e-5, "{row}: {error}");
        }
    }
}

#[test]
fn the_gradient_can_be_limited() {
    let case = Case::named("flow");
    let loss = loss(&case.with(json!({"gradient_limit": 0.5})));
    let vae = case.vae(json!({}));
    let norm = case.get("gradient").norm().double_value(&[]);
    let run = |main: f64| {
        let at = Step {
            gradient_norm: Some(main),
            ..case.step()
        };
        let made = step(&loss, &vae, at, case.targets(), true).unwrap().1;
        made.unwrap().norm().double_value(&[])
    };
    assert!((run(norm) / (0.5 * norm) - 1.0).abs() < 1e-5);
    assert!((run(10.0 * norm) / norm - 1.0).abs() < 1e-5);
    let error = step(&loss, &vae, case.step(), case.targets(), true).unwrap_err();
    assert!(error.to_string().contains("gradient_norm"), "{error}");
}

#[test]
fn bad_input_is_named() {
    let case = Case::named("flux_tokens");
    let (loss, vae) = (loss(&case.config()), case.vae(json!({})));
    let refuse = |change: &dyn Fn(&mut Step), want: &str| {
        let mut bad = case.step();
        change(&mut bad);
        let error = step(&loss, &vae, bad, case.targets(), true)
            .unwrap_err()
            .to_string();
        assert!(error.contains(want), "{want}: {error}");
    };
    refuse(&|s| s.times = vec![0.5; 2], "times: expected 3 entries");
    refuse(
        &|s| s.times[1] = 1.5,
        "t of sample 1: expected a number in [0, 1], got 1.5",
    );
    refuse(
        &|s| s.times[2] = f64::NAN,
        "time of sample 2: expected a finite number",
    );
    refuse(
        &|s| s.x_t = None,
        "x_t: needed by every prediction kind but sample",
    );
    refuse(&|s| s.size = None, "latent");
    refuse(&|s| s.size = Some((48, 39)), "39");
    refuse(&|s| s.coefficients = vec![(1.0, 0.0); 3], "not \"custom\"");
    refuse(
        &|s| {
            s.prediction = Tensor::zeros([3, 480, 12], (Kind::Float, Device::Cpu));
            s.x_t = None;
        },
        "",
    );
    let other = shared(decoder("flux2", json!({})).unwrap());
    let error = step(&loss, &other, case.step(), case.targets(), true).unwrap_err();
    assert!(error.to_string().contains("[B,32,h,w]"), "{error}");
    let error = decoder("kl", json!({"family": "flux2"})).err().unwrap();
    assert!(error.to_string().contains("Flux2"), "{error}");
    // The next correct call works.
    let (report, _) = case.run(&case.config(), json!({}));
    assert_eq!(report.counted(), 3);
}

#[test]
fn a_vae_that_does_not_tell_its_format_asks_for_it() {
    let case = Case::named("flow");
    let mut config = case.config();
    config.as_object_mut().unwrap().remove("latent_format");
    let vae = case.vae(json!({}));
    let error = step(&loss(&config), &vae, case.step(), case.targets(), true).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("latent_format: the VAE's files do not tell"),
        "{error}"
    );
}

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
            assert!((report.loss / want - 1.0).abs() <= 1e-5, "{name} {policy}");
            assert_eq!(decoded(&report), [Decoded::WindowExact; 3]);
            assert_eq!(report.exact_passes(), if exact { 0 } else { 3 });
            let want = case.get("gradient");
            if exact {
                let error = relative(&gradient, &want);
                assert!(error <= 1e-5, "{name} {policy}: {error}");
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
    let face = |scale: f64, x: f64, y: f64| Known {
        bbox: None,
        landmarks: Some(
            facegrad::face::template(112).map(|p| [p[0] * scale + x, p[1] * scale + y]),
        ),
    };
    let boxed = |bbox: [f64; 4]| Known {
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
            step(&loss(&config), &vae, case.step(), targets, true).unwrap()
        };
        let ((want, want_gradient), (got, gradient)) = (run("full"), run("window"));
        let (want_gradient, gradient) = (want_gradient.unwrap(), gradient.unwrap());
        for (row, (a, b)) in got.samples.iter().zip(&want.samples).enumerate() {
            assert_eq!(a.outcome, b.outcome, "{mode} {row}");
            assert!((a.similarity - b.similarity).abs() <= 1e-5, "{mode} {row}");
        }
        assert_eq!(want.counted(), 3);
        let error = relative(&gradient, &want_gradient);
        assert!(error <= 1e-4, "{mode}: {error}");
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
        let doubled = |known: &Known| Known {
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
        step(
            &loss(&config),
            &case.vae(json!({})),
            case.step(),
            targets,
            true,
        )
        .unwrap()
    };
    let ((want, want_gradient), (got, gradient)) = (run("full"), run("window_only"));
    assert_eq!(got.counted(), 3);
    assert!((got.loss / want.loss - 1.0).abs() <= 1e-5);
    assert!(relative(&gradient.unwrap(), &want_gradient.unwrap()) <= 1e-5);
}

#[test]
fn statistics_are_remembered_by_sample_and_noise() {
    let case = Case::named("flow");
    // The whole receptive field, so that statistics of the same step make the same gradient.
    let policy = json!({"decode": "window", "norm_stats_t_max": 0.6, "norm_stats_refresh": 2, "window_halo": 64});
    let (loss, vae) = (loss(&case.with(policy)), case.vae(json!({})));
    let run = |times: [f64; 3], change: &dyn Fn(&mut Targets)| {
        let mut targets = case.targets();
        change(&mut targets);
        let at = Step {
            times: times.to_vec(),
            ..case.step()
        };
        let (report, gradient) = step(&loss, &vae, at, targets, true).unwrap();
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
        assert!((value / first.2 - 1.0).abs() <= 1e-6);
        assert!(relative(&gradient, &first.3) <= 1e-5);
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
        let loss = loss(&case.with(json!({"decode": "window", "norm_stats": norm_stats})));
        let given = case.targets();
        let images = given.references.unwrap();
        let faces = &given.reference_faces;
        loss.lock()
            .unwrap()
            .set_reference("anna", &images, faces)
            .unwrap();
        let _first = step(&loss, &vae, case.step(), targets(), true)?;
        step(&loss, &vae, case.step(), targets(), true).map(|(report, _)| report)
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
    let (loss, vae) = (loss(&case.with(policy)), case.vae(json!({})));
    let run = |number: u64| {
        let at = Step {
            number,
            ..case.step()
        };
        step(&loss, &vae, at, case.targets(), true).unwrap()
    };
    let (report, _) = run(1);
    assert_eq!(decoded(&report), [Decoded::Window; 3]);
    assert!(report.worst_audit().is_none());
    // The step that audits has the exact loss and gradient.
    let (report, gradient) = run(2);
    let want = numbers(&case.get("loss"))[0];
    assert!((report.loss / want - 1.0).abs() <= 1e-5);
    assert!(relative(&gradient.unwrap(), &case.get("gradient")) <= 1e-5);
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
    let (loss, vae) = (self::loss(&agreeing), tiny.vae(json!({})));
    for _ in 0..2 {
        let (report, _) = step(&loss, &vae, tiny.step(), tiny.targets(), true).unwrap();
        assert_eq!(decoded(&report), [Decoded::WindowExact; 3]);
        let audit = report.worst_audit().unwrap();
        assert!(audit.cosine > 0.99999 && (audit.norm_ratio - 1.0).abs() < 1e-4);
    }
}

#[test]
fn torchscript_is_decoded_whole_or_refused() {
    let case = Case::named("tiny");
    let config: VaeConfig = parse(
        "test",
        &json!({"path": fixture("decoders/taef1.torchscript.pt"), "latent_channels": 16})
            .to_string(),
    )
    .unwrap();
    let vae = shared(Decoder::load(&config, Device::Cpu).unwrap());
    let lines = shared(vec![]);
    let sink = lines.clone();
    let keep = move |_: facegrad::log::Level, text: &str| {
        if text.contains("TorchScript") {
            sink.lock().unwrap().push(text.to_string());
        }
    };
    set_sink(Some((facegrad::log::Level::Info, Arc::new(keep))));
    let at = || Step {
        prediction: Tensor::randn([3, 16, 12, 10], (Kind::Float, Device::Cpu)),
        ..case.step()
    };
    let with = |decode: &str| case.with(json!({"decode": decode, "latent_format": "none"}));
    let window = loss(&with("window"));
    for _ in 0..2 {
        let (report, _) = step(&window, &vae, at(), case.targets(), true).unwrap();
        assert_eq!(decoded(&report), [Decoded::Full; 3]);
    }
    set_sink(None);
    assert_eq!(lines.lock().unwrap().len(), 1);
    let only = loss(&with("window_only"));
    let error = step(&only, &vae, at(), case.targets(), true).unwrap_err();
    assert!(error.to_string().contains("TorchScript"), "{error}");
}
