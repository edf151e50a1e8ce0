//! Files made to harm: each is answered with a sentence, in less than a second and with less memory than ten
//! times its size and a constant. The names say what a user saw before.

use facegrad::error::{Error, Result};
use facegrad::weights::{self, onnx};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use targets::zip;

#[path = "../fuzz/targets.rs"]
mod targets;

/// Memory is counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What `work` returns, within the budget of a file of `size` bytes.
fn within<T>(size: usize, work: impl FnOnce() -> T) -> T {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let start = Instant::now();
    let result = targets::bounded(size, work);
    // Unoptimised, on a busy machine and under valgrind everything takes longer, but not for ever.
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{size} bytes took {:?}",
        start.elapsed()
    );
    result
}

/// How a file is refused.
fn refused(bytes: &[u8]) -> Error {
    let error = within(bytes.len(), || weights::parse(bytes, &|_| true)).unwrap_err();
    assert!(error.message().len() < 4000, "{}", error.message().len());
    error
}

/// Refuses a file or reads it, but within its budget.
fn answered(bytes: &[u8]) {
    let _ = within(bytes.len(), || weights::parse(bytes, &|_| true));
}

/// As [`refused`], with the error's status and a part of its sentence.
#[track_caller]
fn refused_with(bytes: &[u8], status: i32, words: &str) {
    let error = refused(bytes);
    assert!(
        error.status() == status && error.message().contains(words),
        "{} {error}",
        error.status()
    );
}

mod proto {
    //! Messages of Protocol Buffers.

    pub fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = vec![];
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    pub fn int(number: u64, value: u64) -> Vec<u8> {
        [varint(number << 3), varint(value)].concat()
    }

    pub fn bytes(number: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
        let value = value.as_ref();
        [
            varint(number << 3 | 2),
            varint(value.len() as u64),
            value.to_vec(),
        ]
        .concat()
    }

    /// A model of operator set 11 with the fields of its graph.
    pub fn model(graph: &[Vec<u8>]) -> Vec<u8> {
        [int(1, 8), bytes(8, int(2, 11)), bytes(7, graph.concat())].concat()
    }

    pub fn node(op: &str, input: &str, output: &str) -> Vec<u8> {
        bytes(
            1,
            [bytes(1, input), bytes(2, output), bytes(4, op)].concat(),
        )
    }

    /// A float tensor with the given sizes and further fields.
    pub fn tensor(name: &str, sizes: &[u64], more: &[Vec<u8>]) -> Vec<u8> {
        let sizes: Vec<u8> = sizes.iter().flat_map(|&n| int(1, n)).collect();
        let head = [bytes(8, name), int(2, 1), sizes].concat();
        bytes(5, [head, more.concat()].concat())
    }
}

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
        [vec![0x0a, 2], vec![0x0a, 0]].concat(),
        [vec![0x0a, 2], vec![0x12, 0]].concat(),
    ] {
        let graph = empty.repeat((2 << 20) / empty.len());
        answered(&proto::model(&[graph]));
    }
    let many = [proto::int(20, 7), proto::bytes(8, vec![1; 4 << 20])].concat();
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
        assert!(error.status() == 101, "{outside}: {error}");
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
    std::fs::write(folder.path().join("d"), vec![0; 1 << 20]).unwrap();
    let place = proto::bytes(
        13,
        [proto::bytes(1, "location"), proto::bytes(2, "d")].concat(),
    );
    let graph: Vec<_> = (0..2000)
        .map(|at| proto::tensor(&format!("{at}"), &[1 << 18], &[place.clone()]))
        .collect();
    let bytes = proto::model(&graph);
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, &bytes).unwrap();
    let error = within(bytes.len() + (1 << 20), || onnx::read(&path)).unwrap_err();
    assert_eq!(error.status(), 102, "{error}");
}

fn torch(pickle: &[u8], deflate: bool) -> Vec<u8> {
    zip(&[
        ("a/data.pkl", pickle, deflate),
        ("a/data/0", &[0; 64], false),
    ])
}

/// A pickle's string.
fn text(text: &str) -> Vec<u8> {
    [
        &b"X"[..],
        &(text.len() as u32).to_le_bytes(),
        text.as_bytes(),
    ]
    .concat()
}

