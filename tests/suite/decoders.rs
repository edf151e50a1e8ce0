//! The decoders against diffusers' own classes, in every dialect and under every memory policy.

use crate::common::{bound, cosine, device, fixture, read, relative};
use facegrad::config::{ImageRange, LatentFormat, Precision, Recompute, VaeConfig, VaeFamily};
use facegrad::nets::vae::Decoder;
use std::collections::HashMap;
use tch::{Kind, Tensor};

fn tensors(rel: &str) -> Vec<(String, Tensor)> {
    read(&fixture(&format!("decoders/{rel}.safetensors")))
}

fn io(case: &str) -> HashMap<String, Tensor> {
    tensors(&format!("{case}.io")).into_iter().collect()
}

/// The fixtures are eight groups wide where diffusers' own models have 32.
fn config(case: &str) -> VaeConfig {
    VaeConfig {
        norm_num_groups: (!["full", "hunyuan"].contains(&case)).then_some(8),
        model_config: (case == "dcup").then(|| {
            serde_json::json!({"_class_name": "AutoencoderDC", "upsample_block_type": "interpolate"})
        }),
        ..Default::default()
    }
}

fn decoder(file: &str, config: &VaeConfig) -> Decoder {
    Decoder::from_tensors(tensors(file), config, device()).unwrap()
}

const FILES: [(&str, &str, VaeFamily); 28] = [
    ("sd15", "diffusers", VaeFamily::Kl),
    ("sd15", "ldm", VaeFamily::Kl),
    ("sd15", "checkpoint", VaeFamily::Kl),
    ("sd15", "old", VaeFamily::Kl),
    ("sd15", "vae", VaeFamily::Kl),
    ("flux", "diffusers", VaeFamily::Kl),
    ("flux", "ldm", VaeFamily::Kl),
    ("plain", "diffusers", VaeFamily::Kl),
    ("flux2", "diffusers", VaeFamily::Flux2),
    ("flux2", "bfl", VaeFamily::Flux2),
    ("flux2small", "diffusers", VaeFamily::Flux2),
    ("flux2small", "bfl", VaeFamily::Flux2),
    ("qwen", "diffusers", VaeFamily::Wan),
    ("wan", "diffusers", VaeFamily::Wan),
    ("wan", "native", VaeFamily::Wan),
    ("taesd", "diffusers", VaeFamily::Tiny),
    ("taesd", "comfy", VaeFamily::Tiny),
    ("taesd", "bare", VaeFamily::Tiny),
    ("taef1", "diffusers", VaeFamily::Tiny),
    ("full", "diffusers", VaeFamily::Kl),
    ("sd15", "nested", VaeFamily::Kl),
    ("sd15", "compiled", VaeFamily::Kl),
    ("wan22", "diffusers", VaeFamily::Wan22),
    ("wan22", "native", VaeFamily::Wan22),
    ("layered", "diffusers", VaeFamily::Wan),
    ("hunyuan", "diffusers", VaeFamily::Hunyuan),
    ("dc", "diffusers", VaeFamily::Dc),
    ("dcup", "diffusers", VaeFamily::Dc),
];

#[test]
fn every_family_and_dialect_equals_diffusers() {
    for (case, dialect, family) in FILES {
        let mut config = config(case);
        if case == "flux2small" {
            config.norm_num_groups = Some(8);
        }
        let decoder = decoder(&format!("{case}.{dialect}"), &config);
        assert_eq!(decoder.family(), family, "{case}.{dialect}");
        let f = io(case);
        let recording = decoder.record(&f["latents"]).unwrap();
        let forward = relative(recording.image(), &f["image"]);
        let grad = decoder.backward(recording, &f["grad"]).unwrap();
        let backward = relative(&grad, &f["latents_grad"]);
        println!("{case}.{dialect}: image {forward:.1e}, gradient {backward:.1e}");
        let near = forward <= bound::value(1e-5) && backward <= bound::gradient(1e-5);
        assert!(near, "{case}.{dialect}: {forward} {backward}");
    }
}

