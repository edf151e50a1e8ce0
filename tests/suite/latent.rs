//! x0, packing, formats and the clamp against PyTorch, diffusers and finite differences.

use crate::common::{self, bound, device, fixture, randn, relative, row};
use facegrad::config::{
    ClampPolicy, CustomFormat, LatentFormat, Packing, Prediction, PredictionConfig, Rect, Time,
};
use facegrad::latent::{
    PatchStats, clamp_image, coefficients, crop, pack, predict_x0, sampler_step, to_vae_space,
    transitions, unpack,
};
use facegrad::tensor;
use std::collections::HashMap;
use tch::{Kind, Tensor};

fn read(rel: &str) -> HashMap<String, Tensor> {
    common::read(&fixture(rel)).into_iter().collect()
}

fn same(got: &Tensor, want: &Tensor) -> bool {
    got.size() == want.size() && got.equal(want)
}

fn prediction(kind: Prediction, time: Time) -> PredictionConfig {
    PredictionConfig {
        kind,
        time,
        ..Default::default()
    }
}

#[test]
fn x0_and_its_gradient_equal_pytorch() {
    let cases = [
        ("flow_t", Prediction::Flow, Time::T),
        ("flow_t", Prediction::Flow, Time::Sigma),
        ("z_image", Prediction::ZImage, Time::T),
        ("z_image", Prediction::Lumina2, Time::T),
        ("hidream", Prediction::Hidream, Time::T),
        ("epsilon_t", Prediction::Epsilon, Time::T),
        ("epsilon_alpha_bar", Prediction::Epsilon, Time::AlphaBar),
        ("epsilon_sigma", Prediction::Epsilon, Time::Sigma),
        ("v_t", Prediction::V, Time::T),
        ("v_alpha_bar", Prediction::V, Time::AlphaBar),
        ("v_sigma", Prediction::V, Time::Sigma),
        ("sample_t", Prediction::Sample, Time::T),
    ];
    for (name, kind, time) in cases {
        let f = read(&format!("latent/x0_{name}.safetensors"));
        let times = Vec::<f64>::try_from(&f["times"]).unwrap();
        let coeffs = coefficients(&prediction(kind, time), &times).unwrap();
        let pred = f["pred"].set_requires_grad(true);
        let x0 = predict_x0(Some(&f["x_t"]), &pred, &coeffs).unwrap();
        assert!(relative(&x0, &f["x0"]) < bound::value(1e-5), "{name} x0");
        let grad = tensor::vjp(&x0, &[&pred], &f["grad"], false).unwrap();
        let error = relative(&grad[0], &f["grad_pred"]);
        assert!(error < bound::gradient(1e-5), "{name} gradient {error}");

        // The map is linear, so a central difference is exact but for rounding.
        let direction = f["x_t"].roll([1], [3]);
        let step = |s: f64| {
            let moved = &f["pred"] + &direction * s;
            let x0 = predict_x0(Some(&f["x_t"]), &moved, &coeffs).unwrap();
            (x0.to_kind(Kind::Double) * &f["grad"])
                .sum(Kind::Double)
                .double_value(&[])
        };
        let numeric = (step(0.5) - step(-0.5)) / 1.0;
        let analytic = (grad[0].to_kind(Kind::Double) * &direction)
            .sum(Kind::Double)
            .double_value(&[]);
        let scale = (grad[0].norm() * direction.norm()).double_value(&[]);
        assert!(
            (numeric - analytic).abs() / scale < bound::gradient(1e-5),
            "{name} numeric"
        );
    }
}