/// A persistent id that names a storage.
fn storage(key: &str, length: u8) -> Vec<u8> {
    let kind = b"ctorch\nFloatStorage\n".to_vec();
    let parts = [
        text("storage"),
        kind,
        text(key),
        text("cpu"),
        vec![b'K', length],
    ];
    [vec![b'('], parts.concat(), vec![b't', b'Q']].concat()
}

#[test]
fn a_small_torch_file_reads() {
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
        storage("0", 16),
        b"K\x02K\x02K\x03\x86K\x04K\x01\x86t".to_vec(),
        b"R".to_vec(),
    ];
    let pickle = [
        b"\x80\x02}".to_vec(),
        text("w"),
        tensor.concat(),
        b"s.".to_vec(),
    ]
    .concat();
    for deflate in [false, true] {
        let weights = weights::parse(&torch(&pickle, deflate), &|_| true).unwrap();
        assert_eq!(weights["w"].shape, [2, 3]);
        assert_eq!(weights["w"].data, vec![0; 24]);
    }
}

#[test]
fn a_1_kb_pickle_of_copied_sizes_took_20_gb() {
    let long = [
        b"\x80\x02(".to_vec(),
        b"K\x01".repeat(10_000),
        b"tq\x01".to_vec(),
    ]
    .concat();
    for call in [
        &b"ctorch\nSize\nq\x00h\x01\x85R"[..],
        b"ccollections\nOrderedDict\nh\x01\x85R",
        b"ctorch\nSize\nh\x01R",
        b"ccollections\nOrderedDict\nh\x01R",
        b"ctorch._utils\n_rebuild_parameter\nh\x01R",
    ] {
        let pickle = [long.clone(), call.repeat(30_000), vec![b'.']].concat();
        refused(&torch(&pickle, true));
        refused(&torch(&pickle, false));
    }
}

#[test]
fn storage_keys_of_a_megabyte_took_gigabytes() {
    let key = "A".repeat(1 << 20);
    let head = [b"\x80\x02".to_vec(), text(&key), b"q\x00".to_vec()].concat();
    let kind = b"ctorch\nFloatStorage\n".to_vec();
    let id = [
        text("storage"),
        kind,
        b"h\x00".to_vec(),
        text("cpu"),
        b"K\x01".to_vec(),
    ];
    let whole = [head.clone(), b"(".to_vec(), id.concat(), b"tq\x01".to_vec()].concat();
    let pickle = [whole, b"h\x01Q".repeat(20_000), vec![b'.']].concat();
    refused_with(&torch(&pickle, false), 101, "64 letters");
    // The same string as a module, as a key of a dictionary and as a member of many lists.
    for use_of_it in [
        &b"h\x00h\x00\x93"[..],
        b"}h\x00Ns",
        b"]h\x00a",
        b"h\x00\x85",
        b"h\x002",
    ] {
        let pickle = [head.clone(), use_of_it.repeat(20_000), vec![b'.']].concat();
        refused(&torch(&pickle, false));
    }
}

#[test]
fn dotted_names_of_dictionaries_in_dictionaries_took_the_power_of_their_depth() {
    // Each level holds the one below it many times, under long names.
    let key = "k".repeat(2000);
    let mut pickle = [b"\x80\x02".to_vec(), text(&key), b"q\x00}q\x01".to_vec()].concat();
    for level in 1u8..11 {
        pickle.push(b'}');
        for item in 0u8..60 {
            pickle.extend([b'K', item, b'h', level, b's']);
            pickle.extend([b'h', 0, b'h', level, b's']);
        }
        pickle.extend([b'q', level + 1]);
    }
    pickle.push(b'.');
    assert_eq!(refused(&torch(&pickle, false)).status(), 102);
}

#[test]
fn pickles_of_one_byte_instructions_stay_within_ten_times_their_size() {
    for program in [
        &b"N"[..],
        b"]",
        b"}",
        b")",
        b"(",
        b"K\x01",
        b"N2",
        b"Nq\x00",
        b"N\x94",
        b"]]a",
        b"U\x00",
    ] {
        let pickle = [
            b"\x80\x02".to_vec(),
            program.repeat((4 << 20) / program.len()),
            vec![b'.'],
        ]
        .concat();
        refused(&torch(&pickle, false));
        refused(&torch(&pickle, true));
    }
    // Memo slots far apart, and a claim of bytes that are not there.
    let slots: Vec<u8> = (0..200_000u32)
        .flat_map(|at| [&b"Nr"[..], &(at * 7919).to_le_bytes()].concat())
        .collect();
    refused(&torch(&[slots, vec![b'.']].concat(), false));
    for claim in [
        &b"X\xff\xff\xff\xff"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"B\xff\xff\xff\x7f",
    ] {
        refused_with(&torch(claim, false), 101, "cut off");
    }
}

