//! What the fuzz targets do with their bytes, shared by the campaigns (`make fuzz`) and by the replay of their
//! corpora in `cargo test --test hostile`. Whatever comes: an answer, within the budget of a file of that
//! size.
#![allow(dead_code)]

use facegrad::config::{
    BackboneConfig, ContextConfig, DetectorConfig, EvaluatorConfig, LatentFormat, LossConfig,
    VaeConfig, parse,
};
use facegrad::error::Result;
use facegrad::weights::{self, ALLOWANCE, onnx};
use peak_alloc::PeakAlloc;
use std::io::Write;
use std::time::Duration;

#[global_allocator]
pub static MEMORY: PeakAlloc = PeakAlloc;

#[cfg(feature = "torch")]
#[path = "calls.rs"]
mod calls;
#[cfg(feature = "torch")]
#[path = "choices.rs"]
mod choices;
#[cfg(feature = "torch")]
#[path = "graphs.rs"]
mod graphs;
#[cfg(feature = "torch")]
#[path = "held.rs"]
mod held;
#[path = "proto.rs"]
pub mod proto;
#[cfg(feature = "torch")]
#[path = "steps/mod.rs"]
mod steps;

/// What a target does with its bytes.
pub type Body = fn(&[u8]);

/// The targets by name.
pub const TARGETS: &[(&str, Body)] = &[
    ("files", files),
    ("onnx", model),
    ("pickle", pickle),
    ("legacy", legacy),
    ("archive", archive),
    ("safetensors", safetensors),
    ("config", config),
    #[cfg(feature = "torch")]
    ("graph", graphs::graph),
    #[cfg(feature = "torch")]
    ("tensor", graphs::tensor),
    #[cfg(feature = "torch")]
    ("calls", calls::calls),
    #[cfg(feature = "torch")]
    ("steps", steps::steps),
];

/// No input may take longer. A second is the bound of every reader for a small file; code with counters for coverage and
/// with checks of every overflow is slower.
const LONGEST: Duration = Duration::from_secs(8);

/// Runs one target on one input, and measures the processor's time, which other work on the machine does not lengthen.
pub fn run(target: &str, data: &[u8]) {
    let (_, body) = TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .expect("a target of the table");
    let start = busy(Of::Process);
    body(data);
    let took = busy(Of::Process) - start;
    assert!(took < LONGEST, "{} bytes took {took:?}", data.len());
}

/// Whose time is measured.
#[derive(Clone, Copy)]
pub enum Of {
    /// That of all threads.
    Process,
    /// That of this thread.
    Thread,
}

/// The processor's time so far.
#[cfg(unix)]
pub fn busy(of: Of) -> Duration {
    let clock = match of {
        Of::Process => libc::CLOCK_PROCESS_CPUTIME_ID,
        Of::Thread => libc::CLOCK_THREAD_CPUTIME_ID,
    };
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the place is a local.
    let status = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(status, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The time that has passed, where the processor's is not to be had.
#[cfg(not(unix))]
pub fn busy(_: Of) -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

/// What `work` returns, with no more memory than a file of `size` bytes is allowed.
pub fn bounded<T>(size: usize, work: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = work();
    let kept = MEMORY.peak_usage().saturating_sub(before);
    assert!(
        kept <= 10 * size + ALLOWANCE + (8 << 20),
        "{size} bytes took {kept} bytes of memory"
    );
    result
}

fn answered<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(!error.message().is_empty() && error.message().len() < 4000);
            assert_ne!(error.status(), 900, "{error}");
            None
        }
    }
}

/// Any file: what it is, and its arrays, each of which must be as large as its sizes say.
fn files(data: &[u8]) {
    let arrays = answered(bounded(data.len(), || weights::parse(data, &|_| true)));
    let arrays = arrays.unwrap_or_default();
    for array in arrays.values() {
        let count = weights::Array::elements(&array.shape).expect("sizes that can be multiplied");
        assert_eq!(array.data.len(), count * array.dtype.size());
    }
    // What an error about a network says of the file.
    let names = weights::strip(arrays, &["conv1.weight"]);
    let listed = weights::listed(names.keys().map(String::as_str), 6);
    assert!(listed.len() < 4000);
}

/// An ONNX model: its nodes must be an order of computing.
fn model(data: &[u8]) {
    let Some(model) = answered(bounded(data.len(), || onnx::parse(data))) else {
        return;
    };
    let mut known: std::collections::HashSet<&str> =
        model.inputs.iter().map(|i| &*i.name).collect();
    known.extend(model.initializers.keys().map(String::as_str));
    for node in &model.nodes {
        assert!(
            node.inputs
                .iter()
                .all(|i| i.is_empty() || known.contains(&**i))
        );
        known.extend(node.outputs.iter().map(String::as_str));
    }
    assert!(model.outputs.iter().all(|o| known.contains(&*o.name)));
}

