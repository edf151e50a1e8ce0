//! Steps whose GroupNorm statistics are predicted.

use super::case::*;
use crate::common::{bound, cosine, device, fixture, randn, read, relative};
use facegrad::batch::{Decoded, Report, Targets};
use facegrad::config::VaeConfig;
use facegrad::log::set_sink;
use facegrad::nets::vae::Decoder;
use facegrad::step::{Step, StepLoss};
use serde_json::json;
use std::sync::Arc;
use tch::Tensor;

fn predicted(case: &Case) -> StepLoss {
    let policy = json!({"decode": "window", "norm_stats": "predicted"});
    loss(&case.with(policy), &case.vae(json!({})))
}

/// The case's step, with predictions that differ from seed to seed as those of a training do.
fn varied(case: &Case, seed: i64) -> Step {
    let step = case.step();
    let noise = randn(seed, &step.prediction.size());
    let level = |at: i64| 0.1 + 0.8 * (((7 * seed + 5 * at) % 16) as f64) / 16.0;
    Step {
        prediction: &step.prediction + noise * 0.5,
        times: (0..3).map(level).collect(),
        ..step
    }
}

fn run(loss: &mut StepLoss, step: &Step, targets: &Targets) -> (Report, Tensor) {
    let (report, gradient) = loss.step(step, targets, true).unwrap();
    (report, gradient.unwrap())
}

fn how(report: &Report) -> Vec<Decoded> {
    report.samples.iter().map(|s| s.decoded).collect()
}

/// A loss that has seen so many steps that it predicts.
fn trained(case: &Case) -> StepLoss {
    let mut loss = predicted(case);
    for seed in 0..16 {
        let _learned = run(&mut loss, &varied(case, seed), &case.targets());
    }
    loss
}

#[test]
fn exact_passes_become_rare_and_gradients_stay_near() {
    let case = Case::named("flow");
    let mut loss = predicted(&case);
    let mut full = self::loss(&case.config(), &case.vae(json!({})));
    let mut passes = vec![];
    for seed in 0..40 {
        let step = varied(&case, seed);
        let (report, gradient) = run(&mut loss, &step, &case.targets());
        passes.push(report.exact_passes());
        for sample in &report.samples {
            let exact = sample.decoded == Decoded::WindowExact;
            assert_eq!(exact, sample.exact_pass);
            assert!(exact || sample.decoded == Decoded::WindowPredicted);
        }
        if seed >= 36 {
            let (_, want) = run(&mut full, &step, &case.targets());
            let same = cosine(&gradient, &want);
            println!("{seed}: {same}");
            assert!(same >= 0.95, "{same}");
        }
    }
    println!("{passes:?}");
    assert_eq!(passes[..5], [3; 5], "it has to learn first");
    assert!(passes[20..].iter().sum::<usize>() <= 6, "{passes:?}");
}

/// Above `norm_stats_t_max` statistics are those of the step, whatever the model knows.
#[test]
fn a_limit_of_the_noise_level_holds() {
    let case = Case::named("flow");
    let policy = json!({"decode": "window", "norm_stats": "auto", "norm_stats_t_max": 0.5});
    let mut loss = self::loss(&case.with(policy), &case.vae(json!({})));
    for seed in 0..24 {
        let step = varied(&case, seed);
        let (report, _) = run(&mut loss, &step, &case.targets());
        for (sample, level) in report.samples.iter().zip(&step.times) {
            assert!(*level <= 0.5 || sample.exact_pass, "{level}");
        }
    }
    let step = Step {
        times: vec![0.2, 0.3, 0.4],
        ..varied(&case, 30)
    };
    let (report, _) = run(&mut loss, &step, &case.targets());
    assert!(how(&report).contains(&Decoded::WindowPredicted));
}

