//! Everything that is compared with PyTorch, diffusers, insightface and ONNX Runtime, in one program: every further
//! program that uses libtorch takes as long to build as this one. It runs on the device that `FACEGRAD_TEST_DEVICE` names
//! (`common/device.rs`).
#![cfg(feature = "torch")]

#[path = "../common/mod.rs"]
mod common;
mod decoder_files;
mod decoders;
mod detect;
mod evaluate;
mod latent;
mod loss;
mod nets;
mod photograph;
mod step;
mod windows;

use std::path::Path;

/// What a test computes on the CPU where a GPU was asked for proves nothing, and still passes. So no test names a device, and
/// none makes a tensor in a way that does not ask for one: `common` has `device()`, `read`, `row` and `randn`.
#[test]
fn every_tensor_and_every_network_is_on_the_device_of_the_suite() {
    const ELSEWHERE: [&str; 9] = [
        "Device",
        "to_device",
        "from_array",
        "from_slice",
        "from_data",
        "from_blob",
        "Tensor::from(",
        "Tensor::read_",
        "Tensor::load",
    ];
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite")];
    let (mut found, mut files) = (vec![], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("main.rs") {
                files += 1;
                let text = std::fs::read_to_string(&path).unwrap();
                let lines = text.lines().enumerate();
                let named = lines.filter(|(_, line)| ELSEWHERE.iter().any(|w| line.contains(w)));
                found.extend(named.map(|(at, line)| format!("{path:?}:{}: {line}", at + 1)));
            }
        }
    }
    assert!(files > 10, "only {files} files");
    assert!(found.is_empty(), "{}", found.join("\n"));
}
