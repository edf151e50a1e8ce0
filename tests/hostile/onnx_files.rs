//! ONNX models.

use super::targets::proto;
use super::{answered, refused, refused_with, within};
use facegrad::error::Result;
use facegrad::weights::onnx;
use std::time::{Duration, Instant};

#[test]
fn a_17_byte_onnx_with_a_length_of_a_terabyte_aborted() {
    for length in [1u64 << 31, 1 << 40, 1 << 62, u64::MAX] {
        for field in [7u64, 8, 14, 100] {
            let mut bytes = proto::int(1, 8);
            bytes.extend(proto::varint(field << 3 | 2));
            bytes.extend(proto::varint(length));
            bytes.extend([0; 8]);
            refused_with(&bytes, 101, "damaged ONNX model");
        }
    }
}

#[test]
fn a_13_byte_onnx_never_returned() {
    for length in 9..40 {
        let mut bytes = vec![0x08];
        bytes.extend(vec![0xff; length]);
        bytes.extend([0, 0]);
        refused(&bytes);
    }
}

#[test]
fn an_onnx_of_nested_groups_overflowed_the_stack() {
    let deep = [vec![0x08, 8], vec![0x0b; 200_000], vec![0x0c; 200_000]].concat();
    refused_with(&deep, 101, "wire type 3");
    // Sequences of sequences, maps of maps and graphs in graphs are as deep, and passed over or refused.
    for chain in [&[4u64, 1][..], &[5, 2], &[9, 1], &[8, 1]] {
        let mut kind = vec![];
        for level in 0..3000 {
            kind = proto::bytes(chain[level % chain.len()], kind);
        }
        let input = proto::bytes(11, [proto::bytes(1, "x"), proto::bytes(2, kind)].concat());
        let bytes = proto::model(&[input, proto::node("Relu", "x", "y")]);
        assert!(within(bytes.len(), || onnx::parse(&bytes)).is_ok());
    }
    let mut graph = vec![];
    for _ in 0..1000 {
        let attribute = [proto::int(20, 5), proto::bytes(6, graph)].concat();
        graph = proto::bytes(1, proto::bytes(5, attribute));
    }
    refused_with(&proto::model(&[graph]), 104, "control flow");
}

#[test]
fn an_onnx_of_empty_messages_took_a_hundred_times_its_size() {
    for empty in [
        vec![0x0a, 0],
        vec![0x5a, 0],
        vec![0x62, 0],
        vec![0x2a, 0],
        [vec![0x0a, 2], vec![0x2a, 0]].concat(),
        // A node with an attribute that is the integer 0.
        vec![0x0a, 5, 0x2a, 3, 0xa0, 1, 2],
        [vec![0x0a, 2], vec![0x0a, 0]].concat(),
        [vec![0x0a, 2], vec![0x12, 0]].concat(),
    ] {
        let graph = empty.repeat((2 << 20) / empty.len());
        answered(&proto::model(&[graph]));
    }
    let many = [proto::int(20, 7), proto::bytes(8, vec![1; (4 << 20) + 1])].concat();
    answered(&proto::model(&[proto::bytes(1, proto::bytes(5, many))]));
    let number = proto::int(8, 1).repeat(1 << 20);
    let many = [proto::int(20, 7), number].concat();
    answered(&proto::model(&[proto::bytes(1, proto::bytes(5, many))]));
}

#[test]
fn onnx_sizes_that_overflow_and_tensors_without_content_are_refused() {
    for sizes in [
        &[1 << 40, 1 << 20][..],
        &[1 << 62, 4],
        &[u64::MAX],
        &[1 << 30],
        &[1 << 32, 1 << 32, 0, 1 << 40],
    ] {
        let model = proto::model(&[proto::tensor("w", sizes, &[])]);
        assert_eq!(refused(&model).status(), 101);
    }
    let raw = proto::bytes(9, vec![0; 12]);
    let model = proto::model(&[proto::tensor("w", &[2, 2], &[raw])]);
    refused_with(&model, 101, "need 16 bytes");
    let packed = proto::bytes(4, vec![0; 4 << 20]);
    let model = proto::model(&[proto::tensor("w", &[2, 2], &[packed])]);
    refused_with(&model, 101, "more numbers");
    let model = proto::model(&[proto::tensor("w", &[1; 17], &[])]);
    refused_with(&model, 102, "dimensions");
}

#[test]
fn onnx_inputs_of_a_million_dimensions_are_refused() {
    let sizes = proto::bytes(1, proto::int(1, 2)).repeat(1 << 20);
    let kind = proto::bytes(1, proto::bytes(2, sizes));
    let input = proto::bytes(11, [proto::bytes(1, "x"), proto::bytes(2, kind)].concat());
    refused_with(&proto::model(&[input]), 102, "dimensions");
}

