//! safetensors, paths that are no files, and saving.

use super::{ALONE, refused, refused_with, within};
use facegrad::weights::{self, onnx};
use std::path::Path;

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
        (format!("{{{}}}", entry("a", &["1"; 17].join(","), 0, 1)), 1),
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

#[cfg(target_os = "linux")]
#[test]
fn a_save_that_cannot_be_renamed_leaves_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    // While the new file is written the old one becomes a folder, over which nothing can be renamed.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let named = |name: &str| name.ends_with(".part");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let files = std::fs::read_dir(folder.path()).unwrap().flatten();
                if files
                    .flat_map(|f| f.file_name().into_string())
                    .any(|n| named(&n))
                {
                    let _ = std::fs::create_dir_all(path.join("inside"));
                    return;
                }
            }
        });
        let error = weights::write(&path, &arrays(32 << 20)).unwrap_err();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(error.status(), 100, "{error}");
    });
    let files = std::fs::read_dir(folder.path()).unwrap().flatten();
    let names: Vec<_> = files.map(|f| f.file_name()).collect();
    assert_eq!(names, ["state"]);
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

/// A file of arrays without content.
fn named(names: impl Iterator<Item = String>) -> Vec<u8> {
    let entry = |name| format!(r#""{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let entries: Vec<String> = names.map(entry).collect();
    safetensors(&format!("{{{}}}", entries.join(",")), 0)
}

#[test]
fn a_hundred_thousand_names_took_minutes_to_list_in_an_error() {
    let file = named((0..100_000).map(|at| format!("k{at}.weight")));
    let text = within(file.len(), || {
        let weights = weights::parse(&file, &|_| true).unwrap();
        let plain = weights::strip(weights, &["conv1.weight"]);
        weights::listed(plain.keys().map(String::as_str), 6)
    });
    assert!(
        text.starts_with("k0.weight, ") && text.ends_with("and 99994 other groups"),
        "{text}"
    );
}

#[test]
fn a_name_of_a_megabyte_was_quoted_whole_and_compared_with_every_other() {
    let anchor = format!("{}.conv1.weight", "p".repeat(1 << 20));
    let file = named((0..100_000).map(|at| format!("k{at}")).chain([anchor]));
    let plain = within(file.len(), || {
        let weights = weights::parse(&file, &|_| true).unwrap();
        weights::strip(weights, &["conv1.weight"])
    });
    assert_eq!(plain.keys().collect::<Vec<_>>(), ["conv1.weight"]);
    let long = "n".repeat(1 << 20);
    assert!(weights::listed([long.as_str()].into_iter(), 6).len() < 200);
}