#[test]
fn views_that_repeat_one_storage_stay_within_ten_times_the_file() {
    let view = |at: usize| {
        [
            text(&format!("w{at}")),
            b"ctorch._utils\n_rebuild_tensor_v2\n(h\x00".to_vec(),
            // 2²⁰ elements, every one of them the first.
            b"K\x00J\x00\x00\x10\x00\x85K\x00\x85t".to_vec(),
            b"R".to_vec(),
        ]
        .concat()
    };
    let views: Vec<u8> = (0..100).flat_map(view).collect();
    let pickle = [
        b"\x80\x02".to_vec(),
        storage("0", 16),
        b"q\x000}(".to_vec(),
        views,
        b"u.".to_vec(),
    ];
    refused_with(&torch(&pickle.concat(), false), 102, "bytes of memory");
}

#[test]
fn a_zip_directory_that_lies_is_refused() {
    let good = torch(b"\x80\x02}.", false);
    let end = good.len() - 22;
    let lie = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&file)
    };
    lie(end + 12, &u32::MAX.to_le_bytes());
    lie(end + 16, &u32::MAX.to_le_bytes());
    lie(end + 12, &7u32.to_le_bytes());
    // A bomb: a directory that claims gigabytes for a few bytes.
    let directory = u32::from_le_bytes(good[end + 16..end + 20].try_into().unwrap()) as usize;
    lie(directory + 24, &(1u32 << 31).to_le_bytes());
    lie(directory + 20, &(1u32 << 31).to_le_bytes());
    lie(directory + 42, &(1u32 << 31).to_le_bytes());
    let zeros = vec![0; 20 << 20];
    let bomb = zip(&[("a/data.pkl", &zeros, true)]);
    refused(&bomb);
    // Ends of archives and entries without end.
    let ends = [b"PK\x03\x04".to_vec(), b"PK\x05\x06".repeat(500_000)].concat();
    refused_with(&ends, 101, "damaged torch file");
    let locators = [
        good[..end].to_vec(),
        b"PK\x06\x07\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f\x01\0\0\0".to_vec(),
        good[end..].to_vec(),
    ]
    .concat();
    refused(&locators);
    let entry = [b"PK\x01\x02".to_vec(), vec![0; 42]].concat();
    let many = 60_000;
    let mut file = [b"PK\x03\x04".to_vec(), vec![0; 60]].concat();
    let start = file.len() as u32;
    for at in 0..many {
        let mut entry = entry.clone();
        entry[28] = 5;
        file.extend(entry);
        file.extend(format!("{at:05}").as_bytes());
    }
    let size = file.len() as u32 - start;
    file.extend(b"PK\x05\x06\0\0\0\0\0\0\0\0");
    file.extend([&size.to_le_bytes()[..], &start.to_le_bytes(), &[0, 0]].concat());
    refused_with(&file, 101, "without weights");
    refused_with(&zip(&[("a", b"", false), ("a", b"", false)]), 101, "twice");
}

#[test]
fn legacy_files_with_a_megabyte_as_a_key_are_refused_at_once() {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec();
    let head = [
        magic,
        b"\x80\x02M\xe9\x03.".to_vec(),
        b"\x80\x02}.".to_vec(),
    ]
    .concat();
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
        storage("0", 4),
        b"K\x00K\x04\x85K\x01\x85tR".to_vec(),
    ];
    let object = [
        b"\x80\x02}".to_vec(),
        text("w"),
        tensor.concat(),
        b"s.".to_vec(),
    ]
    .concat();
    let keys = |keys: Vec<u8>| [b"\x80\x02](".to_vec(), keys, b"e.".to_vec()].concat();
    let good = [
        head.clone(),
        object.clone(),
        keys(text("0")),
        vec![4, 0, 0, 0, 0, 0, 0, 0],
        vec![7; 16],
    ];
    let weights = weights::parse(&good.concat(), &|_| true).unwrap();
    assert_eq!(weights["w"].data, [7; 16]);
    let long = [
        text(&"A".repeat(1 << 20)),
        b"q\x00".to_vec(),
        b"h\x00".repeat(100_000),
    ]
    .concat();
    refused_with(
        &[head.clone(), object.clone(), keys(long)].concat(),
        101,
        "no tensor",
    );
    for count in [u64::MAX, 1 << 61, 1 << 40, 5] {
        let file = [
            head.clone(),
            object.clone(),
            keys(text("0")),
            count.to_le_bytes().to_vec(),
            vec![7; 16],
        ];
        refused_with(&file.concat(), 101, "cut off");
    }
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes().to_vec();
    [length, header.as_bytes().to_vec(), vec![0; data]].concat()
}

