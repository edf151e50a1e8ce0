//! The networks of all inputs, which are made once.

use super::super::held::Held;
use super::host_vae::{Decoder, decode, vjp};
use super::models;
use facegrad::ffi::api::{facegrad_api, facegrad_get_api};
use facegrad::ffi::types::*;
use facegrad::tensor::RawTensor;
use std::ffi::{CStr, CString, c_char};
use std::ptr::{null, null_mut};

/// The networks, which are made once.
pub struct World {
    pub api: &'static facegrad_api,
    pub context: *mut facegrad_context,
    pub detector: *mut facegrad_detector,
    pub backbone: *mut facegrad_backbone,
    pub vaes: [*mut facegrad_vae; 3],
    pub evaluator: *mut facegrad_evaluator,
    pub decoder: *mut Decoder,
    pub state: CString,
}

/// What `make` writes to its place.
pub fn made<T>(
    what: &str,
    api: &facegrad_api,
    make: impl FnOnce(*mut *mut T) -> facegrad_status,
) -> *mut T {
    let mut out = null_mut();
    let status = make(&mut out);
    let (mut text, mut needed) = ([0 as c_char; 400], 0);
    // SAFETY: both places are locals.
    unsafe { (api.last_error)(text.as_mut_ptr(), text.len(), &mut needed) };
    // SAFETY: the library ends the text.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    assert_eq!(status, 0, "{what}: {text:?}");
    out
}

impl World {
    pub fn new() -> World {
        // Every tensor here is small.
        tch::set_num_threads(1);
        // SAFETY: the table is static.
        let api = unsafe { facegrad_get_api(1).as_ref() }.expect("the table of version 1");
        let folder = std::env::temp_dir().join(format!("facegrad-steps-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let file = |name: &str, content: Vec<u8>| {
            let path = folder.join(name);
            std::fs::write(&path, content).expect("a temporary file");
            path.display().to_string()
        };
        let detector = file("detector.onnx", models::detector());
        let recogniser = file("recogniser.onnx", models::recogniser());
        let text = |text: String| CString::new(text).expect("no NUL");
        let found = text(format!(
            r#"{{"path":"{detector}","engine":"torch","det_sizes":[32],"threshold":0.58}}"#
        ));
        let embedded = text(format!(r#"{{"path":"{recogniser}"}}"#));
        let scored = text(format!(
            r#"{{"detector":{},"recogniser":"{recogniser}","engine":"torch"}}"#,
            found.to_str().expect("a text")
        ));
        let decoder = Box::into_raw(Box::new(Decoder {
            mood: 0,
            image: Held {
                data: vec![],
                shape: vec![],
            },
            gradient: Held {
                data: vec![],
                shape: vec![],
            },
        }));
        // SAFETY: texts and places are locals, and the decoder is never freed.
        let world = unsafe {
            let context = made("context", api, |out| (api.context_new)(null(), out));
            let from_tensors = |tensors: models::Named, config: &CStr| {
                let mut tensors = tensors;
                let names: Vec<CString> = tensors
                    .iter()
                    .map(|(name, _)| CString::new(name.as_str()).expect("no NUL"))
                    .collect();
                let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
                let raw: Vec<RawTensor> = tensors.iter_mut().map(|(_, held)| held.raw()).collect();
                made("VAE", api, |out| {
                    (api.vae_new_from_tensors)(
                        context,
                        names.as_ptr(),
                        raw.as_ptr(),
                        raw.len(),
                        config.as_ptr(),
                        out,
                    )
                })
            };
            World {
                api,
                context,
                detector: made("detector", api, |out| {
                    (api.detector_new)(context, found.as_ptr(), out)
                }),
                backbone: made("recogniser", api, |out| {
                    (api.backbone_new)(context, embedded.as_ptr(), out)
                }),
                vaes: [
                    from_tensors(models::autoencoder(), c"{\"norm_num_groups\":2}"),
                    from_tensors(models::tiny_autoencoder(), c"{}"),
                    made("the host's VAE", api, |out| {
                        (api.vae_new_from_functions)(
                            context,
                            Some(decode),
                            Some(vjp),
                            decoder.cast(),
                            null(),
                            out,
                        )
                    }),
                ],
                evaluator: made("evaluator", api, |out| {
                    (api.evaluator_new)(context, scored.as_ptr(), out)
                }),
                decoder,
                state: text(format!("{}.state", folder.display())),
            }
        };
        std::fs::remove_dir_all(&folder).expect("the temporary folder");
        world
    }
}