#[test]
fn flips_can_be_set_apart_from_the_model() {
    let config = PredictionConfig {
        kind: Prediction::ZImage,
        reversed_time: Some(false),
        ..Default::default()
    };
    assert_eq!(coefficients(&config, &[0.25]).unwrap(), [(1.0, 0.25)]);
    let config = PredictionConfig {
        negated: Some(true),
        ..Default::default()
    };
    assert_eq!(coefficients(&config, &[0.25]).unwrap(), [(1.0, 0.25)]);
    // The noise fraction with the signal-to-noise ratio of ᾱ: t = ½ where ᾱ = ½.
    let config = prediction(Prediction::Flow, Time::AlphaBar);
    let pairs = coefficients(&config, &[0.5, 1.0]).unwrap();
    assert!((pairs[0].1 + 0.5).abs() < 1e-12 && pairs[1].1 == 0.0);
}

#[test]
fn sixteen_bit_predictions_get_a_gradient_of_their_own_dtype() {
    let pred = randn(1, &[2, 4, 2, 2])
        .to_kind(Kind::BFloat16)
        .set_requires_grad(true);
    let x_t = randn(2, &[2, 4, 2, 2]).to_kind(Kind::Half);
    let x0 = predict_x0(Some(&x_t), &pred, &[(1.0, -0.5), (1.0, -0.25)]).unwrap();
    assert_eq!(x0.kind(), Kind::Float);
    let grad = tensor::vjp(&x0, &[&pred], &x0.ones_like(), false).unwrap();
    assert_eq!(grad[0].kind(), Kind::BFloat16);
    assert!(grad[0].get(0).equal(&grad[0].get(0).full_like(-0.5)));
    assert!(grad[0].get(1).equal(&grad[0].get(1).full_like(-0.25)));
}

#[test]
fn bad_times_and_predictions_are_named() {
    let message = |kind, time, times: &[f64]| {
        let error = coefficients(&prediction(kind, time), times).unwrap_err();
        assert_eq!(error.status(), 2);
        error.message().to_string()
    };
    assert_eq!(
        message(Prediction::Flow, Time::T, &[0.5, 1.5]),
        "t of sample 1: expected a number in [0, 1], got 1.5"
    );
    assert!(message(Prediction::Flow, Time::T, &[f64::NAN]).contains("sample 0"));
    assert!(message(Prediction::V, Time::AlphaBar, &[0.0]).contains("(0, 1]"));
    assert!(message(Prediction::Epsilon, Time::Sigma, &[-1.0]).contains("at least 0"));
    assert!(message(Prediction::Epsilon, Time::T, &[0.5]).contains("0 to 999"));
    assert!(message(Prediction::Custom, Time::T, &[0.5]).contains("custom"));
    let x = Tensor::zeros([2, 4, 2, 2], (Kind::Float, device()));
    let pair = (1.0, -0.5);
    let status = |r: facegrad::error::Result<Tensor>| r.unwrap_err().status();
    assert_eq!(status(predict_x0(Some(&x), &x, &[pair])), 5);
    assert_eq!(status(predict_x0(None, &x, &[pair, pair])), 2);
    assert_eq!(status(predict_x0(Some(&x.get(0)), &x, &[pair, pair])), 5);
    let whole = x.to_kind(Kind::Int64);
    assert_eq!(status(predict_x0(Some(&x), &whole, &[pair, pair])), 4);
    assert_eq!(
        status(predict_x0(Some(&x), &x, &[pair, (f64::NAN, 1.0)])),
        2
    );
}

