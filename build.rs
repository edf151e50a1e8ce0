//! Compiles the part of the library that is made for one torch, and says how the core is linked.
//! `docs/torch.md` explains the two; `docs/abi.md` says what each link argument promises.

#[path = "torch/cut.rs"]
mod cut;

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    // Before version 1.0, every minor version is an ABI of its own, and the SONAME says so.
    let abi = version.rsplit_once('.').expect("x.y.z").0;
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libfacegrad.so.{abi}");
    // Rust's thread-local destructors do not survive dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // Dependencies export C symbols of their own; only ours may be seen.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    println!("cargo:rerun-if-env-changed=FACEGRAD_CORE_ALONE");
    let alone = env::var_os("FACEGRAD_CORE_ALONE").is_some();
    // A function of libtorch that torch/functions.txt lacks fails here and not in a host. A fuzz target counts coverage
    // with functions that only the fuzzer's own program has.
    if !alone && env::var_os("CARGO_CFG_FUZZING").is_none() {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
    }
    if env::var_os("CARGO_FEATURE_TORCH").is_some() {
        // The two libraries lie side by side.
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN");
        if let Err(text) = part(alone) {
            eprintln!("facegrad: {text}");
            std::process::exit(1);
        }
    }
}

/// Writes, compiles and links `libfacegrad_torch.so` for the torch in `LIBTORCH`. With `FACEGRAD_CORE_ALONE` no torch is
/// needed: the text of the part is written to be compiled later, and the core is linked to an empty library of that name.
fn part(alone: bool) -> Result<(), String> {
    println!("cargo:rerun-if-changed=torch");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=CXX");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let text = out.join("facegrad_torch.cc");
    write(&text, &part_text()?)?;
    // `target/<profile>`.
    let profile = out
        .ancestors()
        .nth(3)
        .expect("<profile>/build/facegrad-<hash>/out");
    for file in [&text, Path::new("torch/exports.map")] {
        copy(file, profile)?;
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    if alone {
        let empty = out.join("empty.c");
        write(&empty, "")?;
        let library = out.join("libfacegrad_torch.so");
        shared_library(&empty, &library, &[])?;
        for argument in ["-Wl,-z,undefs", "-Wl,--no-as-needed", "-lfacegrad_torch"] {
            println!("cargo:rustc-cdylib-link-arg={argument}");
        }
        return Ok(());
    }
    let torch = env::var_os("LIBTORCH")
        .map(PathBuf::from)
        .unwrap_or_default();
    if !torch.join("lib/libtorch_cpu.so").exists() {
        return Err(format!(
            "LIBTORCH: expected the folder of a torch (the one with include/ and lib/), got {:?}; run `make build`, or set \
             it to what `python -c 'import torch; print(torch.__path__[0])'` prints",
            torch.display()
        ));
    }
    let torch = torch.canonicalize().map_err(|e| e.to_string())?;
    let library = out.join("libfacegrad_torch.so");
    compile(&text, &torch, &library)?;
    // Beside the library itself, and beside the test programs.
    copy(&library, &profile.join("deps"))?;
    copy(&library, profile)?;
    println!("cargo:rustc-link-lib=dylib=facegrad_torch");
    Ok(())
}

/// The C++ text of the part. The functions that only the tests call have a list of their own.
fn part_text() -> Result<String, String> {
    let lists = ["torch/functions.txt", "torch/functions_of_tests.txt"];
    let mut used = BTreeSet::new();
    for list in lists {
        used.extend(read(Path::new(list))?.lines().map(String::from));
    }
    let sources = torch_sys()?.join("libtch");
    let sources =
        ["torch_api.cpp", "torch_api_generated.cpp"].map(|name| read(&sources.join(name)));
    let sources: Vec<String> = sources.into_iter().collect::<Result<_, _>>()?;
    cut::cut(&read(Path::new("torch/part.cc"))?, &sources, &used)
        .map_err(|e| format!("{}: {e}", lists.join(", ")))
}

/// The folder of the torch-sys sources that cargo builds with.
fn torch_sys() -> Result<PathBuf, String> {
    let output = Command::new(env::var_os("CARGO").expect("cargo sets it"))
        .args(["metadata", "--format-version=1", "--filter-platform"])
        .arg(env::var_os("TARGET").expect("cargo sets it"))
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(format!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    metadata["packages"]
        .as_array()
        .and_then(|packages| {
            packages
                .iter()
                .find(|package| package["name"] == "torch-sys")
        })
        .and_then(|package| Path::new(package["manifest_path"].as_str()?).parent())
        .map(Path::to_path_buf)
        .ok_or_else(|| "cargo metadata names no torch-sys".into())
}

/// Compiles the part. `bindings/python/facegrad/_part.py` makes the same call for other torches.
fn compile(text: &Path, torch: &Path, library: &Path) -> Result<(), String> {
    let folder = |name: &str| torch.join(name).display().to_string();
    shared_library(
        text,
        library,
        &[
            "-std=c++20",
            "-O2",
            "-w",
            // Headers put their own paths into messages of errors.
            &format!("-ffile-prefix-map={}=torch", torch.display()),
            "-isystem",
            &folder("include"),
            "-isystem",
            &folder("include/torch/csrc/api/include"),
            "-L",
            &folder("lib"),
            "-Wl,--as-needed",
            "-ltorch_cpu",
            "-lc10",
            "-Wl,--version-script,torch/exports.map",
            // A process that has torch already keeps its copy (same SONAME); any other finds this one.
            &format!("-Wl,-rpath,{}", folder("lib")),
        ],
    )
}

/// One call of the compiler, which makes a library with the SONAME of the part.
fn shared_library(source: &Path, library: &Path, arguments: &[&str]) -> Result<(), String> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let status = Command::new(&compiler)
        .arg(source)
        .args(arguments)
        .args(["-fPIC", "-shared", "-Wl,-s"])
        .arg("-Wl,-soname,libfacegrad_torch.so")
        .arg("-o")
        .arg(library)
        .status()
        .map_err(|e| {
            format!("{compiler:?}: {e}; install a C++ compiler (Debian: apt install g++)")
        })?;
    match status.success() {
        true => Ok(()),
        false => Err(format!(
            "{compiler:?} ended with {status}; its messages stand above"
        )),
    }
}

/// Replaces the file, whose old content a process may have mapped.
fn copy(file: &Path, folder: &Path) -> Result<(), String> {
    let copy = folder.join(file.file_name().expect("a file"));
    let _ = std::fs::remove_file(&copy);
    std::fs::copy(file, &copy).map_err(|e| format!("{}: {e}", copy.display()))?;
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
