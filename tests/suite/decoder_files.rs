//! Decoders from real files: TAEF2's golden decode, a photographic KL decoder, diffusers' folders.

use crate::common::{bound, data, device, fixture, read};
use facegrad::config::{LatentFormat, VaeConfig, VaeFamily};
use facegrad::nets::vae::Decoder;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};

fn load(path: &Path) -> Decoder {
    let config = VaeConfig {
        path: Some(path.to_path_buf()),
        ..Default::default()
    };
    Decoder::load(&config, device()).unwrap()
}

fn golden() -> Option<HashMap<String, Tensor>> {
    let path = data("golden/taef2_astronaut_crop_y64x160_128.npz")?;
    Some(read(&path).into_iter().collect())
}

fn psnr(a: &Tensor, b: &Tensor) -> f64 {
    -10.0
        * (a - b)
            .square()
            .mean(Kind::Double)
            .double_value(&[])
            .log10()
}

#[test]
fn taef2_reproduces_its_golden_decode() {
    let (Some(path), Some(f)) = (data("models/taef2_decoder.pth"), golden()) else {
        return;
    };
    let decoder = load(&path);
    assert_eq!(decoder.family(), VaeFamily::Tiny);
    assert_eq!((decoder.channels(), decoder.scale_factor()), (32, 8));
    let image = decoder.decode(&f["latent"]).unwrap();
    let error = (&image - &f["decoded_unclipped"]).abs().max();
    assert!(error.double_value(&[]) < bound::value(1e-5), "{error:?}");
    assert!((psnr(&image.clamp(0.0, 1.0), &f["image"]) - 30.67).abs() < 0.05);
}

#[test]
fn an_encoders_file_is_refused() {
    let Some(path) = data("models/taef2_encoder.pth") else {
        return;
    };
    let config = VaeConfig {
        path: Some(path),
        ..Default::default()
    };
    let error = Decoder::load(&config, device()).err().unwrap();
    assert_eq!(error.status(), 103, "{error}");
}

#[test]
fn a_kl_decoder_gives_the_photograph_back() {
    let (Some(folder), Some(f)) = (data("models/kl_photo_decoder"), golden()) else {
        return;
    };
    let decoder = load(&folder);
    assert_eq!(decoder.family(), VaeFamily::Kl);
    // config.json: 8 groups, scaling 1, shift 0.
    assert_eq!(decoder.format(), Some(&LatentFormat::None));
    let image = decoder.decode(&f["latent"]).unwrap().clamp(0.0, 1.0);
    let psnr = psnr(&image, &f["image"]);
    assert!(psnr > 22.0, "{psnr} dB");
}

#[test]
fn a_config_beside_the_file_is_read_and_held_to() {
    let folder = tempfile::tempdir().unwrap();
    let vae = folder.path().join("vae");
    fs::create_dir(&vae).unwrap();
    let file = vae.join("diffusion_pytorch_model.safetensors");
    fs::copy(fixture("decoders/sd15.diffusers.safetensors"), &file).unwrap();
    let write = |text: &str| fs::write(vae.join("config.json"), text).unwrap();
    let config = VaeConfig {
        path: Some(folder.path().to_path_buf()),
        ..Default::default()
    };
    write(
        r#"{"_class_name":"AutoencoderKL","norm_num_groups":8,"scaling_factor":0.13025,"act_fn":"silu"}"#,
    );
    let decoder = Decoder::load(&config, device()).unwrap();
    assert_eq!(decoder.format(), Some(&LatentFormat::Sdxl));
    let failed = |text: &str| {
        write(text);
        let error = Decoder::load(&config, device()).err().unwrap();
        (error.status(), error.message().to_string())
    };
    let (status, text) = failed(r#"{"_class_name":"AutoencoderTiny"}"#);
    assert!(status == 103 && text.contains("AutoencoderTiny"), "{text}");
    let (status, text) = failed(r#"{"_class_name":"AutoencoderKLMochi"}"#);
    assert!(
        status == 3 && text.contains("AutoencoderKLMochi") && text.contains("hand the module over"),
        "{text}"
    );
    // Whatever the class is called: in a folder config.json is the model's own, and the same names may mean other layers.
    for class in [
        "VQModel",
        "AsymmetricAutoencoderKL",
        "UNet2DConditionModel",
        "MyDecoder",
    ] {
        let (status, text) = failed(&format!(r#"{{"_class_name":"{class}"}}"#));
        assert!(
            status == 3 && text.contains(class) && text.contains("hand the module over"),
            "{text}"
        );
        assert!(text.contains(&*file.to_string_lossy()), "{text}");
    }
    let (status, text) =
        failed(r#"{"_class_name":"AutoencoderKL","norm_num_groups":8,"act_fn":"mish"}"#);
    assert!(status == 3 && text.contains("mish"), "{text}");
    assert_eq!(failed("{").0, 8);
    fs::remove_file(&file).unwrap();
    assert_eq!(failed("{}").0, 100);
}

#[test]
fn a_checkpoint_tells_its_latent_format_by_the_networks_beside_the_vae() {
    let config = VaeConfig {
        path: Some(fixture("decoders/sd15.checkpoint.safetensors")),
        norm_num_groups: Some(8),
        ..Default::default()
    };
    let decoder = Decoder::load(&config, device()).unwrap();
    assert_eq!(decoder.format(), Some(&LatentFormat::Sd15));
}