#[test]
fn recompute_and_slicing_change_nothing() {
    for case in [
        "sd15", "plain", "flux2", "wan", "taesd", "wan22", "hunyuan", "dc",
    ] {
        let f = io(case);
        for (slicing, recompute) in [
            (true, Recompute::None),
            (false, Recompute::Blocks),
            (true, Recompute::Blocks),
        ] {
            let config = VaeConfig {
                slicing,
                recompute,
                ..config(case)
            };
            let decoder = decoder(&format!("{case}.diffusers"), &config);
            let recording = decoder.record(&f["latents"]).unwrap();
            assert!(
                relative(recording.image(), &f["image"]) <= bound::value(1e-5),
                "{case}"
            );
            let grad = decoder.backward(recording, &f["grad"]).unwrap();
            assert!(
                relative(&grad, &f["latents_grad"]) <= bound::gradient(1e-5),
                "{case}"
            );
            let _host_has_grad_mode_off = tch::no_grad_guard();
            let again = decoder.vjp(&f["latents"], &f["grad"]).unwrap();
            assert!(relative(&again, &grad) <= bound::gradient(1e-6), "{case}");
            assert!(!again.requires_grad());
        }
    }
}

#[test]
fn sixteen_bit_gradients_point_the_same_way() {
    // f16 is slow on a CPU: one family with GroupNorm and one with RMS_norm have to do.
    let f16 = [("sd15", Precision::F16), ("wan", Precision::F16)];
    let bf16 = ["sd15", "flux2", "wan", "taesd"].map(|case| (case, Precision::Bf16));
    for (case, dtype) in f16.into_iter().chain(bf16) {
        let f = io(case);
        for recompute in [Recompute::None, Recompute::Blocks] {
            let config = VaeConfig {
                dtype,
                recompute,
                ..config(case)
            };
            let decoder = decoder(&format!("{case}.diffusers"), &config);
            // As small as a loss's gradient is: f16 would flush it to zero.
            let small = &f["grad"] * 1e-7;
            let grad = decoder.vjp(&f["latents"], &small).unwrap();
            assert_eq!(grad.kind(), Kind::Float);
            let cosine = cosine(&grad, &f["latents_grad"]);
            println!("{case} {dtype:?} {recompute:?}: cosine {cosine:.5}");
            assert!(cosine >= 0.99, "{case} {dtype:?} {cosine}");
        }
    }
}

#[test]
fn gradient_equals_finite_differences() {
    for case in ["sd15", "wan", "taesd"] {
        let f = io(case);
        let decoder = decoder(&format!("{case}.diffusers"), &config(case));
        let grad = decoder.vjp(&f["latents"], &f["grad"]).unwrap();
        // Along the gradient itself the difference is largest against rounding.
        let direction = &grad / grad.norm();
        let value = |step: f64| {
            let image = decoder
                .decode(&(&f["latents"] + &direction * step))
                .unwrap();
            (image.to_kind(Kind::Double) * &f["grad"])
                .sum(Kind::Double)
                .double_value(&[])
        };
        let step = 1e-2;
        let numeric = (value(step) - value(-step)) / (2.0 * step);
        let analytic = grad.norm().double_value(&[]);
        let error = (numeric - analytic).abs() / analytic;
        assert!(error < 5e-3, "{case}: {numeric} {analytic}");
    }
}

#[test]
fn a_hosts_tensors_are_shared() {
    let host = tensors("sd15.diffusers");
    let weight = host
        .iter()
        .find(|(name, _)| name == "decoder.conv_out.weight")
        .map(|(_, t)| t.shallow_clone())
        .unwrap();
    let decoder = Decoder::from_tensors(host, &config("sd15"), device()).unwrap();
    let f = io("sd15");
    let before = decoder.decode(&f["latents"]).unwrap();
    let _written = weight.detach().zero_();
    let after = decoder.decode(&f["latents"]).unwrap();
    assert!(
        relative(&after, &before) > 0.01,
        "the host's weight was copied"
    );
}

#[test]
fn torchscript_decodes_what_nothing_else_does() {
    let config = VaeConfig {
        path: Some(fixture("decoders/taef1.torchscript.pt")),
        latent_channels: Some(16),
        family: Some(VaeFamily::Torchscript),
        ..Default::default()
    };
    let unnamed = VaeConfig {
        family: None,
        ..config.clone()
    };
    let Err(error) = Decoder::load(&unnamed, device()) else {
        panic!("a program ran that nobody had asked for");
    };
    assert_eq!(error.status(), 8, "{error}");
    assert!(error.message().contains("runs code"), "{error}");
    let decoder = Decoder::load(&config, device()).unwrap();
    assert_eq!(decoder.family(), VaeFamily::Torchscript);
    let f = io("taef1");
    let image = decoder.decode(&f["latents"]).unwrap();
    assert!(relative(&image, &f["image"]) <= bound::value(1e-5));
    let grad = decoder.vjp(&f["latents"], &f["grad"]).unwrap();
    assert!(relative(&grad, &f["latents_grad"]) <= bound::gradient(1e-5));
    let unit = VaeConfig {
        image_range: ImageRange::Unit,
        ..config.clone()
    };
    let raw = Decoder::load(&unit, device()).unwrap();
    let raw = raw.decode(&f["latents"]).unwrap();
    assert!(relative(&((raw + 1.0) / 2.0), &f["image"]) <= bound::value(1e-5));
    let nameless = VaeConfig {
        latent_channels: None,
        ..config
    };
    let error = Decoder::load(&nameless, device()).err().unwrap();
    assert!(error.message().contains("latent_channels"), "{error}");
}

