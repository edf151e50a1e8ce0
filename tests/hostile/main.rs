//! Files made to harm: each is answered with a sentence, in less than a second and with less memory than ten
//! times its size and a constant. The names say what a user saw before.

use facegrad::error::Error;
use facegrad::weights;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use targets::Of;

mod files;
mod onnx_files;
#[path = "../../fuzz/targets.rs"]
mod targets;
mod torch_files;

/// Memory is counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What `work` returns, within the budget of a file of `size` bytes.
fn within<T>(size: usize, work: impl FnOnce() -> T) -> T {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let start = targets::busy(Of::Thread);
    let result = targets::bounded(size, work);
    // Unoptimised and under valgrind everything takes longer, but not for ever.
    let took = targets::busy(Of::Thread) - start;
    assert!(took < Duration::from_secs(20), "{size} bytes took {took:?}");
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