/// The pickle of a torch file, stored or deflated, with three small storages beside it.
fn pickle(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let storages: Vec<u8> = (0..64).collect();
    files(&zip_of(&[
        ("a/data.pkl", data, (how == 1).then(|| blocks(data))),
        ("a/byteorder", b"little", None),
        ("a/data/0", &storages, None),
        ("a/data/1", &storages[..8], None),
        ("a/data/2", b"", None),
    ]));
}

/// What follows the three headers of a file of torch before 1.6.
fn legacy(data: &[u8]) {
    const HEAD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    files(&[HEAD, data].concat());
}

/// A zip archive whose sizes, offsets and methods are damaged after its check sums were made.
fn archive(data: &[u8]) {
    let Some((&[at, low, high, ref damage @ ..], content)) = data.split_first_chunk::<12>() else {
        return;
    };
    let names = ["a/data.pkl", "a/byteorder", "a/data/0"];
    let entries: Vec<_> = names
        .iter()
        .zip(content.split(|&byte| byte == b'|'))
        .map(|(name, data)| (*name, data, (at & 15 == 1).then(|| blocks(data))))
        .collect();
    let mut file = zip_of(&entries);
    // From the end on, where the directory is.
    let from_end = usize::from(u16::from_le_bytes([low, high])) + 1;
    if let Some(start) = file.len().checked_sub(from_end) {
        let count = usize::from(at >> 4).min(damage.len()).min(from_end);
        file[start..start + count].copy_from_slice(&damage[..count]);
    }
    files(&file);
}

/// A header and, after the first zero byte, data.
fn safetensors(data: &[u8]) {
    let length = data.iter().position(|&b| b == 0).unwrap_or(data.len());
    files(&[&(length as u64).to_le_bytes(), data].concat());
}

/// The first byte chooses the configuration, the rest is its text.
fn config(data: &[u8]) {
    let Some((which, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    bounded(text.len(), || match which % 7 {
        0 => drop(answered(parse::<BackboneConfig>("recogniser", text))),
        1 => drop(answered(parse::<DetectorConfig>("detector", text))),
        2 => drop(answered(parse::<VaeConfig>("vae", text))),
        3 => drop(answered(parse::<LossConfig>("loss", text))),
        4 => drop(answered(parse::<EvaluatorConfig>("evaluator", text))),
        5 => drop(answered(parse::<ContextConfig>("context", text))),
        _ => drop(answered(parse::<LatentFormat>("format", text))),
    });
}

/// A zip archive of entries, stored or deflated (`true`).
pub fn zip(entries: &[(&str, &[u8], bool)]) -> Vec<u8> {
    let deflated = |data: &[u8]| {
        let fast = flate2::Compression::fast();
        let mut writer = flate2::write::DeflateEncoder::new(vec![], fast);
        writer.write_all(data).expect("memory takes everything");
        writer.finish().expect("memory takes everything")
    };
    let entries: Vec<_> = entries
        .iter()
        .map(|&(name, data, deflate)| (name, data, deflate.then(|| deflated(data))))
        .collect();
    zip_of(&entries)
}

/// A deflate stream of blocks that are not compressed. A compressor would take nine tenths of a campaign's time, and its
/// own branches would count as coverage.
fn blocks(data: &[u8]) -> Vec<u8> {
    let mut chunks: Vec<&[u8]> = data.chunks(usize::from(u16::MAX)).collect();
    if chunks.is_empty() {
        chunks.push(&[]);
    }
    let last = chunks.len() - 1;
    let mut stream = vec![];
    for (at, chunk) in chunks.into_iter().enumerate() {
        let length = chunk.len() as u16;
        stream.push(u8::from(at == last));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(chunk);
    }
    stream
}

/// An entry of a zip archive: name, content, and the content's deflate stream where it is not stored.
type Entry<'a> = (&'a str, &'a [u8], Option<Vec<u8>>);

/// A zip archive of entries.
fn zip_of(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (vec![], vec![]);
    for (name, data, deflated) in entries {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let packed = deflated.as_deref().unwrap_or(data);
        let start = file.len() as u32;
        let common = [
            &[
                20,
                0,
                0,
                0,
                if deflated.is_some() { 8 } else { 0 },
                0,
                0,
                0,
                0,
                0,
            ][..],
            &crc.sum().to_le_bytes(),
            &(packed.len() as u32).to_le_bytes(),
            &(data.len() as u32).to_le_bytes(),
            &(name.len() as u16).to_le_bytes(),
            &[0, 0],
        ]
        .concat();
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), packed].concat());
        let middle = [&[0; 10][..], &start.to_le_bytes()].concat();
        directory.extend([b"PK\x01\x02\x14\0", &common[..], &middle, name.as_bytes()].concat());
    }
    let start = file.len() as u32;
    let size = (directory.len() as u32).to_le_bytes();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend((entries.len() as u16).to_le_bytes().repeat(2));
    file.extend([&size[..], &start.to_le_bytes(), &[0, 0]].concat());
    file
}
