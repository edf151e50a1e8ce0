//! Losses.

use super::boundary::{call, copy_text};
use super::context::{Context, Model, make};
use super::detector;
use super::handle::{self, Object};
use super::read::{self, optional_text};
use super::report::ReportSink;
use super::targets::{RawReference, RawTargets};
use super::types::*;
use super::watch::Watch;
use super::{backbone, targets, vae, views};
use crate::config::{
    BackboneConfig, DetectorChoice, DetectorConfig, Engine, LossConfig, VaeChoice, VaeConfig,
};
use crate::detect::Detector;
use crate::error::{Error, Result, bail};
use crate::loss::Loss;
use crate::nets::Levels;
use crate::nets::vae::Decoder;
use crate::pipeline::Pipeline;
use crate::shared::lock;
use crate::step::StepLoss;
use crate::tensor::{RawTensor, Stream, Use};
use crate::worker::{Owned, Worker};
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use tch::Kind;

/// The object behind a `facegrad_loss`.
pub(super) struct LossObject {
    /// The loss on images.
    pub owned: Owned<Loss>,
    /// The fused step on that loss.
    pub steps: Owned<StepLoss>,
    /// Whether there is a VAE, which the fused step needs.
    pub has_vae: bool,
    /// Checks the range of the images that the host hands over.
    pub watch: Arc<Watch>,
    info: String,
}

impl Object for LossObject {
    const NAME: &'static str = "loss";
}

