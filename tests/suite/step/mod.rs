//! The fused step against the same chain in PyTorch and diffusers, finite differences, and its rules
//! about what counts.

mod case;
mod norm_model;
mod windows;

use crate::common::{bound, cosine, device, numbers, relative};
use case::*;
use facegrad::batch::{Outcome, Report, Targets};
use facegrad::nets::vae::Decoder;
use facegrad::shared::Shared;
use facegrad::step::Step;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

#[test]
fn every_case_is_pytorchs() {
    for about in Case::all() {
        let name = about["name"].as_str().unwrap();
        let case = Case::named(name);
        let (report, gradient) = case.run(&case.config(), json!({}));
        let want = numbers(&case.get("loss"))[0];
        assert!(
            (report.loss / want - 1.0).abs() <= bound::value(1e-5),
            "{name}: {} {want}",
            report.loss
        );
        let error = relative(&gradient, &case.get("gradient"));
        println!("{name}: {error:.1e}");
        assert!(error <= bound::gradient(1e-5), "{name}: {error}");
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
                (report.loss / want.loss - 1.0).abs() <= bound::value(1e-5),
                "{name} {policy}"
            );
            let error = relative(&gradient, &want_gradient);
            assert!(error <= bound::gradient(1e-5), "{name} {policy}: {error}");
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
        let (_, gradient) = loss(&case.config(), &vae)
            .step(&low, &case.targets(), true)
            .unwrap();
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
        let mut loss = loss(&case.config(), &case.vae(json!({})));
        let (_, gradient) = loss.step(&case.step(), &case.targets(), true).unwrap();
        let gradient = gradient.unwrap();
        let norm = gradient.norm().double_value(&[]);
        // Long enough to rise above f32's rounding, short enough to be nearly straight.
        let length = 2e-4 / norm;
        let mut at = |sign: f64| {
            let mut moved = case.step();
            moved.prediction = &moved.prediction + &gradient * (sign * length / norm);
            loss.step(&moved, &case.targets(), false).unwrap().0.loss
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
        let (report, gradient) = loss(&config, vae).step(&at, &targets, true).unwrap();
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
        let mut loss = loss(&case.config(), &vae);
        let (report, gradient) = loss.step(&broken, &case.targets(), true).unwrap();
        let gradient = gradient.unwrap();
        assert_eq!(report.samples[1].outcome, Outcome::NonFinite);
        assert_eq!(report.counted(), 2);
        assert_eq!(gradient.isfinite().all().int64_value(&[]), 1);
        // The mean is over two now.
        let expected = case.get("gradient") * 1.5;
        for row in [0, 2] {
            let error = relative(&gradient.get(row), &expected.get(row));
            assert!(error <= bound::gradient(1e-5), "{row}: {error}");
        }
    }
}

#[test]
fn the_gradient_can_be_limited() {
    let case = Case::named("flow");
    let vae = case.vae(json!({}));
    let mut loss = loss(&case.with(json!({"gradient_limit": 0.5})), &vae);
    let norm = case.get("gradient").norm().double_value(&[]);
    let mut run = |main: f64| {
        let at = Step {
            gradient_norm: Some(main),
            ..case.step()
        };
        let made = loss.step(&at, &case.targets(), true).unwrap().1;
        made.unwrap().norm().double_value(&[])
    };
    assert!((run(norm) / (0.5 * norm) - 1.0).abs() < bound::value(1e-5));
    assert!((run(10.0 * norm) / norm - 1.0).abs() < bound::gradient(1e-5));
    let error = loss.step(&case.step(), &case.targets(), true).unwrap_err();
    assert!(error.to_string().contains("gradient_norm"), "{error}");
}

#[test]
fn bad_input_is_named() {
    let case = Case::named("flux_tokens");
    let mut steps = loss(&case.config(), &case.vae(json!({})));
    let mut refuse = |change: &dyn Fn(&mut Step), want: &str| {
        let mut bad = case.step();
        change(&mut bad);
        let error = steps
            .step(&bad, &case.targets(), true)
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
            s.prediction = Tensor::zeros([3, 480, 12], (Kind::Float, device()));
            s.x_t = None;
        },
        "",
    );
    let other = shared(decoder("flux2", json!({})).unwrap());
    let mut other = loss(&case.config(), &other);
    let error = other.step(&case.step(), &case.targets(), true).unwrap_err();
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
    let error = loss(&config, &vae)
        .step(&case.step(), &case.targets(), true)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("latent_format: the VAE's files do not tell"),
        "{error}"
    );
}