/// Against diffusers: bindings/python/tests/test_sampler.py.
#[test]
fn a_step_to_no_noise_is_x0_and_two_steps_are_one() {
    let (x, pred) = (randn(1, &[2, 4, 2, 2]), randn(2, &[2, 4, 2, 2]));
    for (kind, clean) in [
        (Prediction::Flow, 0.0),
        (Prediction::ZImage, 1.0),
        (Prediction::Hidream, 0.0),
        (Prediction::Epsilon, -1.0),
        (Prediction::V, -1.0),
        (Prediction::Sample, -1.0),
    ] {
        let config = prediction(kind, Time::T);
        let flow = clean != -1.0;
        let from = if flow { [0.75, 0.5] } else { [900.0, 500.0] };
        let to = if flow { [0.25, 0.25] } else { [300.0, 100.0] };
        let x0 = predict_x0(Some(&x), &pred, &coefficients(&config, &from).unwrap()).unwrap();
        let step = |x: &Tensor, from: &[f64], to: &[f64]| {
            sampler_step(x, &pred, &transitions(&config, from, to).unwrap()).unwrap()
        };
        let ended = step(&x, &from, &[clean, clean]);
        assert!(
            relative(&ended, &x0) < bound::value(1e-5),
            "{kind:?}: to no noise"
        );
        // With epsilon and a flow's velocity held, the way does not matter.
        if flow || kind == Prediction::Epsilon {
            let twice = step(&step(&x, &from, &to), &to, &[clean, clean]);
            assert!(
                relative(&twice, &ended) < bound::value(1e-5),
                "{kind:?}: two steps"
            );
        }
    }
    let leaf = pred.to_kind(Kind::BFloat16).set_requires_grad(true);
    let half = x.to_kind(Kind::Half);
    let next = sampler_step(&half, &leaf, &[(1.0, -0.25); 2]).unwrap();
    assert!(next.kind() == Kind::Half && !next.requires_grad());
}

#[test]
fn packing_equals_diffusers_and_round_trips_exactly() {
    let f = read("latent/packing.safetensors");
    let cases = [
        (Packing::None, "latent", "latent"),
        (Packing::Flux, "packed", "latent"),
        (Packing::Flux2, "patched", "flux2"),
        (Packing::Flux2Tokens, "tokens", "flux2"),
    ];
    for (packing, packed, plain) in cases {
        let unpacked = unpack(&f[packed], packing, Some((4, 6))).unwrap();
        assert!(same(&unpacked, &f[plain]), "{packing:?}");
        assert!(same(&pack(&unpacked, packing).unwrap(), &f[packed]));
        // The gradient arrives in the packed layout: it is the packed gradient.
        let leaf = f[packed].set_requires_grad(true);
        let out = unpack(&leaf, packing, Some((4, 6))).unwrap();
        let grad = randn(1, &out.size());
        let back = tensor::vjp(&out, &[&leaf], &grad, false).unwrap();
        assert!(same(&back[0], &pack(&grad, packing).unwrap()));
    }
}

#[test]
fn a_crop_gives_gradient_inside_only() {
    let leaf = randn(1, &[1, 2, 4, 6]).set_requires_grad(true);
    let right = Rect {
        x: 3,
        y: 0,
        width: 3,
        height: 4,
    };
    let half = crop(&leaf, &right).unwrap();
    assert!(same(&half, &leaf.narrow(3, 3, 3)));
    let grad = tensor::vjp(&half, &[&leaf], &half.ones_like(), false).unwrap();
    assert_eq!(grad[0].narrow(3, 0, 3).abs().max().double_value(&[]), 0.0);
    assert_eq!(grad[0].narrow(3, 3, 3).min().double_value(&[]), 1.0);
    for (x, width) in [(-1, 2), (4, 3), (0, 0), (i64::MAX, 1)] {
        let error = crop(&leaf, &Rect { x, width, ..right }).unwrap_err();
        assert_eq!(error.status(), 2, "{error}");
    }
}

#[test]
fn packing_names_what_does_not_fit() {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device()));
    let failed = |x: &Tensor, packing, size| {
        let error = unpack(x, packing, size).unwrap_err();
        assert_eq!(error.status(), 5);
        error.message().to_string()
    };
    let tokens = zeros(&[1, 6, 64]);
    assert!(failed(&tokens, Packing::Flux, None).contains("give the latent height"));
    assert!(failed(&tokens, Packing::Flux, Some((5, 6))).contains("even"));
    assert!(failed(&tokens, Packing::Flux, Some((4, 4))).contains("6 tokens"));
    assert!(failed(&zeros(&[1, 6, 63]), Packing::Flux, Some((4, 6))).contains("multiple of 4"));
    assert!(failed(&zeros(&[1, 6, 2, 2]), Packing::Flux2, None).contains("multiple of 4"));
    assert!(failed(&tokens, Packing::None, None).contains("[B,C,H,W]"));
    let odd = zeros(&[1, 4, 3, 2]);
    assert_eq!(pack(&odd, Packing::Flux).unwrap_err().status(), 5);
}