/// Makes a loss. The host passes its networks, which several losses may share, or the configuration names their files.
/// Without a detector, the host must say where every face is.
///
/// @param[in] detector NULL: loaded from the config's `detector`, where there is one
/// @param[in] backbone NULL: loaded from the config's `arcface_weights`
/// @param[in] vae needed by `facegrad_loss_step` alone; NULL: loaded from the config's `vae`, where there is
/// one
/// @param[in] config JSON with optional keys; NULL for the defaults. docs/configuration.md describes the keys, and
/// `facegrad_build_info` lists their names
/// @param[out] out the new loss; NULL on failure
///
/// Errors: `ARGUMENT` for objects of another context, and those of the networks' constructors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_new(
    context: *const facegrad_context,
    detector: *const facegrad_detector,
    backbone: *const facegrad_backbone,
    vae: *const facegrad_vae,
    config: *const c_char,
    out: *mut *mut facegrad_loss,
) -> facegrad_status {
    let body = || {
        let context = handle::get::<Context, _>("context", context)?;
        let detector = handle::get_optional::<Model<Detector>, _>("detector", detector)?;
        let backbone = handle::get_optional::<backbone::Backbone, _>("backbone", backbone)?;
        let vae = handle::get_optional::<Model<Decoder>, _>("vae", vae)?;
        // SAFETY: the host promises NULL or a string.
        let json = unsafe { optional_text("config", config) }?.unwrap_or_default();
        build(
            &context.worker,
            detector,
            backbone,
            vae,
            LossConfig::parse(&json)?,
        )
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

fn build(
    worker: &Arc<Worker>,
    detector: Option<Arc<Model<Detector>>>,
    backbone: Option<Arc<backbone::Backbone>>,
    vae: Option<Arc<Model<Decoder>>>,
    config: LossConfig,
) -> Result<LossObject> {
    let detector = match (detector, &config.detector) {
        (Some(_), Some(_)) => bail!(
            Config,
            "loss config: a detector was handed over and `detector` names another; give one of them"
        ),
        (Some(detector), None) => Some(detector),
        (None, None) => None,
        (None, Some(choice)) => {
            let config = match choice.clone() {
                DetectorChoice::Config(config) => *config,
                DetectorChoice::Path(path) => DetectorConfig::new(path),
            };
            Some(Arc::new(detector::load(worker, config)?))
        }
    };
    let backbone = match (backbone, &config.arcface_weights) {
        (Some(_), Some(_)) => bail!(
            Config,
            "loss config: a backbone was handed over and `arcface_weights` names another; give one of them"
        ),
        (Some(backbone), None) => backbone,
        (None, Some(path)) => {
            let engine = match config.is_score() {
                true => Engine::Auto,
                false => Engine::Torch,
            };
            let network = BackboneConfig {
                model: config.arcface_model.clone(),
                ..BackboneConfig::new(path.clone())
            };
            Arc::new(backbone::load(worker, network, engine)?)
        }
        (None, None) => bail!(
            Config,
            "loss config: no recogniser: hand over a backbone, or set `arcface_weights` to its file"
        ),
    };
    let vae = match (vae, &config.vae) {
        (Some(_), Some(_)) => bail!(
            Config,
            "loss config: a VAE was handed over and `vae` names another; give one of them"
        ),
        (vae, None) => vae,
        (None, Some(choice)) => {
            let config = match choice.clone() {
                VaeChoice::Config(config) => *config,
                VaeChoice::Path(path) => VaeConfig {
                    path: Some(path),
                    ..VaeConfig::default()
                },
            };
            Some(Arc::new(vae::load(worker, config)?))
        }
    };
    if let Some(vae) = &vae {
        views::same_context("vae", worker, vae.owned.worker())?;
    }
    if let Some(detector) = &detector {
        views::same_context("detector", worker, detector.owned.worker())?;
    }
    views::same_context("backbone", worker, backbone.owned.worker())?;
    let info = serde_json::json!({
        "detector": detector.as_ref().map(|d| d.info.clone()),
        "backbone": backbone.description(),
        "vae": vae.as_ref().map(|v| v.info.clone()),
        "face_align_mode": format!("{:?}", config.face_align_mode).to_lowercase(),
        "face_loss_weight": config.face_loss_weight,
        "face_types": config.face_types,
        // Where the config names no format, the one that the VAE's files tell is used.
        "latent_format": match (&config.latent_format, &vae) {
            (None, Some(vae)) => vae.owned.with(Stream::default(), |vae| Ok(vae.format().cloned()))?,
            (given, _) => given.clone(),
        },
        "settings": serde_json::to_value(&config)
            .map_err(|e| Error::Internal(format!("the settings of a loss: {e}")))?,
    })
    .to_string();
    let (detector, recogniser) = (detector.map(|d| d.owned.share()), backbone.owned.share());
    let owned = Owned::build(worker, move |_| {
        let levels = Levels::new(config.levels.as_ref(), &lock(&recogniser))?;
        let pipeline = Pipeline {
            detector,
            recogniser,
            levels,
            align_mode: config.face_align_mode,
            choice: config.face_choice,
            index: config.face_index,
            is_score: config.is_score(),
        };
        Ok(Loss::new(config, pipeline))
    })?;
    let has_vae = vae.is_some();
    let (loss, decoder) = (owned.share(), vae.map(|vae| vae.owned.share()));
    let steps = Owned::build(worker, move |_| Ok(StepLoss::new(loss, decoder)))?;
    Ok(LossObject {
        owned,
        steps,
        has_vae,
        watch: Arc::new(Watch::new()),
        info,
    })
}

/// Registers a person under an id by the faces of reference images. A person that was registered under the same id
/// before is replaced. Images without a face are left out with a warning.
///
/// @param[in] id any UTF-8 text
/// @param[in] images `[K,3,H,W]` RGB in [0, 1], K ≥ 1
/// @param[in] landmarks `[K,5,2]` landmarks of the faces, pixels, NaN in the rows that are not known; NULL: the
/// detector finds the faces
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
///
/// Errors: `ARGUMENT` where no image has a face.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_set_reference(
    loss: *mut facegrad_loss,
    id: *const c_char,
    images: *const RawTensor,
    landmarks: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<LossObject, _>("loss", loss)?;
        // SAFETY: the host's promises are those of `View::read` and `RawReference::read`.
        let reference = unsafe {
            let images = views::images("images", images, Use::Input, loss.owned.worker().device())?;
            RawReference::read(id, images, landmarks)?
        };
        reference.register(&loss.owned, &loss.watch, stream, Loss::set_reference)
    })
}

/// Forgets a registered reference.
///
/// Errors: `ARGUMENT` where the id was not registered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_remove_reference(
    loss: *mut facegrad_loss,
    id: *const c_char,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<LossObject, _>("loss", loss)?;
        // SAFETY: the host promises a string.
        unsafe { targets::remove(&loss.owned, id, Loss::remove_reference) }
    })
}

