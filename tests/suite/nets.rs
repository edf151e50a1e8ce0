//! Recognisers and ONNX graphs against PyTorch and ONNX Runtime.

use crate::common::{self, Tensors, bound, cosine, data, device, fixture, max_abs, relative, row};
use facegrad::config::{BackboneConfig, Engine, Runtime};
use facegrad::error::Result;
use facegrad::nets::{OnnxGraph, Recogniser};
use facegrad::tensor::vjp;
use facegrad::weights::onnx;
use std::path::PathBuf;
use tch::{Kind, Tensor};

fn config(path: PathBuf) -> BackboneConfig {
    BackboneConfig {
        path,
        model: None,
        input_size: None,
        mean: None,
        std: None,
        color: None,
        dtype: None,
    }
}

fn recogniser(name: &str) -> Result<Recogniser> {
    Recogniser::load(&config(fixture(&format!("nets/{name}"))), device())
}

#[test]
fn every_operator_gives_what_onnx_runtime_gives() {
    let folder = fixture("ops");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".onnx")?
                    .to_string(),
            )
        })
        .collect();
    names.sort();
    assert!(names.len() > 50, "only {} cases", names.len());
    let mut wrong = vec![];
    for name in names {
        let expected = Tensors::open(&format!("ops/{name}.safetensors"));
        let made = onnx::read(&folder.join(format!("{name}.onnx")))
            .and_then(|model| OnnxGraph::new(&model, device(), Kind::Float))
            .and_then(|graph| graph.forward(&[&expected.get("x")]));
        match made {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(made) => {
                for (at, made) in made.iter().enumerate() {
                    let want = expected.get(&format!("y{at}"));
                    if made.size() != want.size() || max_abs(made, &want) > bound::value(2e-5) {
                        wrong.push(format!(
                            "{name}: output {at} {:?} for {:?}",
                            made.size(),
                            want.size()
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A model of the sweep, what ONNX Runtime makes of it, and where they differ. `None` where it is refused.
fn swept(model: &[u8], values: &Tensors, name: &str) -> Option<std::result::Result<(), String>> {
    let x = values.get(&format!("x/{name}"));
    let float = x.kind() == Kind::Float;
    let x = x.f_set_requires_grad(float).unwrap();
    let made = onnx::parse(model)
        .and_then(|model| OnnxGraph::new(&model, device(), Kind::Float))
        .and_then(|graph| graph.forward(&[&x]));
    let made = match made {
        Ok(made) => made,
        // Anything else is a defect: a file's fault is Format, Limit or Operator.
        Err(error) if (101..=104).contains(&error.status()) => return None,
        Err(error) => return Some(Err(format!("{name}: {error}"))),
    };
    for (at, made) in made.iter().enumerate() {
        let want = values.get(&format!("y{at}/{name}"));
        let made = made.detach().f_to_kind(want.kind()).unwrap();
        let close = made
            .f_allclose(&want, 1e-4, bound::value(2e-5), true)
            .unwrap_or(false);
        if made.size() != want.size() || !close {
            let (made, want) = (made.size(), want.size());
            return Some(Err(format!("{name}: output {at}, {made:?} for {want:?}")));
        }
    }
    if values.has(&format!("g/{name}")) {
        let count = x.numel() as i64;
        let direction = Tensor::f_arange(count + 1, (Kind::Float, device())).unwrap();
        let direction = direction
            .f_narrow(0, 1, count)
            .unwrap()
            .f_view_as(&x)
            .unwrap();
        let gradient = vjp(&made[0], &[&x], &direction, false).unwrap().remove(0);
        let want = values.get(&format!("g/{name}"));
        let near = bound::gradient(1e-4);
        if !gradient.f_allclose(&want, near, near, false).unwrap() {
            return Some(Err(format!("{name}: gradient {gradient} for {want}")));
        }
    }
    Some(Ok(()))
}

#[test]
fn every_attribute_gives_what_onnx_runtime_gives_or_is_refused() {
    let models = std::fs::read(fixture("sweep/graphs.bin")).unwrap();
    let values = Tensors::open("sweep/values.safetensors");
    let names: Vec<String> = values
        .names()
        .iter()
        .filter_map(|key| Some(key.strip_prefix("at/")?.into()))
        .collect();
    let (mut wrong, mut refused) = (vec![], vec![]);
    for name in &names {
        let at = values.numbers(&format!("at/{name}"));
        match swept(&models[at[0] as usize..at[1] as usize], &values, name) {
            None => refused.push(name.as_str()),
            Some(Ok(())) => {}
            Some(Err(text)) => wrong.push(text),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        names.len(),
        wrong.join("\n")
    );
    // Refusing is no way to pass.
    assert!(names.len() > 2500, "only {} cases", names.len());
    assert!(
        refused.len() * 20 < names.len(),
        "{} refused:\n{}",
        refused.len(),
        refused.join("\n")
    );
}

#[test]
fn one_network_in_every_file_gives_pytorchs_embeddings_and_gradients() {
    for net in ["small", "r18", "r50"] {
        let expected = Tensors::open(&format!("nets/{net}_expected.safetensors"));
        for file in ["pth", "safetensors", "onnx"]
            .map(|kind| format!("{net}.{kind}"))
            .into_iter()
            .chain([format!("{net}_wrapped.pth"), format!("{net}_single.onnx")])
        {
            let recogniser = recogniser(&file).unwrap();
            let crops = expected.get("crops").f_set_requires_grad(true).unwrap();
            let embeddings = recogniser.embed(&crops).unwrap();
            for reference in ["embeddings", "ort"] {
                let want = expected.get(reference);
                assert!(
                    max_abs(&embeddings, &want) <= 1e-4,
                    "{file} against {reference}"
                );
                assert!(
                    cosine(&embeddings, &want) >= 0.999999,
                    "{file} against {reference}"
                );
            }
            let gradient = vjp(&embeddings, &[&crops], &expected.get("direction"), false)
                .unwrap()
                .remove(0);
            let error = relative(&gradient, &expected.get("gradient"));
            assert!(
                error <= bound::gradient(1e-5),
                "{file}: gradient off by {error:e}"
            );
        }
    }
}

#[test]
fn low_precision_keeps_embeddings_and_gradients() {
    let expected = Tensors::open("nets/r18_expected.safetensors");
    for dtype in ["bf16", "f16"] {
        for file in ["nets/r18.pth", "nets/r18.onnx"] {
            let mut config = config(fixture(file));
            config.dtype = Some(dtype.into());
            let recogniser = Recogniser::load(&config, device()).unwrap();
            let crops = expected.get("crops").f_set_requires_grad(true).unwrap();
            let embeddings = recogniser.embed(&crops).unwrap();
            assert!(
                cosine(&embeddings, &expected.get("embeddings")) >= 0.99,
                "{file} {dtype}"
            );
            let gradient = vjp(&embeddings, &[&crops], &expected.get("direction"), false)
                .unwrap()
                .remove(0);
            assert!(
                cosine(&gradient, &expected.get("gradient")) >= 0.99,
                "{file} {dtype}"
            );
        }
    }
}

#[test]
fn depth_and_normalisation_are_reported() {
    let net = recogniser("r50.pth").unwrap();
    assert!(
        net.description()
            .starts_with("r50 on libtorch from r50.pth; 112x112 RGB"),
        "{}",
        net.description()
    );
    assert_eq!((net.dim(), net.input_size()), (64, 112));
    let empty = Tensor::f_zeros([0, 3, 112, 112], (Kind::Float, device())).unwrap();
    assert_eq!(net.embed(&empty).unwrap().size(), [0, 64]);

    let mut given = config(fixture("nets/r50.pth"));
    given.mean = Some([0.4, 0.4, 0.4]);
    given.color = Some(facegrad::config::ColorOrder::Bgr);
    let net = Recogniser::load(&given, device()).unwrap();
    assert!(
        net.description()
            .contains("BGR (from the config), mean [0.4, 0.4, 0.4]"),
        "{}",
        net.description()
    );
}

#[test]
fn wrong_weights_are_named() {
    let says = |result: Result<Recogniser>, status: i32, words: &str| {
        let error = result.err().unwrap();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains(words), "{error}");
    };
    says(recogniser("ir_se50.safetensors"), 103, "IR-SE50");
    says(recogniser("missing.safetensors"), 103, "layer2.0.bn2.bias");
    says(
        recogniser("extra.safetensors"),
        103,
        "layer1.0.se.fc1.weight",
    );
    let with = |change: fn(&mut BackboneConfig)| {
        let mut config = config(fixture("nets/r50.pth"));
        change(&mut config);
        Recogniser::load(&config, device())
    };
    says(with(|c| c.model = Some("r100".into())), 103, "those of r50");
    says(with(|c| c.dtype = Some("int8".into())), 8, "int8");
    says(with(|c| c.std = Some([0.0; 3])), 8, "std");
    says(with(|c| c.input_size = Some(128)), 8, "takes 112");
}

#[test]
fn an_input_that_is_not_square_sees_the_middle_of_the_crop() {
    let expected = Tensors::open("recognisers/tall.safetensors");
    let ort = Runtime {
        engine: Engine::Ort,
        library: Some(common::onnxruntime()),
        ..Runtime::default()
    };
    let path = fixture("recognisers/tall.onnx");
    for runtime in [
        Runtime {
            engine: Engine::Torch,
            ..Runtime::default()
        },
        ort,
    ] {
        let tall = Recogniser::load_frozen(&config(path.clone()), device(), &runtime).unwrap();
        assert_eq!((tall.dim(), tall.input_size()), (32, 112));
        assert!(
            tall.description().contains("112x96"),
            "{}",
            tall.description()
        );
        let crops = expected.get("crops");
        assert!(
            max_abs(&tall.embed(&crops).unwrap(), &expected.get("embeddings"))
                <= bound::value(1e-5)
        );
        let pixels: Vec<u8> = common::numbers(&crops)
            .iter()
            .map(|v| (v * 255.0).round() as u8)
            .collect();
        let halves: Vec<&[u8]> = pixels.chunks(3 * 112 * 112).collect();
        let rows = tall.embed_pixels(&halves).unwrap().concat();
        let rows = row(&rows).f_view([2, 32]).unwrap();
        assert!(max_abs(&rows, &expected.get("embeddings")) <= bound::value(1e-5));
    }
    let tall = Recogniser::load(&config(path), device()).unwrap();
    let crops = expected.get("crops").f_set_requires_grad(true).unwrap();
    let embeddings = tall.embed(&crops).unwrap();
    let direction = embeddings.f_zeros_like().unwrap();
    direction
        .f_narrow(1, 0, 1)
        .unwrap()
        .f_copy_(&Tensor::f_ones([2, 1], (Kind::Float, device())).unwrap())
        .unwrap();
    let gradient = vjp(&embeddings, &[&crops], &direction, false)
        .unwrap()
        .remove(0);
    assert!(relative(&gradient, &expected.get("gradient")) <= bound::gradient(1e-5));
}

#[test]
fn the_first_of_several_outputs_is_the_embedding() {
    let net = Recogniser::load(&config(fixture("recognisers/normed.onnx")), device()).unwrap();
    assert_eq!(net.dim(), 64);
}

#[test]
fn what_is_no_recogniser_is_named() {
    for (file, words) in [
        ("recognisers/numbers_1.onnx", "one number"),
        ("recognisers/numbers_3.onnx", "genderage"),
        ("recognisers/numbers_100.onnx", "100 numbers"),
        ("recognisers/numbers_212.onnx", "2d106det"),
        ("recognisers/map.onnx", "12544 numbers"),
        ("recognisers/norm_first.onnx", "one number"),
        ("detect/detector_9.onnx", "SCRFD detector"),
        (
            "recognisers/mobilefacenet.safetensors",
            "MobileFaceNet (NAME: mbf",
        ),
        ("recognisers/vit.safetensors", "torch2onnx.py"),
    ] {
        let path = fixture(file);
        for engine in [Engine::Torch, Engine::Ort] {
            if engine == Engine::Ort && !file.ends_with("onnx") {
                continue;
            }
            let library = (engine == Engine::Ort).then(common::onnxruntime);
            let runtime = Runtime {
                engine,
                library,
                ..Runtime::default()
            };
            let error = Recogniser::load_frozen(&config(path.clone()), device(), &runtime)
                .err()
                .unwrap();
            assert_eq!(error.status(), 103, "{file}: {error}");
            assert!(error.message().contains(words), "{file}: {error}");
        }
    }
}

#[test]
fn a_missing_operator_is_named_before_anything_runs() {
    let mut model = onnx::read(&fixture("ops/conv.onnx")).unwrap();
    model.nodes[0].op = "Einsum".into();
    let error = OnnxGraph::new(&model, device(), Kind::Float).err().unwrap();
    assert_eq!(error.status(), 104);
    assert!(
        error.message().contains("Einsum") && error.message().contains("opset 11"),
        "{error}"
    );
}

#[test]
fn the_real_recogniser_gives_the_golden_embeddings() {
    let Some(path) = data("models/foamliu_mobilefacenet_128d_112.onnx") else {
        return;
    };
    let golden = Tensors::open("golden/golden.safetensors");
    let crops = golden.get("crops");
    let plain = Recogniser::load(&config(path.clone()), device()).unwrap();
    assert!(cosine(&plain.embed(&crops).unwrap(), &golden.get("pm1_rgb")) >= 0.999999);
    let mut imagenet = config(path);
    imagenet.mean = Some([0.485, 0.456, 0.406]);
    imagenet.std = Some([0.229, 0.224, 0.225]);
    let net = Recogniser::load(&imagenet, device()).unwrap();
    let embeddings = net.embed(&crops).unwrap();
    assert!(max_abs(&embeddings, &golden.get("imagenet_rgb")) <= 1e-4);
}

#[test]
fn the_real_detectors_graph_gives_the_golden_outputs() {
    let Some(path) = data("models/det_500m.onnx") else {
        return;
    };
    let golden = Tensors::open("golden/golden.safetensors");
    let graph = OnnxGraph::new(&onnx::read(&path).unwrap(), device(), Kind::Float).unwrap();
    let outputs = graph.forward(&[&golden.get("probe/x")]).unwrap();
    assert_eq!(outputs.len(), 9);
    for (at, output) in outputs.iter().enumerate() {
        let error = max_abs(output, &golden.get(&format!("probe/{at}")));
        assert!(error <= 1e-4, "output {at}: {error:e}");
    }
}
