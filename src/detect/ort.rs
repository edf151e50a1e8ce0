//! ONNX Runtime, found at run time. The library is loaded at most once a process, by `ort::init_from`:
//! ort's own lazy loading panics where there is none.

use super::decode::Output;
use crate::error::{Error, Result, bail};
use once_cell::sync::OnceCell;
use ort::value::TensorRef;
use std::path::{Path, PathBuf};

/// The environment and the path that its library came from. It is never dropped: ONNX Runtime's own
/// clean-up at exit races with other libraries'.
static RUNTIME: OnceCell<(ort::environment::Environment, String)> = OnceCell::new();

/// Names that the system's loader knows.
const NAMES: [&str; 3] = [
    "libonnxruntime.so.1",
    "libonnxruntime.so",
    "libonnxruntime.dylib",
];

/// A loaded model.
pub struct Session {
    session: ort::session::Session,
    input: String,
}

/// Whether a library is loaded already or would be found without being named.
pub fn available() -> bool {
    RUNTIME.get().is_some() || runtime(None).is_ok()
}

fn runtime(configured: Option<&Path>) -> Result<&'static (ort::environment::Environment, String)> {
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let mut tried = vec![];
    for candidate in candidates(configured)? {
        match ort::init_from(&candidate) {
            Err(error) => tried.push(format!("{} ({error})", candidate.display())),
            Ok(builder) => {
                return RUNTIME.get_or_try_init(|| {
                    let environment = builder
                        .with_name("facegrad")
                        .with_telemetry(false)
                        .build()
                        .map_err(failed)?;
                    // One reference that nobody drops keeps the environment for good.
                    std::mem::forget(environment.clone());
                    Ok((environment, candidate.display().to_string()))
                });
            }
        }
    }
    bail!(
        OnnxRuntime,
        "ONNX Runtime's library was not found. Looked at: {}. Install it (pip install onnxruntime), set \
         `onnxruntime` in the detector's config to the library or its folder, set ORT_DYLIB_PATH, or use \
         `engine`: \"torch\"",
        tried.join("; ")
    );
}

/// Where the library may be, best first. A configured path is the only candidate.
fn candidates(configured: Option<&Path>) -> Result<Vec<PathBuf>> {
    if let Some(path) = configured {
        return Ok(vec![match path.is_dir() {
            true => in_folder(path)?,
            false => path.to_path_buf(),
        }]);
    }
    let named = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
    let mut all: Vec<PathBuf> = named.map(PathBuf::from).into_iter().collect();
    all.extend(NAMES.map(PathBuf::from));
    all.extend(option_env!("FACEGRAD_ONNXRUNTIME").and_then(|built| in_folder(Path::new(built)).ok()));
    Ok(all)
}

/// The library in a folder such as the Python wheel's `onnxruntime/capi`.
fn in_folder(folder: &Path) -> Result<PathBuf> {
    let entries =
        std::fs::read_dir(folder).map_err(|e| Error::Io(format!("{}: {e}", folder.display())))?;
    let library = |path: &PathBuf| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        name.starts_with("libonnxruntime.so") || name == "libonnxruntime.dylib"
    };
    match entries.flatten().map(|entry| entry.path()).find(library) {
        Some(path) => Ok(path),
        None => bail!(
            OnnxRuntime,
            "{}: no libonnxruntime in this folder",
            folder.display()
        ),
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::OnnxRuntime(
        error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_string(),
    )
}

impl Session {
    /// Loads a model on the CPU.
    pub fn open(path: &Path, library: Option<&Path>) -> Result<Session> {
        let (environment, _) = runtime(library)?;
        let session = ort::session::Session::builder(environment)
            .map_err(failed)?
            .commit_from_file(path)
            .map_err(failed)?;
        let Some(input) = session
            .inputs()
            .first()
            .map(|input| input.name().to_string())
        else {
            bail!(Weights, "a model without an input");
        };
        Ok(Session { session, input })
    }

    /// `ONNX Runtime (path of the library)`.
    pub fn library(&self) -> String {
        let path = RUNTIME.get().map_or("", |(_, path)| path);
        format!("ONNX Runtime ({path})")
    }

    /// Runs the model on one canvas.
    pub fn run(&mut self, values: Vec<f32>, shape: Vec<i64>) -> Result<Vec<Output>> {
        let canvas = TensorRef::from_array_view((shape, values.as_slice())).map_err(failed)?;
        let outputs = self
            .session
            .run(ort::inputs![self.input.as_str() => canvas])
            .map_err(failed)?;
        outputs
            .values()
            .map(|value| {
                let (shape, values) = value.try_extract_tensor::<f32>().map_err(failed)?;
                let Some(&width) = shape.last() else {
                    bail!(Weights, "a detector output without dimensions");
                };
                Ok(Output {
                    width: width as usize,
                    values: values.to_vec(),
                })
            })
            .collect()
    }
}