#[test]
fn formats_equal_their_models() {
    let f = read("latent/packing.safetensors");
    let stats = PatchStats {
        mean: f["mean"].shallow_clone(),
        std: f["std"].shallow_clone(),
    };
    let got = to_vae_space(&f["flux2"], &LatentFormat::Flux2, Some(&stats)).unwrap();
    assert!(relative(&got, &f["raw"]) < bound::value(1e-6));
    let z = &f["latent"];
    let cases = [
        (LatentFormat::Sd15, 4, 0.18215, 0.0),
        (LatentFormat::Sdxl, 4, 0.13025, 0.0),
        (LatentFormat::Sd3, 16, 1.5305, 0.0609),
        (LatentFormat::Flux, 16, 0.3611, 0.1159),
        (LatentFormat::None, 16, 1.0, 0.0),
    ];
    for (format, channels, scale, shift) in cases {
        let z = z.narrow(1, 0, channels);
        let got = to_vae_space(&z, &format, None).unwrap();
        assert!(
            relative(&got, &(&z / scale + shift)) < bound::value(1e-6),
            "{format:?}"
        );
    }
    let wan = to_vae_space(z, &LatentFormat::Wan21, None).unwrap();
    assert!(same(
        &wan,
        &to_vae_space(z, &LatentFormat::QwenImage, None).unwrap()
    ));
    assert!(relative(&wan.select(1, 7), &(z.select(1, 7) * 2.0743 + 1.5508)) < bound::value(1e-6));
    let custom = LatentFormat::Custom(CustomFormat {
        scale: 0.5,
        shift: 1.0,
        mean: vec![2.0; 16],
        std: vec![3.0; 16],
    });
    let got = to_vae_space(z, &custom, None).unwrap();
    assert!(relative(&got, &(z * 6.0 + 3.0)) < bound::value(1e-6));
    let status = |z: &Tensor, format| to_vae_space(z, &format, None).unwrap_err().status();
    assert_eq!(status(z, LatentFormat::Sd15), 5);
    assert_eq!(status(z, LatentFormat::Flux2), 8);
    let zero = CustomFormat {
        scale: 0.0,
        ..Default::default()
    };
    assert_eq!(status(z, LatentFormat::Custom(zero)), 8);
}

#[test]
fn clamp_policies_do_to_the_gradient_what_they_say() {
    let run = |policy| {
        let x = row(&[-0.5, 0.25, 0.5, 1.5]).set_requires_grad(true);
        let y = clamp_image(&x, policy).unwrap();
        let grad = tensor::vjp(&y, &[&x], &y.ones_like(), false).unwrap();
        let values = |t: &Tensor| Vec::<f32>::try_from(t.detach()).unwrap();
        (values(&y), values(&grad[0]))
    };
    let cut = vec![0.0, 0.25, 0.5, 1.0];
    assert_eq!(run(ClampPolicy::Clamp), (cut.clone(), vec![0., 1., 1., 0.]));
    assert_eq!(
        run(ClampPolicy::StraightThrough),
        (cut.clone(), vec![1.; 4])
    );
    let (soft, slope) = run(ClampPolicy::Soft);
    for (got, want) in soft.iter().zip(&cut) {
        assert!(
            (got - want).abs() < 0.035 && (0.0..=1.0).contains(got),
            "{soft:?}"
        );
    }
    assert!(slope[0] > 0.0 && slope[0] < 1e-3 && slope[3] > 0.0 && slope[2] > 0.99);
}
