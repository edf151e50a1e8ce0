//! Files of every kind read the same; hostile files are refused with a sentence.

mod common;

use common::{data, fixture};
use facegrad::weights::{self, Weights, onnx, strip};
use proptest::prelude::*;
use std::path::Path;

fn load(path: &Path) -> facegrad::error::Result<Weights> {
    weights::load(path, &|_| true)
}

fn read(name: &str) -> Weights {
    load(&fixture(&format!("weights/{name}"))).unwrap()
}

#[test]
fn zip_legacy_and_safetensors_agree() {
    let plain = read("plain.safetensors");
    assert_eq!(plain.len(), 10);
    for name in ["zip.pth", "legacy.pth", "deflated.pth"] {
        assert_eq!(read(name), plain, "{name}");
    }
}

#[test]
fn strided_windows_are_gathered() {
    let views = read("views.safetensors");
    assert_eq!(views["turned"].shape, [4, 2, 3]);
    for name in ["views.pth", "views_legacy.pth"] {
        assert_eq!(read(name), views, "{name}");
    }
}

#[test]
fn nested_dictionaries_are_flattened_and_wrappers_come_off() {
    for name in ["nested.pth", "nested_legacy.pth"] {
        let nested = read(name);
        assert!(
            nested.contains_key("state_dict.module.0.weight"),
            "{:?}",
            nested.keys()
        );
        assert_eq!(nested["parameter.p"].shape, [2]);
        let plain = strip(nested, &["0.weight"]);
        assert_eq!(plain["1.running_var"].shape, [3]);
        assert_eq!(plain["1.num_batches_tracked"].integers(), Some(vec![0]));
    }
}

#[test]
fn only_what_is_wanted_is_read() {
    let some = weights::load(&fixture("weights/zip.pth"), &|name| name == "a").unwrap();
    assert_eq!(some.keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn what_is_no_weights_file_says_what_to_do() {
    let cases = [
        ("evil.pth", 101, "system"),
        ("evil_legacy.pth", 101, "nothing was executed"),
        ("bomb.pth", 102, "longer than"),
        ("page.pth", 101, "web page"),
        ("pointer.pth", 101, "git lfs pull"),
        ("empty.pth", 101, "empty"),
        ("noise.bin", 101, "not a weights file"),
        ("script.pt", 101, "TorchScript"),
    ];
    for (name, status, words) in cases {
        let error = load(&fixture(&format!("weights/{name}"))).unwrap_err();
        assert_eq!(error.status(), status, "{name}: {error}");
        assert!(error.message().contains(words), "{name}: {error}");
        assert!(
            error.message().contains(name),
            "the error names the file: {error}"
        );
    }
    let missing = load(Path::new("no/such/file.pth")).unwrap_err();
    assert_eq!(missing.status(), 100);
    assert!(
        load(&fixture("weights"))
            .unwrap_err()
            .message()
            .contains("a folder")
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut");
    for name in [
        "weights/zip.pth",
        "weights/legacy.pth",
        "weights/plain.safetensors",
        "nets/small.onnx",
    ] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        for part in 0..60 {
            let length = bytes.len() * part / 60;
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(
                load(&path).is_err(),
                "{name} cut to {length} of {}",
                bytes.len()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..Default::default() })]

    /// Whatever is written over a file's bytes: an answer, never a panic.
    #[test]
    fn damage_never_panics(
        which in 0usize..5,
        hits in prop::collection::vec((0.0..1.0f64, any::<u8>()), 1..8),
    ) {
        let names = ["weights/zip.pth", "weights/legacy.pth", "weights/views_legacy.pth", "weights/plain.safetensors", "ops/shape_arithmetic.onnx"];
        let mut bytes = std::fs::read(fixture(names[which])).unwrap();
        for (at, value) in hits {
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = value;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged");
        std::fs::write(&path, &bytes).unwrap();
        let _ = load(&path);
        let _ = onnx::parse(&bytes);
    }
}

#[test]
fn real_files_read() {
    let Some(legacy) = data("models/foamliu_mobilefacenet.pt") else {
        return;
    };
    assert_eq!(load(&legacy).unwrap().len(), 307);
    let zip = load(&data("models/taef2_decoder.pth").unwrap()).unwrap();
    assert_eq!(zip.len(), 79);
    assert!(zip.values().all(|array| array.dtype == weights::Dtype::F16));
    let model = onnx::read(&data("models/det_500m.onnx").unwrap()).unwrap();
    assert_eq!((model.opset, model.outputs.len()), (11, 9));
    let digest = weights::sha256(&legacy).unwrap();
    assert_eq!(digest.len(), 64);
}
