//! ONNX Runtime, which is found at run time. The library is loaded at most once per process, by `ort::init_from`.
//! ort's own lazy loading is not used, because it panics where there is no library.

use crate::config::{Engine, Provider, Runtime};
use crate::error::{Error, Result, bail};
use crate::tensor::torch_folder;
use once_cell::sync::{Lazy, OnceCell};
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::value::TensorRef;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use tch::Device;

/// The environment, and the path of its library. It is never dropped, because ONNX Runtime's clean-up at exit
/// races with that of other libraries.
static RUNTIME: OnceCell<(ort::environment::Environment, String)> = OnceCell::new();

/// The library's name on this platform. A version may follow it.
static NAME: Lazy<String> = Lazy::new(|| format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}"));

/// Whether ONNX Runtime runs a network, and why, where the configuration leaves that open.
pub fn chosen(runtime: &Runtime, device: Device) -> Result<(bool, &'static str)> {
    let named = !runtime.providers.is_empty();
    Ok(match runtime.engine {
        Engine::Torch if named => bail!(
            Config,
            "`providers` are ONNX Runtime's, but `engine` is \"torch\": leave one of them out"
        ),
        Engine::Torch => (false, ""),
        Engine::Ort => (true, ""),
        Engine::Auto if named => (true, ""),
        Engine::Auto if device != Device::Cpu => (false, " (the context is on CUDA)"),
        // A configured path must work: a fall-back would hide a mistake.
        Engine::Auto if runtime.library.is_some() || available() => (true, ""),
        Engine::Auto => (false, " (ONNX Runtime's library was not found)"),
    })
}

/// Whether the library is loaded in this process.
pub fn is_loaded() -> bool {
    RUNTIME.get().is_some()
}

/// Whether a library is loaded already, or would be found without a configured path.
fn available() -> bool {
    is_loaded() || loaded(None).is_ok()
}

fn loaded(configured: Option<&Path>) -> Result<&'static (ort::environment::Environment, String)> {
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
                    // A reference that is never dropped keeps the environment alive.
                    std::mem::forget(environment.clone());
                    Ok((environment, candidate.display().to_string()))
                });
            }
        }
    }
    bail!(
        OnnxRuntime,
        "ONNX Runtime's library was not found. Looked at: {}. Install it (pip install onnxruntime), set \
         `onnxruntime` in the config to the library or its folder, set ORT_DYLIB_PATH, or use \
         `engine`: \"torch\"",
        tried.join("; ")
    );
}