#[test]
fn a_saved_model_goes_on_with_the_same_numbers() {
    let case = Case::named("flow");
    let mut first = trained(&case);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    first.save(&path).unwrap();
    let mut second = predicted(&case);
    second.restore(&path).unwrap();
    let mut seen = 0;
    for seed in 40..46 {
        let step = varied(&case, seed);
        let (want, want_gradient) = run(&mut first, &step, &case.targets());
        let (got, gradient) = run(&mut second, &step, &case.targets());
        assert_eq!(how(&got), how(&want), "{seed}");
        assert!(relative(&gradient, &want_gradient) <= bound::gradient(1e-6));
        seen += how(&got)
            .iter()
            .filter(|&&d| d == Decoded::WindowPredicted)
            .count();
    }
    assert!(seen >= 12, "{seen}");
}

/// The picture is decoded as a whole where nothing can be predicted, and the log says so once.
#[test]
fn every_fallback_is_exact_and_told_once() {
    let case = Case::named("flow");
    let _alone = lock_log();
    let lines = shared(Vec::<String>::new());
    let sink = lines.clone();
    let keep = move |_: facegrad::log::Level, text: &str| {
        if text.starts_with("norm_stats") {
            sink.lock().unwrap().push(text.to_string());
        }
    };
    set_sink(Some((facegrad::log::Level::Info, Arc::new(keep))));
    let told = |word: &str| {
        let lines = lines.lock().unwrap();
        lines.iter().filter(|line| line.contains(word)).count()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    trained(&case).save(&path).unwrap();
    lines.lock().unwrap().clear();

    // A training with other pictures goes on from the state: these are unlike all before.
    let mut resumed = predicted(&case);
    resumed.restore(&path).unwrap();
    for seed in 50..52 {
        let step = varied(&case, seed);
        let other = Step {
            prediction: step.prediction * 40.0 + 9.0,
            ..step
        };
        let (report, _) = run(&mut resumed, &other, &case.targets());
        assert_eq!(how(&report), [Decoded::WindowExact; 3]);
    }
    assert_eq!(told("unlike all before"), 1, "{lines:?}");

    // The memory of another decoder.
    let mut weights = read(&fixture("step/kl.safetensors"));
    for (name, tensor) in &mut weights {
        if name.ends_with("conv_in.weight") {
            *tensor = tensor.flip([0]);
        }
    }
    let config = VaeConfig {
        norm_num_groups: Some(8),
        ..Default::default()
    };
    let other = shared(Decoder::from_tensors(weights, &config, device()).unwrap());
    let policy = json!({"decode": "window", "norm_stats": "predicted"});
    let mut other = loss(&case.with(policy.clone()), &other);
    other.restore(&path).unwrap();
    assert_eq!(told("another VAE"), 1, "{lines:?}");
    let (report, _) = run(&mut other, &varied(&case, 1), &case.targets());
    assert_eq!(how(&report), [Decoded::WindowExact; 3]);

    // All pictures alike.
    let step = case.step();
    let same = |t: &Tensor| t.narrow(0, 0, 1).repeat([3, 1, 1, 1]);
    let alike = Step {
        prediction: same(&step.prediction),
        x_t: step.x_t.as_ref().map(same),
        times: vec![0.3; 3],
        ..step
    };
    let mut constant = predicted(&case);
    for _ in 0..8 {
        let (report, _) = run(&mut constant, &alike, &case.targets());
        assert_eq!(how(&report), [Decoded::WindowExact; 3]);
        assert_eq!(report.exact_passes(), 3);
    }
    assert_eq!(told("alike"), 1, "{lines:?}");

    // A decoder without GroupNorm.
    let tiny = Case::named("tiny");
    let mut tiny_loss = loss(&tiny.with(policy), &tiny.vae(json!({})));
    for _ in 0..2 {
        let (report, _) = run(&mut tiny_loss, &tiny.step(), &tiny.targets());
        assert_eq!(how(&report), [Decoded::WindowExact; 3]);
        assert_eq!(report.exact_passes(), 0);
    }
    assert_eq!(told("no GroupNorm"), 1, "{lines:?}");
    set_sink(None);
}