#[test]
fn safetensors_headers_stay_within_ten_times_their_size() {
    let entry = |name: &str, shape: &str, start: usize, end: usize| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
    };
    let good = safetensors(&format!("{{{}}}", entry("a", "2,3", 0, 6)), 6);
    assert_eq!(weights::parse(&good, &|_| true).unwrap()["a"].shape, [2, 3]);
    let with_text = format!(
        r#"{{"__metadata__":{{"t":"{}"}},{}}}"#,
        "x".repeat(1 << 20),
        entry("a", "2", 0, 2)
    );
    assert!(
        within(1 << 20, || weights::parse(
            &safetensors(&with_text, 2),
            &|_| true
        ))
        .is_ok()
    );
    for (header, data) in [
        (format!("{{{}}}", entry("a", "2,3", 0, 6)), 5),
        (format!("{{{}}}", entry("a", "2,3", 0, 6)), 7),
        (format!("{{{}}}", entry("a", "2,3", 0, 7)), 7),
        (format!("{{{}}}", entry("a", "2", 1, 3)), 3),
        (
            format!("{{{},{}}}", entry("a", "2", 0, 2), entry("b", "2", 1, 3)),
            3,
        ),
        (
            format!("{{{},{}}}", entry("a", "2", 0, 2), entry("a", "2", 2, 4)),
            4,
        ),
        (
            format!("{{{}}}", entry("a", "18446744073709551615,2", 0, 6)),
            6,
        ),
        (
            format!("{{{}}}", entry("a", &"1,".repeat(500_000), 0, 6)),
            6,
        ),
        (format!("{{{}}}", entry(&"a".repeat(1 << 20), "5", 0, 6)), 6),
        ("{".repeat(1 << 20), 0),
        (format!(r#"{{"a":{}"#, "[".repeat(1 << 20)), 0),
        (
            format!(r#"{{"__metadata__":{}"#, r#"{"a":"#.repeat(1 << 18)),
            0,
        ),
        (r#"{"dtype":"U8"}"#.into(), 0),
        (
            format!(
                r#"{{"a":{{"dtype":"{}","shape":[],"data_offsets":[0,1]}}}}"#,
                "U".repeat(1 << 20)
            ),
            1,
        ),
    ] {
        refused_with(&safetensors(&header, data), 101, "");
    }
    let many: Vec<String> = (0..60_000)
        .map(|at| entry(&format!("{at}"), "", at, at + 1))
        .collect();
    let bytes = safetensors(&format!("{{{}}}", many.join(",")), 60_000);
    within(bytes.len(), || weights::parse(&bytes, &|_| true)).unwrap();
    let empty: Vec<String> = (0..60_000)
        .map(|at| entry(&format!("{at}"), "0", 0, 0))
        .collect();
    let bytes = safetensors(&format!("{{{}}}", empty.join(",")), 0);
    within(bytes.len(), || weights::parse(&bytes, &|_| true)).unwrap();
    let mut claim = b"\xff\xff\xff\xff\xff\xff\xff\x7f{".to_vec();
    claim.extend([0; 20]);
    refused(&claim);
}

#[cfg(unix)]
#[test]
fn a_pipe_was_waited_for_and_a_device_read_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.onnx");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let link = folder.path().join("link.pth");
    std::os::unix::fs::symlink(&pipe, &link).unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let devices = [
        Path::new("/dev/zero"),
        Path::new("/dev/null"),
        Path::new("/dev/tty"),
    ];
    for path in devices
        .into_iter()
        .chain([pipe.as_path(), &link, &socket, folder.path()])
    {
        for error in [
            weights::load(path, &|_| true).unwrap_err(),
            weights::kind(path).unwrap_err(),
            onnx::read(path).unwrap_err(),
            weights::sha256(path).unwrap_err(),
        ] {
            assert!(
                error.message().contains("regular file") || error.message().contains("folder"),
                "{}: {error}",
                path.display()
            );
        }
        assert!(weights::text(path, 100).unwrap().is_none());
    }
}

#[test]
fn a_file_that_grows_while_it_is_read_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grows.safetensors");
    let bytes = safetensors(
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#,
        2,
    );
    std::fs::write(&path, &bytes).unwrap();
    let grow = |_: &str| {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap();
        file.write_all(&[0; 100]).unwrap();
        true
    };
    let error = weights::load(&path, &grow).unwrap_err();
    assert!(
        error.message().contains("changed while it was read"),
        "{error}"
    );
    std::fs::write(&path, &bytes).unwrap();
    let shrink = |_: &str| {
        std::fs::write(&path, b"").unwrap();
        true
    };
    assert_eq!(weights::load(&path, &shrink).unwrap_err().status(), 100);
}

/// Arrays of `bytes` bytes to save.
fn arrays(bytes: usize) -> weights::Weights {
    let array = weights::Array {
        dtype: weights::Dtype::U8,
        shape: vec![bytes],
        data: vec![7; bytes],
    };
    [("a".to_string(), array)].into()
}

#[test]
fn a_failed_save_left_its_part_behind() {
    let folder = tempfile::tempdir().unwrap();
    let listed = || {
        let files = std::fs::read_dir(folder.path()).unwrap().flatten();
        let mut names: Vec<_> = files
            .map(|f| f.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let path = folder.path().join("state");
    weights::write(&path, &arrays(10)).unwrap();
    weights::write(&path, &arrays(20)).unwrap();
    assert_eq!(weights::load(&path, &|_| true).unwrap(), arrays(20));
    assert_eq!(listed(), ["state"]);
    let inside = folder.path().join("missing/state");
    assert_eq!(
        weights::write(&inside, &arrays(10)).unwrap_err().status(),
        100
    );
    assert_eq!(
        weights::write(folder.path(), &arrays(10))
            .unwrap_err()
            .status(),
        100
    );
    assert_eq!(listed(), ["state"]);
}

#[cfg(unix)]
#[test]
fn a_save_replaced_a_device_with_a_file() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let (link, file) = (folder.path().join("link"), folder.path().join("file"));
    symlink("/dev/null", folder.path().join("null")).unwrap();
    for path in [&pipe, &folder.path().join("null")] {
        let error = weights::write(path, &arrays(10)).unwrap_err();
        assert!(error.message().contains("no regular file"), "{error}");
    }
    assert!(pipe.metadata().unwrap().file_type().is_fifo());
    std::fs::write(&file, b"old").unwrap();
    symlink("file", &link).unwrap();
    weights::write(&link, &arrays(10)).unwrap();
    assert!(link.is_symlink());
    assert_eq!(weights::load(&file, &|_| true).unwrap(), arrays(10));
}

/// The inputs of the reports themselves, where they are.
#[test]
fn the_reported_files_are_refused() {
    let Some(folder) = std::env::var_os("FACEGRAD_FAULTS") else {
        return;
    };
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        let mut bytes = std::fs::read(file.path()).unwrap();
        if file.path().extension().is_some_and(|e| e == "gz") {
            use std::io::Read;
            let mut unpacked = vec![];
            flate2::read::GzDecoder::new(&bytes[..])
                .read_to_end(&mut unpacked)
                .unwrap();
            bytes = unpacked;
        }
        let result = within(bytes.len(), || weights::parse(&bytes, &|_| true));
        println!("{:?}: {:?}", file.file_name(), result.map(|w| w.len()));
    }
}

/// What campaigns of `make fuzz` found worth keeping.
#[test]
fn the_corpora_of_the_fuzz_targets_replay() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, body) in targets::TARGETS {
        let folder = corpora.join(target);
        let files =
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut count = 0;
        for file in files.flatten() {
            println!("{}", file.path().display());
            body(&std::fs::read(file.path()).unwrap());
            count += 1;
        }
        assert!(count > 3, "{target}: {count} inputs");
    }
}
