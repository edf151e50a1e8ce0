//! The fused step with real networks on a real photograph: SCRFD, MobileFaceNet, and the TAEF2 and KL
//! decoders that share one latent space.

use crate::common::{Tensors, bound, cosine, data, device, numbers, onnxruntime, read};
use facegrad::batch::{Decoded, Located, Outcome, Targets};
use facegrad::config::{BackboneConfig, DetectorConfig, LossConfig, VaeConfig, parse};
use facegrad::detect::Detector;
use facegrad::face::FacePlace;
use facegrad::loss::Loss;
use facegrad::nets::vae::Decoder;
use facegrad::nets::{Levels, Recogniser};
use facegrad::pipeline::Pipeline;
use facegrad::shared::Shared;
use facegrad::step::{Step, StepLoss};
use serde_json::json;
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};

/// The astronaut's landmarks in `golden/detections_det_500m_640.json`, moved to the golden crop at (160, 64).
const LANDMARKS: [[f64; 2]; 5] = [
    [44.132, 36.588],
    [86.769, 39.56],
    [63.84, 65.15],
    [41.981, 75.711],
    [85.245, 78.344],
];

fn shared<T>(value: T) -> Shared<T> {
    Arc::new(Mutex::new(value))
}

struct World {
    detector: Shared<Detector>,
    recogniser: Shared<Recogniser>,
    /// `[1,32,16,16]`, the latent of the astronaut's face.
    latent: Tensor,
    /// `[1,3,112,112]`, an aligned crop of another person.
    other: Tensor,
}

impl World {
    /// `None` without the real data.
    fn open() -> Option<World> {
        let golden = data("golden/taef2_astronaut_crop_y64x160_128.npz")?;
        let detector = json!({
            "path": data("models/det_500m.onnx")?, "det_sizes": [128], "onnxruntime": onnxruntime(),
        });
        let detector: DetectorConfig = parse("test", &detector.to_string()).unwrap();
        let recogniser = json!({
            "path": data("models/foamliu_mobilefacenet_128d_112.onnx")?,
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        });
        let recogniser: BackboneConfig = parse("test", &recogniser.to_string()).unwrap();
        let (_, latent) = read(&golden)
            .into_iter()
            .find(|(n, _)| n == "latent")
            .unwrap();
        // The second of the golden crops is B_lady_1.
        let other = Tensors::open("golden/golden.safetensors")
            .get("crops")
            .narrow(0, 1, 1);
        Some(World {
            detector: shared(Detector::new(&detector, device()).unwrap()),
            recogniser: shared(Recogniser::load(&recogniser, device()).unwrap()),
            latent,
            other,
        })
    }

    fn loss(&self, json: serde_json::Value, vae: &Shared<Decoder>) -> StepLoss {
        let config = LossConfig::parse(&json.to_string()).unwrap();
        let levels = Levels::new(config.levels.as_ref(), &self.recogniser.lock().unwrap());
        let pipeline = Pipeline {
            levels: levels.unwrap(),
            detector: Some(self.detector.clone()),
            recogniser: self.recogniser.clone(),
            align_mode: config.face_align_mode,
            choice: config.face_choice,
            index: config.face_index,
            is_score: config.is_score(),
        };
        StepLoss::new(shared(Loss::new(config, pipeline)), Some(vae.clone()))
    }

    /// The other person's crop as reference, whose landmarks are the template's.
    fn targets(&self, faces: Vec<FacePlace>) -> Targets {
        Targets {
            references: Some(self.other.shallow_clone()),
            reference_faces: vec![FacePlace {
                bbox: None,
                landmarks: Some(facegrad::face::template(112)),
            }],
            faces,
            ..Targets::default()
        }
    }
}

fn decoder(path: std::path::PathBuf, dtype: &str) -> Shared<Decoder> {
    let json = json!({ "path": path, "dtype": dtype }).to_string();
    let config: VaeConfig = parse("test", &json).unwrap();
    shared(Decoder::load(&config, device()).unwrap())
}

fn latents(x: &Tensor) -> Step {
    Step {
        x_t: None,
        prediction: x.shallow_clone(),
        times: vec![],
        coefficients: vec![],
        size: None,
        number: 0,
        gradient_norm: None,
    }
}