#[test]
fn an_onnx_graph_that_is_no_order_of_computing_is_refused() {
    use proto::{model, node};
    let cycle = model(&[node("Relu", "b", "a"), node("Relu", "a", "b")]);
    refused_with(&cycle, 101, "cycle");
    let twice = model(&[node("Relu", "", "a"), node("Relu", "", "a")]);
    refused_with(&twice, 101, "made twice");
    let nothing = model(&[node("Relu", "z", "a")]);
    refused_with(&nothing, 101, "which nothing makes");
    let long = "n".repeat(1 << 20);
    refused_with(&model(&[node("Relu", &long, &long)]), 101, "cycle");
}

#[test]
fn thousands_of_onnx_outputs_took_the_square_of_their_number() {
    let count = 4000;
    let mut graph = vec![];
    for at in 0..count {
        graph.push(proto::node("Relu", "", &format!("v{at}")));
        graph.push(proto::bytes(12, proto::bytes(1, format!("v{at}"))));
    }
    let bytes = proto::model(&graph);
    let start = Instant::now();
    let model = within(bytes.len(), || onnx::parse(&bytes)).unwrap();
    assert_eq!(model.outputs.len(), count);
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// A two-file model, as exporters write it: `w` lies in another file.
fn two_files(location: &str, offset: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| {
        proto::bytes(13, [proto::bytes(1, key), proto::bytes(2, value)].concat())
    };
    let place = [
        entry("location", location),
        entry("offset", offset),
        proto::int(14, 1),
    ];
    proto::model(&[proto::tensor("w", &[2], &place)])
}

#[test]
fn a_two_file_onnx_export_was_refused_with_the_wrong_advice() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("model");
    std::fs::create_dir_all(home.join("inner")).unwrap();
    let path = home.join("m.onnx");
    let data: Vec<u8> = (0..16).collect();
    for place in [
        home.join("m.data"),
        home.join("inner/m.data"),
        folder.path().join("secret"),
    ] {
        std::fs::write(place, &data).unwrap();
    }
    let read = |location: &str, offset: &str| -> Result<Vec<u8>> {
        std::fs::write(&path, two_files(location, offset)).unwrap();
        Ok(onnx::read(&path)?.initializers["w"].data.clone())
    };
    assert_eq!(read("m.data", "4").unwrap(), data[4..12]);
    assert_eq!(read("inner/m.data", "8").unwrap(), data[8..]);
    assert_eq!(read("./m.data", "0").unwrap(), data[..8]);
    let secret = folder.path().join("secret").display().to_string();
    for outside in [
        "../secret",
        "inner/../../secret",
        &secret,
        "..\\secret",
        "",
        ".",
    ] {
        let error = read(outside, "0").unwrap_err();
        let words = "which is not a file in the model's folder";
        assert!(
            error.status() == 101 && (outside == "." || error.message().contains(words)),
            "{outside}: {error}"
        );
    }
    let missing = read("other.data", "0").unwrap_err();
    assert!(
        missing.status() == 100 && missing.message().contains("put it beside the model"),
        "{missing}"
    );
    let cut = read("m.data", "12").unwrap_err();
    assert!(
        cut.status() == 101 && cut.message().contains("m.data"),
        "{cut}"
    );
    assert_eq!(
        read("m.data", "18446744073709551615").unwrap_err().status(),
        101
    );
    assert_eq!(read("m.data", "-1").unwrap_err().status(), 101);
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(folder.path().join("secret"), home.join("link")).unwrap();
        let error = read("link", "0").unwrap_err();
        assert!(
            error.message().contains("leaves the model's folder"),
            "{error}"
        );
        // The cache of huggingface_hub: links to files of other names, in one folder.
        let cache = folder.path().join("cache");
        std::fs::create_dir_all(cache.join("snapshot")).unwrap();
        std::fs::create_dir_all(cache.join("blobs")).unwrap();
        std::fs::write(cache.join("blobs/1"), two_files("m.data", "0")).unwrap();
        std::fs::write(cache.join("blobs/2"), &data).unwrap();
        symlink("../blobs/1", cache.join("snapshot/m.onnx")).unwrap();
        symlink("../blobs/2", cache.join("snapshot/m.data")).unwrap();
        let model = onnx::read(&cache.join("snapshot/m.onnx")).unwrap();
        assert_eq!(model.initializers["w"].data, data[..8]);
    }
    let error = onnx::parse(&two_files("m.data", "0")).unwrap_err();
    assert!(error.message().contains("another file"), "{error}");
}

#[test]
fn one_small_data_file_named_by_thousands_of_tensors_is_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    // One after the other and in turns.
    for names in [&["d"][..], &["d", "e"]] {
        for name in names {
            std::fs::write(folder.path().join(name), vec![0; 1 << 20]).unwrap();
        }
        let tensor = |at: usize| {
            let name = names[at % names.len()];
            let place = [proto::bytes(1, "location"), proto::bytes(2, name)].concat();
            proto::tensor(&format!("{at}"), &[1 << 18], &[proto::bytes(13, place)])
        };
        let bytes = proto::model(&(0..2000).map(tensor).collect::<Vec<_>>());
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, &bytes).unwrap();
        let size = bytes.len() + (names.len() << 20);
        let error = within(size, || onnx::read(&path)).unwrap_err();
        assert_eq!(error.status(), 102, "{error}");
    }
}