#[test]
fn what_a_file_tells_is_reported() {
    let flux2 = decoder("flux2.diffusers", &config("flux2"));
    assert_eq!(flux2.format(), Some(&LatentFormat::Flux2));
    assert_eq!((flux2.channels(), flux2.scale_factor()), (32, 8));
    assert_eq!(flux2.patch_stats().unwrap().mean.size(), [128]);
    let kl = decoder("sd15.diffusers", &config("sd15"));
    assert_eq!(kl.format(), None, "SD1.5 and SDXL have the same tensors");
    let place = facegrad::tensor::device_name(device());
    assert_eq!(
        kl.description(),
        format!("Kl decoder, 4 latent channels, x8, Float on {place}")
    );
    let tiny = decoder("taesd.bare", &VaeConfig::default());
    assert_eq!(tiny.format(), Some(&LatentFormat::None));
}

#[test]
fn files_that_do_not_fit_are_named() {
    let build = |list: Vec<(String, Tensor)>, config: &VaeConfig| {
        let error = Decoder::from_tensors(list, config, device()).err().unwrap();
        (error.status(), error.message().to_string())
    };
    let without = |name: &str| -> Vec<(String, Tensor)> {
        let all = tensors("sd15.diffusers");
        all.into_iter().filter(|(n, _)| n != name).collect()
    };
    let kl = config("sd15");
    let (status, text) = build(without("decoder.conv_out.weight"), &kl);
    assert!(
        status == 103 && text.contains("missing tensor decoder.conv_out.weight"),
        "{text}"
    );
    let mut extra = tensors("sd15.diffusers");
    let one = Tensor::ones([1], (Kind::Float, device()));
    extra.push((
        "decoder.up_blocks.0.attentions.0.x".into(),
        one.shallow_clone(),
    ));
    let (status, text) = build(extra, &kl);
    assert!(status == 103 && text.contains("attentions.0.x"), "{text}");
    let (status, text) = build(tensors("sd15.diffusers"), &VaeConfig::default());
    assert!(status == 103 && text.contains("norm_num_groups"), "{text}");
    let other = VaeConfig {
        family: Some(VaeFamily::Tiny),
        ..kl.clone()
    };
    let (status, text) = build(tensors("sd15.diffusers"), &other);
    assert!(
        status == 103 && text.contains("Tiny") && text.contains("Kl"),
        "{text}"
    );
    let (status, text) = build(vec![("fc.weight".into(), one)], &kl);
    assert!(status == 103 && text.contains("fc.weight"), "{text}");
    let (status, _) = build(vec![], &kl);
    assert_eq!(status, 103);
    let error = Decoder::load(&VaeConfig::default(), device())
        .err()
        .unwrap();
    assert_eq!(error.status(), 8);
}

#[test]
fn latents_that_do_not_fit_are_named() {
    let decoder = decoder("taesd.diffusers", &VaeConfig::default());
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, device()));
    let status = |x: &Tensor| decoder.decode(x).unwrap_err().status();
    assert_eq!(status(&zeros(&[1, 16, 4, 4], Kind::Float)), 5);
    assert_eq!(status(&zeros(&[4, 4, 4], Kind::Float)), 5);
    assert_eq!(status(&zeros(&[0, 4, 4, 4], Kind::Float)), 5);
    assert_eq!(status(&zeros(&[1, 4, 0, 4], Kind::Float)), 5);
    assert_eq!(status(&zeros(&[1, 4, 4, 4], Kind::Int64)), 4);
    let latents = zeros(&[1, 4, 4, 4], Kind::Float);
    let wrong = zeros(&[1, 3, 8, 8], Kind::Float);
    assert_eq!(decoder.vjp(&latents, &wrong).unwrap_err().status(), 5);
}
