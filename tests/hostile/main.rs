//! Files made to harm: each is answered with a sentence, in less than a second and with less memory than ten
//! times its size and a constant. The names say what a user saw before.

use facegrad::error::Error;
use facegrad::weights;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

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
    let start = busy();
    let result = targets::bounded(size, work);
    // Unoptimised and under valgrind everything takes longer, but not for ever.
    let took = busy() - start;
    assert!(took < Duration::from_secs(20), "{size} bytes took {took:?}");
    result
}

/// The processor's time of this thread, which other work on the machine does not lengthen.
#[cfg(unix)]
fn busy() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the place is a local.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The time that has passed, where a thread's own is not to be had.
#[cfg(not(unix))]
fn busy() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
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