/// The paths where the library may be, best first. A configured path is the only one.
fn candidates(configured: Option<&Path>) -> Result<Vec<PathBuf>> {
    if let Some(path) = configured {
        return Ok(vec![match path.is_dir() {
            true => in_folder(path)?,
            false => path.to_path_buf(),
        }]);
    }
    let named = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
    let mut all: Vec<PathBuf> = named.map(PathBuf::from).into_iter().collect();
    // Names that the system's loader knows.
    all.extend([format!("{}.1", *NAME), NAME.clone()].map(PathBuf::from));
    // The Python wheels of torch and ONNX Runtime lie side by side.
    let beside = torch_folder().and_then(|torch| Some(torch.parent()?.join("onnxruntime/capi")));
    all.extend(beside.and_then(|folder| in_folder(&folder).ok()));
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
        name.starts_with(NAME.as_str())
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

/// The provider with its options. Where the library lacks it, the error lists those that it has.
fn dispatch(provider: Provider, device: Device) -> Result<ExecutionProviderDispatch> {
    let index = match device {
        Device::Cuda(index) => index as i32,
        _ => 0,
    };
    let (there, dispatch) = match provider {
        Provider::Cpu => with(ep::CPU::default()),
        Provider::Cuda => with(ep::CUDA::default().with_device_id(index)),
        Provider::Tensorrt => with(ep::TensorRT::default().with_device_id(index)),
        Provider::Rocm => with(ep::ROCm::default().with_device_id(index)),
        Provider::Migraphx => with(ep::MIGraphX::default().with_device_id(index)),
        Provider::Openvino => with(ep::OpenVINO::default()),
        Provider::Coreml => with(ep::CoreML::default()),
        Provider::Directml => with(ep::DirectML::default()),
    };
    if !there? {
        let path = RUNTIME.get().map_or("", |(_, path)| path);
        bail!(
            OnnxRuntime,
            "`providers`: {} is not in this ONNX Runtime ({path}), which has {}; install the build that has it \
             (NVIDIA: pip install onnxruntime-gpu), or name a provider that is there",
            dispatch.name(),
            providers()?.join(", ")
        );
    }
    Ok(dispatch.error_on_failure())
}

fn with<E>(provider: E) -> (Result<bool>, ExecutionProviderDispatch)
where
    E: ExecutionProvider + Into<ExecutionProviderDispatch>,
{
    (E::is_available().map_err(failed), provider.into())
}

/// The providers of the loaded library that a configuration can name.
fn providers() -> Result<Vec<&'static str>> {
    let all = [
        (ep::CPU::is_available(), "cpu"),
        (ep::CUDA::is_available(), "cuda"),
        (ep::TensorRT::is_available(), "tensorrt"),
        (ep::ROCm::is_available(), "rocm"),
        (ep::MIGraphX::is_available(), "migraphx"),
        (ep::OpenVINO::is_available(), "openvino"),
        (ep::CoreML::is_available(), "coreml"),
        (ep::DirectML::is_available(), "directml"),
    ];
    let mut names = vec![];
    for (there, name) in all {
        if there.map_err(failed)? {
            names.push(name);
        }
    }
    Ok(names)
}

/// A loaded model.
pub struct Session {
    session: ort::session::Session,
    input: String,
    providers: Vec<Provider>,
}

/// An output: its shape and its numbers, row after row.
pub type Output = (Vec<i64>, Vec<f32>);

impl Session {
    /// Loads a model with the providers that `runtime` names; operators that they lack run on the CPU.
    pub fn open(path: &Path, runtime: &Runtime, device: Device) -> Result<Session> {
        let (environment, _) = loaded(runtime.library.as_deref())?;
        let mut builder = ort::session::Session::builder(environment).map_err(failed)?;
        if !runtime.providers.is_empty() {
            let dispatches = runtime
                .providers
                .iter()
                .map(|&provider| dispatch(provider, device))
                .collect::<Result<Vec<_>>>()?;
            builder = builder
                .with_execution_providers(dispatches)
                .map_err(failed)?;
        }
        let session = builder.commit_from_file(path).map_err(failed)?;
        let Some(input) = session
            .inputs()
            .first()
            .map(|input| input.name().to_string())
        else {
            bail!(Weights, "a model without an input");
        };
        Ok(Session {
            session,
            input,
            providers: runtime.providers.clone(),
        })
    }

    /// `ONNX Runtime (path of the library), providers`.
    pub fn library(&self) -> String {
        let path = RUNTIME.get().map_or("", |(_, path)| path);
        match self.providers.as_slice() {
            [] => format!("ONNX Runtime ({path})"),
            named => format!("ONNX Runtime ({path}), providers {named:?}").to_string(),
        }
    }

    /// Runs the model on one array of `shape`.
    pub fn run(&mut self, values: &[f32], shape: &[i64]) -> Result<Vec<Output>> {
        let input = TensorRef::from_array_view((shape.to_vec(), values)).map_err(failed)?;
        let outputs = self
            .session
            .run(ort::inputs![self.input.as_str() => input])
            .map_err(failed)?;
        outputs
            .values()
            .map(|value| {
                let (shape, values) = value.try_extract_tensor::<f32>().map_err(failed)?;
                Ok((shape.to_vec(), values.to_vec()))
            })
            .collect()
    }
}
