//! Link arguments of the shared library. See `docs/abi.md` for what each promises.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    compile_callback();
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    // Before 1.0 the ABI is the minor version, and the SONAME says so.
    let abi = version.rsplit_once('.').expect("x.y.z").0;
    // Rust's thread-local destructors do not survive dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // tch and torch-sys export C symbols of their own; only ours may be seen.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libfacegrad.so.{abi}");
    // A process that has torch loaded already keeps its copy (same SONAME); any other finds the
    // one that was there at build time, and so it is with ONNX Runtime, whose wheel lies beside torch's.
    if let Ok(libtorch) = env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}");
        let libtorch = Path::new(&libtorch).canonicalize().unwrap_or_default();
        if let Some(packages) = libtorch.ancestors().nth(2) {
            let folder = packages.join("onnxruntime/capi");
            println!("cargo:rustc-env=FACEGRAD_ONNXRUNTIME={}", folder.display());
        }
    }
}

#[cfg(feature = "torch")]
fn compile_callback() {
    const SOURCE: &str = "src/ffi/callback.cc";
    println!("cargo:rerun-if-changed={SOURCE}");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file(SOURCE)
        .compile("facegrad_callback");
}

#[cfg(not(feature = "torch"))]
fn compile_callback() {}
