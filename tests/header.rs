//! The header and the symbol list are what the sources make them. `make header` writes both anew.
#![cfg(feature = "torch")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The header's chapters in its order.
const SOURCES: [&str; 14] = [
    "ffi/types.rs",
    "tensor/view.rs",
    "ffi/global.rs",
    "ffi/context.rs",
    "ffi/detector.rs",
    "ffi/backbone.rs",
    "ffi/vae.rs",
    "ffi/host_vae.rs",
    "ffi/loss.rs",
    "ffi/step.rs",
    "ffi/sampler.rs",
    "ffi/graph.rs",
    "ffi/evaluator.rs",
    "ffi/api.rs",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn updating() -> bool {
    std::env::var_os("FACEGRAD_UPDATE_HEADER").is_some()
}

/// Compares a committed file with what it should be, or writes it.
fn check(path: &Path, want: &str) {
    if updating() {
        std::fs::write(path, want).unwrap();
    }
    let have = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        have == want,
        "{} is not what the sources make; run `make header` and commit it",
        path.display()
    );
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root().join("src").join(source));
    }
    let mut header = vec![];
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_current() {
    check(&root().join("include/facegrad.h"), &generated());
}

/// The functions of the header.
fn functions(header: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in header.lines() {
        if line.starts_with(' ') || line.starts_with('#') || line.starts_with("typedef") {
            continue;
        }
        if let Some(end) = line.find('(') {
            let start = line[..end].rfind([' ', '*']).map_or(0, |at| at + 1);
            found.insert(line[start..end].to_string());
        }
    }
    found
}

#[test]
fn exactly_the_headers_functions_are_exported() {
    let names = functions(&generated());
    assert!(names.len() > 20, "found only {names:?}");
    let list: String = names.iter().map(|name| format!("{name}\n")).collect();
    check(&root().join("abi/symbols.txt"), &list);

    let library = library();
    let nm = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(&library)
        .output();
    let nm = nm.expect("nm (binutils) lists the library's symbols");
    let exported: BTreeSet<String> = String::from_utf8_lossy(&nm.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().last().map(String::from))
        .collect();
    assert_eq!(exported, names, "{}", library.display());
}

#[test]
fn the_library_names_its_abi_and_stays_loaded() {
    let dynamic = Command::new("readelf")
        .arg("-d")
        .arg(library())
        .output()
        .unwrap();
    let dynamic = String::from_utf8_lossy(&dynamic.stdout).into_owned();
    assert!(dynamic.contains("libfacegrad.so.0.2"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
    assert!(
        !dynamic.contains("libtorch_cuda"),
        "one binary serves CPU and CUDA builds of torch"
    );
}

/// The cdylib that was built with this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.with_file_name("libfacegrad.so")
}

#[test]
fn the_version_text_names_the_torch_in_use() {
    // SAFETY: a static string with a NUL.
    let text = unsafe { std::ffi::CStr::from_ptr(facegrad::ffi::global::facegrad_version()) };
    let text = text.to_str().unwrap();
    assert_eq!(
        text,
        format!(
            "facegrad/{} torch/{}",
            env!("CARGO_PKG_VERSION"),
            facegrad::tensor::running_torch()
        )
    );
}

#[test]
fn every_status_has_its_name_and_number() {
    let header = generated();
    for status in (0..1000).filter(|&s| facegrad::error::status_name(s) != "unknown") {
        let ends = format!(" {status}\n");
        let defined = header.lines().any(|line| {
            let constant = line.starts_with("#define FACEGRAD_ERR_")
                || line.starts_with("#define FACEGRAD_OK");
            constant && format!("{line}\n").ends_with(&ends)
        });
        assert!(
            defined,
            "status {status} ({}) has no constant",
            facegrad::error::status_name(status)
        );
    }
}

/// Compiles the header alone in every language that the ABI promises.
#[test]
fn the_header_compiles_in_every_language() {
    let folder = tempfile::tempdir().unwrap();
    let languages = [
        ("cc", "c", "c99"),
        ("cc", "c", "c11"),
        ("c++", "c++", "c++11"),
        ("c++", "c++", "c++20"),
    ];
    for (compiler, language, standard) in languages {
        let source = folder.path().join(format!(
            "header.{}",
            if language == "c" { "c" } else { "cc" }
        ));
        let text = "#include \"facegrad.h\"\n#include \"facegrad.h\"\n\
                    int main(void) { return facegrad_abi_version() != FACEGRAD_ABI_VERSION; }\n";
        std::fs::write(&source, text).unwrap();
        let output = Command::new(compiler)
            .arg(format!("-std={standard}"))
            .args([
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
                "-fsyntax-only",
                "-I",
            ])
            .arg(root().join("include"))
            .arg(&source)
            .output()
            .unwrap_or_else(|e| panic!("{compiler}: {e}; install a C and C++ compiler"));
        assert!(
            output.status.success(),
            "{standard}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