/// Computes the loss of a batch of images and its gradient.
///
/// A sample that is gated out, has no face or is not finite does not count. Its gradient is exactly zero, and its
/// report says why. If no sample counts, loss and gradient are 0 and the call succeeds.
///
/// @param[in] images `[N,3,H,W]` RGB, nominally in [0, 1], float32, float16 or bfloat16; not clamped
/// @param[in] targets references and per-sample facts
/// @param[out] gradient the gradient of `result->loss` with respect to `images`: the same shape, any float dtype,
/// preferably float32 (see `facegrad_loss_step`); NULL: not computed
/// @param[out] samples N reports; the first element's `struct_size` must be set; may be NULL
/// @param[in] samples_capacity elements of `samples`, at least N unless it is NULL
/// @param[out] result may be NULL; its `struct_size` must be set
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU. `samples` and `result` are
/// ready on return, `gradient` in the order of the stream.
///
/// Errors: `ARGUMENT` for an id that was not registered, or a face whose place is not known and no detector.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_images(
    loss: *mut facegrad_loss,
    images: *const RawTensor,
    targets: *const facegrad_targets,
    gradient: *const RawTensor,
    samples: *mut facegrad_sample,
    samples_capacity: usize,
    result: *mut facegrad_result,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<LossObject, _>("loss", loss)?;
        let device = loss.owned.worker().device();
        // SAFETY: the host's promises are those of the functions called.
        let (images, targets, gradient, sink) = unsafe {
            let images = views::images("images", images, Use::Input, device)?;
            let targets = RawTargets::read(targets, device, images.shape()[0])?;
            let gradient = views::optional_output("gradient", gradient, images.shape(), device)?;
            let sink = ReportSink::read(samples, samples_capacity, result, images.shape()[0])?;
            (images, targets, gradient, sink)
        };
        let watch = loss.watch.clone();
        let report = loss.owned.with(Stream::new(stream), move |loss| {
            let targets = targets.into_targets(&watch)?;
            let mut images = images.borrow()?;
            watch.look("images", &images)?;
            if gradient.is_some() {
                images = images.f_to_kind(Kind::Float)?;
            }
            let (report, made) = loss.evaluate(&images, &targets, gradient.is_some())?;
            if let (Some(output), Some(made)) = (gradient, made) {
                output.write(&made)?;
            }
            Ok(report)
        })?;
        // SAFETY: `read` checked the pointers, and the host promises that they are writable.
        unsafe { sink.write(&report) };
        Ok(())
    })
}

/// Writes what the loss remembers to a file: registered references, faces of reference images, statistics of
/// `norm_stats`, and whether audits have ended the use of windows. A training that was stopped and restores this
/// file continues with the same numbers. The file is written as a whole or not at all. It holds embeddings of
/// people's faces.
///
/// @param[in] path the file to write; a regular file of that name is replaced
///
/// Errors: `IO`; an older file is then unchanged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_save(
    loss: *mut facegrad_loss,
    path: *const c_char,
) -> facegrad_status {
    call(|| {
        let object = handle::get::<LossObject, _>("loss", loss)?;
        // SAFETY: the host promises a string.
        let path = unsafe { read::path("path", path) }?;
        object
            .steps
            .with(Stream::default(), move |steps| steps.save(&path))
    })
}

/// Replaces everything that the loss remembers by what `facegrad_loss_save` wrote. The configuration does not change.
/// On failure nothing changes.
///
/// @param[in] path the file to read; its content is not trusted
///
/// Errors: `IO`; `FORMAT` for another or a damaged file; `LIMIT`; `ARGUMENT` where the file was saved with another
/// recogniser or VAE; `UNSUPPORTED` for a file of a newer library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_restore(
    loss: *mut facegrad_loss,
    path: *const c_char,
) -> facegrad_status {
    call(|| {
        let object = handle::get::<LossObject, _>("loss", loss)?;
        // SAFETY: the host promises a string.
        let path = unsafe { read::path("path", path) }?;
        object
            .steps
            .with(Stream::default(), move |steps| steps.restore(&path))
    })
}

/// Describes the loss as a JSON object: `detector`, `backbone` and `vae` (descriptions), `face_align_mode`,
/// `face_loss_weight`, `face_types`, `latent_format` (the config's, or else the one that the VAE's files tell),
/// `settings` (every key of the config with the value that is used).
///
/// @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
/// @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_loss_info(
    loss: *const facegrad_loss,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> facegrad_status {
    call(|| {
        let loss = handle::get::<LossObject, _>("loss", loss)?;
        // SAFETY: the host's promise is `copy_text`'s.
        unsafe { copy_text(&loss.info, buffer, capacity, needed) };
        Ok(())
    })
}

/// Frees a loss.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_loss_free(loss: *mut facegrad_loss) {
    call(|| {
        handle::remove::<LossObject, _>(loss);
        Ok(())
    });
}