#[test]
fn low_precision_keeps_the_directions() {
    let Some(world) = World::open() else { return };
    let config = json!({
        "face_align_mode": "kps", "prediction": {"kind": "sample"}, "latent_format": "none",
    });
    let known = FacePlace {
        bbox: None,
        landmarks: Some(LANDMARKS),
    };
    let Some(path) = data("models/kl_photo_decoder") else {
        return;
    };
    let run = |dtype: &str| {
        let vae = decoder(path.clone(), dtype);
        let targets = world.targets(vec![known]);
        let mut loss = world.loss(config.clone(), &vae);
        loss.step(&latents(&world.latent), &targets, true).unwrap()
    };
    let (want, want_gradient) = run("f32");
    for dtype in ["bf16", "f16"] {
        let (report, gradient) = run(dtype);
        let same = cosine(&gradient.unwrap(), want_gradient.as_ref().unwrap());
        println!("{dtype}: {same:.5}");
        assert!(same >= 0.99, "{dtype}: {same}");
        assert!((report.mean_distance - want.mean_distance).abs() < 0.01);
    }
}

/// Following the gradient makes the decoded picture's face the other person's, as the no-gradient road
/// (detection, crop, embedding of the finished picture) judges, and it stays a face.
#[test]
fn a_latent_optimised_by_the_gradient_shows_the_other_person() {
    let Some(world) = World::open() else { return };
    let Some(path) = data("models/taef2_decoder.pth") else {
        return;
    };
    let vae = decoder(path, "f32");
    let mut loss = world.loss(json!({
        "face_align_mode": "kps", "face_loss_weight": 1.0, "prediction": {"kind": "sample"}, "clamp": "straight_through",
    }), &vae);
    let judge = |x: &Tensor| {
        let picture = vae.lock().unwrap().decode(x).unwrap().clamp(0.0, 1.0);
        let faces = world.detector.lock().unwrap().detect(&picture).unwrap();
        let face = faces[0]
            .first()
            .expect("the picture still shows a face")
            .clone();
        let recogniser = world.recogniser.lock().unwrap();
        let crops = facegrad::align::align(
            &picture,
            &[facegrad::align::Crop {
                sample: 0,
                transform: facegrad::face::kps_transform(&face.landmarks.unwrap(), 112).unwrap(),
                border: facegrad::align::Border::Zeros,
            }],
            112,
        );
        let embeddings = recogniser.embed(&crops.unwrap()).unwrap();
        let reference = recogniser.embed(&world.other).unwrap();
        (
            numbers(&(embeddings * reference).sum(Kind::Float))[0],
            face.score,
        )
    };
    let mut x = world.latent.shallow_clone();
    let (before, _) = judge(&x);
    for _ in 0..30 {
        let (report, gradient) = loss
            .step(&latents(&x), &world.targets(vec![]), true)
            .unwrap();
        assert_eq!(report.samples[0].outcome, Outcome::Counted);
        let gradient = gradient.unwrap();
        let norm = gradient.norm();
        x = &x - gradient / norm * 2.0;
    }
    let (after, score) = judge(&x);
    println!("similarity {before:.3} -> {after:.3}, detection score {score:.3}");
    assert!(before < 0.2 && after > before + 0.4, "{before} -> {after}");
    assert!(score >= 0.5);
}

