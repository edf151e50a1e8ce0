//! Where the tests find real data and fixtures.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::PathBuf;

/// A file of the real test data, or `None` with one line where it is not at hand.
pub fn data(rel: &str) -> Option<PathBuf> {
    let root = std::env::var("FACEGRAD_TEST_DATA").unwrap_or_else(|_| "../shared/data".into());
    let path = PathBuf::from(root).join(rel);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{} is missing; set FACEGRAD_TEST_DATA",
        path.display()
    );
    eprintln!("skipped: {} is not here", path.display());
    None
}

/// A file that `make fixtures` writes.
pub fn fixture(rel: &str) -> PathBuf {
    let root = std::env::var("FACEGRAD_FIXTURES").unwrap_or_else(|_| "target/fixtures".into());
    let path = PathBuf::from(root).join(rel);
    assert!(
        path.exists(),
        "{} is missing; run `make fixtures`",
        path.display()
    );
    path
}