/// Times that a first and a second step wait for the device. Faces are given, and references are registered.
fn waits(
    name: &str,
    more: serde_json::Value,
    vae: serde_json::Value,
    registered: bool,
) -> [u64; 2] {
    let case = Case::named(name);
    let mut loss = loss(&case.with(more), &case.vae(vae));
    let mut targets = case.targets();
    targets.sample_ids = ["a", "b", "c"].map(|id| Some(id.to_string())).to_vec();
    if registered {
        let images = targets.references.take().unwrap();
        let faces = std::mem::take(&mut targets.reference_faces);
        let register =
            |loss: &mut facegrad::loss::Loss| loss.set_reference("anna", &images, &faces);
        register(&mut loss.loss().lock().unwrap()).unwrap();
        targets.reference_ids = vec![Some("anna".to_string()); 3];
    }
    [0, 1].map(|_| {
        let before = facegrad::tensor::waits();
        let (report, _) = loss.step(&case.step(), &targets, true).unwrap();
        assert!(report.counted() > 0, "{name}");
        facegrad::tensor::waits() - before
    })
}

#[test]
fn a_step_reads_back_from_the_gpu_once() {
    let windows = |norm_stats: &str| json!({"decode": "window_only", "norm_stats": norm_stats});
    for (name, more) in [
        ("flow", json!({})),
        ("flux_tokens", json!({})),
        ("window", json!({})),
        ("flow", windows("exact")),
        ("flow", windows("window")),
        ("tiny", windows("exact")),
    ] {
        let [first, later] = waits(name, more.clone(), json!({}), true);
        assert_eq!((first, later), (1, 1), "{name} {more}");
    }
}

#[test]
fn every_further_read_of_a_step_has_its_reason() {
    let plain = json!({});
    // The content of reference images by which their faces are remembered; at first also whether these faces are finite.
    assert_eq!(waits("flow", plain.clone(), plain.clone(), false), [3, 2]);
    // One pass for each of three samples.
    let slicing = json!({"slicing": true});
    assert_eq!(waits("flow", plain.clone(), slicing, true), [3, 3]);
    // Whether the latents are finite, before something of them is remembered.
    let cached = json!({"decode": "window_only", "norm_stats": "cached"});
    assert_eq!(waits("flow", cached, plain.clone(), true), [2, 2]);
    // An audit goes through whole images too, and reads what it compares of every sample.
    let audit = json!({"decode": "window_only", "norm_stats": "exact", "audit_every": 1});
    assert_eq!(waits("flow", audit, plain, true), [5, 5]);
}

#[test]
fn a_sample_with_nan_is_dropped_alone_in_windows_and_leaves_nothing_behind() {
    for norm_stats in ["exact", "window", "cached", "predicted"] {
        let case = Case::named("flow");
        let config = case.with(json!({"decode": "window_only", "norm_stats": norm_stats}));
        let mut loss = loss(&config, &case.vae(json!({})));
        let broken = case.step();
        let _ = broken.prediction.get(1).get(3).fill_(f64::NAN);
        let (report, gradient) = loss.step(&broken, &case.targets(), true).unwrap();
        assert_eq!(
            report.samples[1].outcome,
            Outcome::NonFinite,
            "{norm_stats}"
        );
        assert_eq!(report.counted(), 2, "{norm_stats}");
        assert_eq!(gradient.unwrap().isfinite().all().int64_value(&[]), 1);
        // What is remembered of the sample must not spoil the next step.
        let (report, gradient) = loss.step(&case.step(), &case.targets(), true).unwrap();
        assert_eq!(report.counted(), 3, "{norm_stats}");
        assert_eq!(gradient.unwrap().isfinite().all().int64_value(&[]), 1);
    }
}
