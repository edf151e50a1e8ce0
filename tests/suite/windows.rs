//! Windows of a decoder's image against the whole image, in value and gradient.

use crate::common::{bound, device, fixture, randn, read, relative};
use facegrad::config::{Precision, Recompute, Rect, VaeConfig, VaeFamily};
use facegrad::nets::vae::Decoder;
use tch::{Kind, Tensor};

const LATENT: (i64, i64) = (22, 30);

fn decoder(case: &str, recompute: Recompute, dtype: Precision) -> Decoder {
    let path = fixture(&format!("decoders/{case}.diffusers.safetensors"));
    let config = VaeConfig {
        norm_num_groups: (case != "hunyuan").then_some(8),
        recompute,
        dtype,
        ..Default::default()
    };
    Decoder::from_tensors(read(&path), &config, device()).unwrap()
}

fn latents(decoder: &Decoder, samples: i64) -> Tensor {
    randn(7, &[samples, decoder.channels(), LATENT.0, LATENT.1])
}

fn rect(x: i64, y: i64, width: i64, height: i64) -> Rect {
    Rect {
        x,
        y,
        width,
        height,
    }
}

fn cut(images: &Tensor, windows: &[Rect]) -> Tensor {
    let parts: Vec<Tensor> = (0..)
        .zip(windows)
        .map(|(row, r)| {
            let picture = images.narrow(0, row, 1);
            picture.narrow(2, r.y, r.height).narrow(3, r.x, r.width)
        })
        .collect();
    Tensor::cat(&parts, 0)
}

/// The gradient with respect to whole images that are looked at through windows alone.
fn around(windows: &[Rect], grad: &Tensor, size: &[i64]) -> Tensor {
    let whole = Tensor::zeros(size, (Kind::Float, device()));
    for (row, r) in (0..).zip(windows) {
        let picture = whole.narrow(0, row, 1);
        let mut place = picture.narrow(2, r.y, r.height).narrow(3, r.x, r.width);
        place.copy_(&grad.narrow(0, row, 1));
    }
    whole
}

/// Where faces may be in a batch of three: inside, at two borders, and one of them beside the picture.
fn places(scale: i64) -> [[Rect; 3]; 3] {
    let s = scale;
    [
        [
            rect(9 * s, 8 * s, 6 * s, 5 * s),
            rect(0, 0, 5 * s, 6 * s),
            rect(25 * s, 17 * s, 5 * s, 5 * s),
        ],
        [
            rect(9 * s + 3, 8 * s + 1, 1, 1),
            rect(40 * s, -20 * s, 3, 3),
            rect(-5, 21 * s, 9, 9),
        ],
        [
            rect(-50 * s, -60 * s, 200 * s, 200 * s),
            rect(3, 3, 2 * s, s),
            rect(1, 1, 1, 1),
        ],
    ]
}

/// Without GroupNorm a window is what the whole image shows there, and so is its gradient. With GroupNorm
/// that is so for the value, given the whole map's statistics.
#[test]
fn windows_are_the_whole_image_there() {
    for (case, exact) in [
        ("taesd", true),
        ("taef1", true),
        ("wan", true),
        ("qwen", true),
        ("sd15", false),
        ("flux", false),
        ("flux2", false),
        ("plain", false),
        ("wan22", true),
        ("hunyuan", false),
        ("dc", true),
    ] {
        let decoders =
            [Recompute::None, Recompute::Blocks].map(|r| decoder(case, r, Precision::F32));
        let plain = &decoders[0];
        assert_eq!(plain.needs_statistics(), !exact, "{case}");
        let x = latents(plain, 3);
        let (image, statistics) = plain.decode_with_statistics(&x).unwrap();
        assert_eq!(statistics.is_some(), !exact);
        assert!(relative(&image, &plain.decode(&x).unwrap()) <= bound::value(1e-5));
        // Where windows may lie is the same for all families: the two fastest have to do.
        let count = if ["taesd", "plain"].contains(&case) {
            3
        } else {
            1
        };
        for wanted in &places(plain.scale_factor())[..count] {
            let windows = plain.windows(wanted, LATENT);
            let there = cut(&image, &windows);
            let alone = plain.decode_windows(&x, &windows, None, statistics.as_ref(), None);
            let error = relative(&alone.unwrap(), &there);
            assert!(error <= bound::value(1e-5), "{case}: {error}");
            let grad = randn(8, &there.size());
            let want = exact.then(|| plain.vjp(&x, &around(&windows, &grad, &image.size())));
            for decoder in &decoders {
                let recording = decoder
                    .record_windows(&x, &windows, None, statistics.as_ref(), None)
                    .unwrap();
                let error = relative(recording.image(), &there);
                assert!(error <= bound::value(1e-5), "{case}: {error}");
                let got = decoder.backward(recording, &grad).unwrap();
                if let Some(want) = &want {
                    let error = relative(&got, want.as_ref().unwrap());
                    assert!(error <= bound::gradient(1e-5), "{case}: {error}");
                }
            }
        }
    }
}

