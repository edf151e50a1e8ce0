//! Recognisers.

use super::boundary::{call, copy_text};
use super::context::{Context, make};
use super::handle::{self, Object};
use super::read::text;
use super::types::*;
use super::views;
use super::watch::Watch;
use crate::align::{Crop, align, crop_for};
use crate::config::{AlignMode, BackboneConfig, Engine, Runtime, parse};
use crate::error::{Result, bail};
use crate::nets::Recogniser;
use crate::tensor::{RawTensor, Stream, Use};
use crate::worker::{Owned, Worker};
use std::ffi::{c_char, c_void};
use std::sync::Arc;

/// A recogniser and the sizes that its calls check.
pub(super) struct Backbone {
    /// The network.
    pub owned: Owned<Recogniser>,
    watch: Arc<Watch>,
    description: String,
    dim: i64,
    input_size: i64,
}

impl Object for Backbone {
    const NAME: &'static str = "backbone";
}

/// Loads a recogniser on a worker. The gradient flows through it where the engine is libtorch.
pub(super) fn load(
    worker: &Arc<Worker>,
    config: BackboneConfig,
    engine: Engine,
) -> Result<Backbone> {
    let runtime = Runtime {
        engine,
        ..Runtime::default()
    };
    let owned = Owned::build(worker, move |device| {
        Recogniser::load_frozen(&config, device, &runtime)
    })?;
    let (description, dim, input_size) = owned.with(Stream::default(), |net| {
        Ok((net.description().to_string(), net.dim(), net.input_size()))
    })?;
    Ok(Backbone {
        owned,
        watch: Arc::new(Watch::new()),
        description,
        dim,
        input_size,
    })
}

impl Backbone {
    /// One line: family, file, normalisation, colour order.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The crop of every face: by its landmarks where it has them, else by its box.
    ///
    /// # Safety
    /// As for [`views::faces`].
    unsafe fn crops(
        &self,
        faces: *const facegrad_face,
        count: usize,
        images: i64,
    ) -> Result<Vec<Crop>> {
        // SAFETY: the caller's promise is the same.
        let faces = unsafe { views::faces(faces, count, images) }?;
        let mut crops = vec![];
        for (at, (image, place)) in faces.iter().enumerate() {
            match crop_for(AlignMode::Kps, *image as usize, place, self.input_size)? {
                Some((crop, _)) => crops.push(crop),
                None => bail!(Argument, "faces[{at}]: its landmarks and box span no area"),
            }
        }
        Ok(crops)
    }
}

