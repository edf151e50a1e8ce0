//! Recognisers and ONNX graphs against PyTorch and ONNX Runtime.

use crate::common::{Tensors, cosine, data, fixture, max_abs, relative};
use facegrad::config::BackboneConfig;
use facegrad::error::Result;
use facegrad::nets::{OnnxGraph, Recogniser};
use facegrad::tensor::vjp;
use facegrad::weights::onnx;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

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
    Recogniser::load(&config(fixture(&format!("nets/{name}"))), Device::Cpu)
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
            .and_then(|model| OnnxGraph::new(&model, Device::Cpu, Kind::Float))
            .and_then(|graph| graph.forward(&[&expected.get("x")]));
        match made {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(made) => {
                for (at, made) in made.iter().enumerate() {
                    let want = expected.get(&format!("y{at}"));
                    if made.size() != want.size() || max_abs(made, &want) > 2e-5 {
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
            assert!(error <= 1e-5, "{file}: gradient off by {error:e}");
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
            let recogniser = Recogniser::load(&config, Device::Cpu).unwrap();
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
            .starts_with("r50 from r50.pth; 112x112 RGB"),
        "{}",
        net.description()
    );
    assert_eq!((net.dim(), net.input_size()), (64, 112));
    let empty = Tensor::f_zeros([0, 3, 112, 112], (Kind::Float, Device::Cpu)).unwrap();
    assert_eq!(net.embed(&empty).unwrap().size(), [0, 64]);

    let mut given = config(fixture("nets/r50.pth"));
    given.mean = Some([0.4, 0.4, 0.4]);
    given.color = Some(facegrad::config::ColorOrder::Bgr);
    let net = Recogniser::load(&given, Device::Cpu).unwrap();
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
        Recogniser::load(&config, Device::Cpu)
    };
    says(with(|c| c.model = Some("r100".into())), 103, "those of r50");
    says(with(|c| c.dtype = Some("int8".into())), 8, "int8");
    says(with(|c| c.std = Some([0.0; 3])), 8, "std");
    says(with(|c| c.input_size = Some(128)), 8, "takes 112");
}

#[test]
fn a_missing_operator_is_named_before_anything_runs() {
    let mut model = onnx::read(&fixture("ops/conv.onnx")).unwrap();
    model.nodes[0].op = "Einsum".into();
    let error = OnnxGraph::new(&model, Device::Cpu, Kind::Float)
        .err()
        .unwrap();
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
    let plain = Recogniser::load(&config(path.clone()), Device::Cpu).unwrap();
    assert!(cosine(&plain.embed(&crops).unwrap(), &golden.get("pm1_rgb")) >= 0.999999);
    let mut imagenet = config(path);
    imagenet.mean = Some([0.485, 0.456, 0.406]);
    imagenet.std = Some([0.229, 0.224, 0.225]);
    let net = Recogniser::load(&imagenet, Device::Cpu).unwrap();
    let embeddings = net.embed(&crops).unwrap();
    assert!(max_abs(&embeddings, &golden.get("imagenet_rgb")) <= 1e-4);
}

#[test]
fn the_real_detectors_graph_gives_the_golden_outputs() {
    let Some(path) = data("models/det_500m.onnx") else {
        return;
    };
    let golden = Tensors::open("golden/golden.safetensors");
    let graph = OnnxGraph::new(&onnx::read(&path).unwrap(), Device::Cpu, Kind::Float).unwrap();
    let outputs = graph.forward(&[&golden.get("probe/x")]).unwrap();
    assert_eq!(outputs.len(), 9);
    for (at, output) in outputs.iter().enumerate() {
        let error = max_abs(output, &golden.get(&format!("probe/{at}")));
        assert!(error <= 1e-4, "output {at}: {error:e}");
    }
}