/// Where a face has to be found, the decode that finds it gives the statistics of its window too.
#[test]
fn one_decode_finds_the_face_and_the_statistics_of_its_window() {
    let Some(world) = World::open() else { return };
    let Some(path) = data("models/kl_photo_decoder") else {
        return;
    };
    let vae = decoder(path, "f32");
    let run = |decode: &str, faces: Vec<FacePlace>| {
        let mut loss = world.loss(json!({
            "face_align_mode": "kps", "prediction": {"kind": "sample"}, "latent_format": "none", "decode": decode,
        }), &vae);
        let at = Step {
            times: vec![0.3],
            ..latents(&world.latent)
        };
        let (report, gradient) = loss.step(&at, &world.targets(faces), true).unwrap();
        (report, gradient.unwrap())
    };
    let (whole, want) = run("full", vec![]);
    let (window, got) = run("window_only", vec![]);
    let sample = &window.samples[0];
    assert_eq!(sample.located, Located::Detected);
    assert_eq!(
        (sample.decoded, window.exact_passes()),
        (Decoded::WindowExact, 1)
    );
    assert!((window.loss / whole.loss - 1.0).abs() <= bound::value(1e-5));
    assert!(cosine(&got, &want) >= 0.998, "{}", cosine(&got, &want));
    // Told where the face is, it comes to the same.
    let known = FacePlace {
        bbox: None,
        landmarks: sample.landmarks,
    };
    let (told, same) = run("window_only", vec![known]);
    assert_eq!(told.exact_passes(), 1);
    assert!((told.loss / window.loss - 1.0).abs() <= bound::value(1e-5));
    assert!(cosine(&same, &got) >= 0.99999);
}

/// In a training with photographs, the statistics of most steps are predicted, and the gradients are near the whole image's.
/// Photographs of people that the model never met are decoded exactly.
#[test]
fn statistics_are_predicted_for_photographs_that_the_model_knows() {
    let Some(world) = &World::open() else { return };
    let Some(path) = data("models/kl_photo_decoder") else {
        return;
    };
    let vae = decoder(path, "f32");
    let loss = |more: serde_json::Value| {
        let mut config = json!({
            "face_align_mode": "kps", "prediction": {"kind": "sample"}, "latent_format": "none",
        });
        let keys = more.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(keys);
        world.loss(config, &vae)
    };
    let mut whole = loss(json!({}));
    let mut windows = loss(json!({"decode": "window_only", "norm_stats": "predicted"}));
    let photographs = Tensors::open("photographs.safetensors");
    let cases = |group: &str| {
        let get = |name: &str| photographs.get(&format!("{group}/{name}"));
        let (x0, landmarks) = (get("x0"), numbers(&get("landmarks")));
        let place = move |at: usize| FacePlace {
            bbox: None,
            landmarks: Some(std::array::from_fn(|p| {
                [0, 1].map(|axis| landmarks[10 * at + 2 * p + axis])
            })),
        };
        let step = move |at: usize, t: f64| Step {
            times: vec![t],
            ..latents(&x0.narrow(0, at as i64, 1))
        };
        let times = numbers(&get("t"));
        times.into_iter().enumerate().map(move |(at, t)| {
            let targets = world.targets(vec![place(at)]);
            (t, step(at, t), targets)
        })
    };
    let mut known = vec![];
    for (t, step, targets) in cases("seen") {
        let (report, got) = windows.step(&step, &targets, true).unwrap();
        if report.samples[0].decoded == Decoded::WindowPredicted {
            let (_, want) = whole.step(&step, &targets, true).unwrap();
            known.push((t, cosine(&got.unwrap(), &want.unwrap())));
        }
    }
    let mean = known.iter().map(|k| k.1).sum::<f64>() / known.len() as f64;
    let least = known.iter().map(|k| k.1).fold(1.0, f64::min);
    println!(
        "{} of 64 predicted, cosine {mean:.4} ({least:.4})",
        known.len()
    );
    assert!(known.len() >= 30, "{known:?}");
    assert!(mean >= 0.93 && least >= 0.68, "{mean} ({least}) {known:?}");

    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.safetensors");
    windows.save(&state).unwrap();
    let mut exact = 0;
    for (t, step, targets) in cases("unseen") {
        // Every photograph meets the model as the known ones left it.
        windows.restore(&state).unwrap();
        let (report, got) = windows.step(&step, &targets, true).unwrap();
        exact += report.exact_passes();
        if report.samples[0].decoded == Decoded::WindowPredicted {
            let (_, want) = whole.step(&step, &targets, true).unwrap();
            let cosine = cosine(&got.unwrap(), &want.unwrap());
            println!("never met, t = {t}: cosine {cosine:.4}");
            assert!(cosine >= 0.8, "{t}: {cosine}");
        }
    }
    println!("never met: {exact} of 24 exact");
    assert!(exact >= 12, "{exact}");
}