/// Loads a frozen recogniser: arcface_torch weights (`.pth`, `.safetensors`) or any recogniser ONNX
/// (InsightFace's w600k_r50.onnx, glintr100.onnx, …). A gradient can flow through both. The content of the
/// file tells its kind, not its name.
///
/// @param[in] config JSON: `path` (required); `model` "r18" | "r34" | "r50" | "r100" | "r200", checked
/// against the file; `input_size` pixels; `mean`, `std` three numbers each in units of an image in
/// [0, 1], in the model's channel order; `color` "rgb" | "bgr", the model's channel order; `dtype` "f32" |
/// "bf16" | "f16". Keys that are left out take the values of the model's known family.
/// `facegrad_backbone_info` says what is used.
/// @param[out] out the new recogniser; NULL on failure
///
/// Errors: `IO`, `FORMAT`, `LIMIT`, `WEIGHTS` for tensors of another network, `OPERATOR`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_backbone_new(
    context: *const facegrad_context,
    config: *const c_char,
    out: *mut *mut facegrad_backbone,
) -> facegrad_status {
    let body = || {
        let context = handle::get::<Context, _>("context", context)?;
        // SAFETY: the host promises a string.
        let json = unsafe { text("config", config) }?;
        let config = parse("backbone config", &json)?;
        load(&context.worker, config, Engine::Torch)
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

/// Embeds faces, without a gradient. The embeddings have length 1, so the cosine of two is their dot product.
///
/// @param[in] images `[N,3,H,W]` RGB in [0, 1]
/// @param[in] faces `count` faces in them, aligned by landmarks where `has_landmarks` is set, else by box.
/// NULL with `count` 0: `images` are crops of `input_size` already
/// @param[out] embeddings `[count,D]` (`[N,D]` for crops), any float dtype
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_backbone_embed(
    backbone: *mut facegrad_backbone,
    images: *const RawTensor,
    faces: *const facegrad_face,
    count: usize,
    embeddings: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let backbone = handle::get::<Backbone, _>("backbone", backbone)?;
        let device = backbone.owned.worker().device();
        let size = backbone.input_size;
        // SAFETY: the host's promises are those of `View::read` and `views::faces`.
        let (images, crops, embeddings) = unsafe {
            let images = views::images("images", images, Use::Input, device)?;
            let aligned = faces.is_null() && count == 0;
            if aligned {
                let sides = [None, Some(3), Some(size), Some(size)];
                images.expect_shape("crops of the recogniser's input_size", &sides)?;
            }
            let batch = images.shape()[0];
            let crops = match aligned {
                true => None,
                false => Some(backbone.crops(faces, count, batch)?),
            };
            let rows = if aligned { batch } else { count as i64 };
            let shape = [rows, backbone.dim];
            (
                images,
                crops,
                views::output("embeddings", embeddings, &shape, device)?,
            )
        };
        let watch = backbone.watch.clone();
        backbone.owned.with(Stream::new(stream), move |net| {
            let _frozen = tch::no_grad_guard();
            let images = images.borrow()?;
            watch.look("images", &images)?;
            let crops = match crops {
                Some(crops) => align(&images, &crops, size)?,
                None => images,
            };
            embeddings.write(&net.embed(&crops)?)
        })
    })
}

/// Returns the crops that `facegrad_backbone_embed` and the loss give to the recogniser, for a person to
/// look at. Bilinear sampling, without a gradient.
///
/// @param[in] images `[N,3,H,W]` RGB, in any units
/// @param[in] faces `count` faces in them
/// @param[out] crops `[count,3,S,S]` in the units of the images, any float dtype; S is the recogniser's
/// `input_size`
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_backbone_align(
    backbone: *mut facegrad_backbone,
    images: *const RawTensor,
    faces: *const facegrad_face,
    count: usize,
    crops: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let backbone = handle::get::<Backbone, _>("backbone", backbone)?;
        let device = backbone.owned.worker().device();
        let size = backbone.input_size;
        // SAFETY: the host's promises are those of `View::read` and `views::faces`.
        let (images, places, output) = unsafe {
            let images = views::images("images", images, Use::Input, device)?;
            let places = backbone.crops(faces, count, images.shape()[0])?;
            let shape = [count as i64, 3, size, size];
            (
                images,
                places,
                views::output("crops", crops, &shape, device)?,
            )
        };
        backbone.owned.with(Stream::new(stream), move |_| {
            let _frozen = tch::no_grad_guard();
            output.write(&align(&images.borrow()?, &places, size)?)
        })
    })
}

/// Describes the recogniser as a JSON object: `description` (family, file, normalisation, colour order and
/// where each comes from), `dim` (the length of an embedding), `input_size` (side of a crop, pixels).
///
/// @param[out] buffer receives the text and a NUL, cut to `capacity` bytes; may be NULL
/// @param[out] needed receives the bytes that the whole text and its NUL take; may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_backbone_info(
    backbone: *const facegrad_backbone,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> facegrad_status {
    call(|| {
        let backbone = handle::get::<Backbone, _>("backbone", backbone)?;
        let info = serde_json::json!({
            "description": backbone.description,
            "dim": backbone.dim,
            "input_size": backbone.input_size,
        });
        // SAFETY: the host's promise is `copy_text`'s.
        unsafe { copy_text(&info.to_string(), buffer, capacity, needed) };
        Ok(())
    })
}

/// Frees a recogniser. A loss that was made with it keeps what it needs.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_backbone_free(backbone: *mut facegrad_backbone) {
    call(|| {
        handle::remove::<Backbone, _>(backbone);
        Ok(())
    });
}