/// With the statistics held still, the gradient is the derivative of the window's value.
#[test]
fn the_gradient_of_a_window_is_its_values() {
    for recompute in [Recompute::None, Recompute::Blocks] {
        let decoder = decoder("flux", recompute, Precision::F32);
        let x = latents(&decoder, 3);
        let (_, statistics) = decoder.decode_with_statistics(&x).unwrap();
        let windows = decoder.windows(&places(8)[0], LATENT);
        let recording = decoder
            .record_windows(&x, &windows, Some(2), statistics.as_ref(), None)
            .unwrap();
        let grad = randn(8, &recording.image().size());
        let got = decoder.backward(recording, &grad).unwrap();
        let direction = &got / got.norm();
        let value = |step: f64| {
            let moved = &x + &direction * step;
            let window =
                decoder.decode_windows(&moved, &windows, Some(2), statistics.as_ref(), None);
            (window.unwrap().to_kind(Kind::Double) * &grad)
                .sum(Kind::Double)
                .double_value(&[])
        };
        let numeric = (value(1e-2) - value(-1e-2)) / 2e-2;
        let error = (numeric / got.norm().double_value(&[]) - 1.0).abs();
        assert!(error < 5e-3, "{recompute:?}: {error}");
    }
}

/// A halo that cuts the receptive field leaves the inside of a window nearly as it is, and a wider one more so.
#[test]
fn a_wider_halo_is_nearer() {
    let decoder = decoder("flux", Recompute::None, Precision::F32);
    let x = latents(&decoder, 1);
    let (image, statistics) = decoder.decode_with_statistics(&x).unwrap();
    let windows = decoder.windows(&[rect(80, 64, 48, 48)], LATENT);
    let errors = [Some(0), Some(1), Some(2), Some(4), Some(13), None].map(|halo| {
        let window = decoder.decode_windows(&x, &windows, halo, statistics.as_ref(), None);
        relative(&window.unwrap(), &cut(&image, &windows))
    });
    println!("{errors:?}");
    // The last two are zero in exact arithmetic: their order is rounding's.
    assert!(errors[..5].is_sorted_by(|a, b| a >= b), "{errors:?}");
    assert!(errors[0] > 1e-3 && errors[4..].iter().all(|e| *e <= bound::value(1e-5)));
}

#[test]
fn sixteen_bits_are_near() {
    for (case, dtype) in [("flux", Precision::Bf16), ("wan", Precision::Bf16)] {
        let decoder = decoder(case, Recompute::Blocks, dtype);
        let x = latents(&decoder, 1);
        let (image, statistics) = decoder.decode_with_statistics(&x).unwrap();
        let windows = decoder.windows(&[rect(80, 64, 48, 48)], LATENT);
        let recording = decoder
            .record_windows(&x, &windows, None, statistics.as_ref(), None)
            .unwrap();
        let error = relative(recording.image(), &cut(&image, &windows));
        println!("{case} {dtype:?}: {error}");
        assert!(error <= 0.02, "{case} {dtype:?}: {error}");
    }
}

#[test]
fn torchscript_has_no_windows() {
    let config = VaeConfig {
        path: Some(fixture("decoders/taef1.torchscript.pt")),
        latent_channels: Some(16),
        family: Some(VaeFamily::Torchscript),
        ..Default::default()
    };
    let decoder = Decoder::load(&config, device()).unwrap();
    assert!(!decoder.has_windows());
    let x = Tensor::zeros([1, 16, 6, 8], (Kind::Float, device()));
    let windows = decoder.windows(&[rect(0, 0, 8, 8)], (6, 8));
    let error = decoder
        .decode_windows(&x, &windows, None, None, None)
        .unwrap_err();
    assert_eq!(error.status(), 3, "{error}");
    assert!(error.message().contains("TorchScript"), "{error}");
}
