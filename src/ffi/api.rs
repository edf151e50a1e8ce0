//! The table of all functions, for hosts that load the library at run time and look up one symbol.

use super::backbone::*;
use super::context::*;
use super::detector::*;
use super::evaluator::*;
use super::global::*;
use super::graph::*;
use super::host_vae::*;
use super::loss::*;
use super::sampler::*;
use super::step::*;
use super::types::*;
use super::vae::*;
use crate::tensor::RawTensor;
use std::ffi::{c_char, c_void};
use std::mem::offset_of;

/// All functions of ABI version 1. Later versions only append to the table, so a host that was compiled
/// with a newer header must compare `struct_size` with a field's offset before it uses the field.
#[repr(C)]
#[allow(missing_docs)]
pub struct facegrad_api {
    /// Bytes of the table in the library that is loaded.
    pub struct_size: usize,
    /// `FACEGRAD_ABI_VERSION` of the library that is loaded.
    pub abi_version: u32,
    /// Always 0.
    pub reserved: u32,
    pub context_new: unsafe extern "C" fn(
        config: *const c_char,
        out: *mut *mut facegrad_context,
    ) -> facegrad_status,
    pub context_free: extern "C" fn(context: *mut facegrad_context),
    pub debug_panic: extern "C" fn(context: *mut facegrad_context) -> facegrad_status,
    pub detector_new: unsafe extern "C" fn(
        context: *const facegrad_context,
        config: *const c_char,
        out: *mut *mut facegrad_detector,
    ) -> facegrad_status,
    pub detector_detect: unsafe extern "C" fn(
        detector: *mut facegrad_detector,
        images: *const RawTensor,
        faces: *mut facegrad_face,
        capacity: usize,
        count: *mut usize,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub detector_info: unsafe extern "C" fn(
        detector: *const facegrad_detector,
        buffer: *mut c_char,
        capacity: usize,
        needed: *mut usize,
    ) -> facegrad_status,
    pub detector_free: extern "C" fn(detector: *mut facegrad_detector),
    pub backbone_new: unsafe extern "C" fn(
        context: *const facegrad_context,
        config: *const c_char,
        out: *mut *mut facegrad_backbone,
    ) -> facegrad_status,
    pub backbone_embed: unsafe extern "C" fn(
        backbone: *mut facegrad_backbone,
        images: *const RawTensor,
        faces: *const facegrad_face,
        count: usize,
        embeddings: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub backbone_align: unsafe extern "C" fn(
        backbone: *mut facegrad_backbone,
        images: *const RawTensor,
        faces: *const facegrad_face,
        count: usize,
        crops: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub backbone_info: unsafe extern "C" fn(
        backbone: *const facegrad_backbone,
        buffer: *mut c_char,
        capacity: usize,
        needed: *mut usize,
    ) -> facegrad_status,
    pub backbone_free: extern "C" fn(backbone: *mut facegrad_backbone),
    pub vae_new: unsafe extern "C" fn(
        context: *const facegrad_context,
        config: *const c_char,
        out: *mut *mut facegrad_vae,
    ) -> facegrad_status,
    pub vae_new_from_tensors: unsafe extern "C" fn(
        context: *const facegrad_context,
        names: *const *const c_char,
        tensors: *const RawTensor,
        count: usize,
        config: *const c_char,
        out: *mut *mut facegrad_vae,
    ) -> facegrad_status,
    pub vae_decode: unsafe extern "C" fn(
        vae: *mut facegrad_vae,
        latents: *const RawTensor,
        images: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub vae_info: unsafe extern "C" fn(
        vae: *const facegrad_vae,
        buffer: *mut c_char,
        capacity: usize,
        needed: *mut usize,
    ) -> facegrad_status,
    pub vae_free: extern "C" fn(vae: *mut facegrad_vae),
    pub loss_new: unsafe extern "C" fn(
        context: *const facegrad_context,
        detector: *const facegrad_detector,
        backbone: *const facegrad_backbone,
        vae: *const facegrad_vae,
        config: *const c_char,
        out: *mut *mut facegrad_loss,
    ) -> facegrad_status,
    pub loss_set_reference: unsafe extern "C" fn(
        loss: *mut facegrad_loss,
        id: *const c_char,
        images: *const RawTensor,
        landmarks: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub loss_remove_reference:
        unsafe extern "C" fn(loss: *mut facegrad_loss, id: *const c_char) -> facegrad_status,
    pub loss_images: unsafe extern "C" fn(
        loss: *mut facegrad_loss,
        images: *const RawTensor,
        targets: *const facegrad_targets,
        gradient: *const RawTensor,
        samples: *mut facegrad_sample,
        samples_capacity: usize,
        result: *mut facegrad_result,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub loss_step: unsafe extern "C" fn(
        loss: *mut facegrad_loss,
        step: *const facegrad_step,
        targets: *const facegrad_targets,
        gradient: *const RawTensor,
        samples: *mut facegrad_sample,
        samples_capacity: usize,
        result: *mut facegrad_result,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub loss_info: unsafe extern "C" fn(
        loss: *const facegrad_loss,
        buffer: *mut c_char,
        capacity: usize,
        needed: *mut usize,
    ) -> facegrad_status,
    pub loss_free: extern "C" fn(loss: *mut facegrad_loss),
    pub graph_new: unsafe extern "C" fn(
        context: *const facegrad_context,
        out: *mut *mut facegrad_graph,
    ) -> facegrad_status,
    pub graph_input: unsafe extern "C" fn(
        graph: *mut facegrad_graph,
        tensor: *const RawTensor,
        needs_gradient: i32,
        node: *mut i64,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_predict_x0: unsafe extern "C" fn(
        graph: *mut facegrad_graph,
        x_t: i64,
        prediction: i64,
        times: *const RawTensor,
        config: *const c_char,
        node: *mut i64,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_unpack: unsafe extern "C" fn(
        graph: *mut facegrad_graph,
        latents: i64,
        vae: *const facegrad_vae,
        config: *const c_char,
        height: i64,
        width: i64,
        node: *mut i64,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_decode: unsafe extern "C" fn(
        graph: *mut facegrad_graph,
        latents: i64,
        vae: *mut facegrad_vae,
        config: *const c_char,
        node: *mut i64,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_face_loss: unsafe extern "C" fn(
        graph: *mut facegrad_graph,
        images: i64,
        loss: *mut facegrad_loss,
        targets: *const facegrad_targets,
        samples: *mut facegrad_sample,
        samples_capacity: usize,
        result: *mut facegrad_result,
        node: *mut i64,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_shape: unsafe extern "C" fn(
        graph: *const facegrad_graph,
        node: i64,
        shape: *mut i64,
        capacity: usize,
        ndim: *mut usize,
    ) -> facegrad_status,
    pub graph_read: unsafe extern "C" fn(
        graph: *const facegrad_graph,
        node: i64,
        tensor: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_backward: unsafe extern "C" fn(
        graph: *mut facegrad_graph,
        node: i64,
        seed: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_gradient: unsafe extern "C" fn(
        graph: *const facegrad_graph,
        node: i64,
        tensor: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_free: extern "C" fn(graph: *mut facegrad_graph),
    pub version: extern "C" fn() -> *const c_char,
    pub build_info: unsafe extern "C" fn(
        buffer: *mut c_char,
        capacity: usize,
        needed: *mut usize,
    ) -> facegrad_status,
    pub status_name: extern "C" fn(status: facegrad_status) -> *const c_char,
    pub last_error: unsafe extern "C" fn(
        buffer: *mut c_char,
        capacity: usize,
        needed: *mut usize,
    ) -> facegrad_status,
    pub set_log_callback: unsafe extern "C" fn(
        log: facegrad_log_callback,
        user_data: *mut c_void,
        max_level: i32,
    ) -> facegrad_status,
    pub debug_live: unsafe extern "C" fn(kind: *const c_char, count: *mut i64) -> facegrad_status,
    pub evaluator_new: unsafe extern "C" fn(
        context: *const facegrad_context,
        config: *const c_char,
        out: *mut *mut facegrad_evaluator,
    ) -> facegrad_status,
    pub evaluator_faces: unsafe extern "C" fn(
        evaluator: *mut facegrad_evaluator,
        images: *const RawTensor,
        faces: *mut facegrad_face,
        capacity: usize,
        embeddings: *const RawTensor,
        count: *mut usize,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub evaluator_align: unsafe extern "C" fn(
        evaluator: *mut facegrad_evaluator,
        images: *const RawTensor,
        faces: *const facegrad_face,
        count: usize,
        crops: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub evaluator_set_reference: unsafe extern "C" fn(
        evaluator: *mut facegrad_evaluator,
        id: *const c_char,
        images: *const RawTensor,
        landmarks: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub evaluator_remove_reference: unsafe extern "C" fn(
        evaluator: *mut facegrad_evaluator,
        id: *const c_char,
    ) -> facegrad_status,
    pub evaluator_compare: unsafe extern "C" fn(
        evaluator: *mut facegrad_evaluator,
        images: *const RawTensor,
        targets: *const facegrad_targets,
        samples: *mut facegrad_sample,
        samples_capacity: usize,
        result: *mut facegrad_result,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub evaluator_find: unsafe extern "C" fn(
        evaluator: *mut facegrad_evaluator,
        images: *const RawTensor,
        ids: *const *const c_char,
        people: usize,
        samples: *mut facegrad_sample,
        samples_capacity: usize,
        result: *mut facegrad_result,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub evaluator_info: unsafe extern "C" fn(
        evaluator: *const facegrad_evaluator,
        buffer: *mut c_char,
        capacity: usize,
        needed: *mut usize,
    ) -> facegrad_status,
    pub evaluator_free: extern "C" fn(evaluator: *mut facegrad_evaluator),
    pub loss_save:
        unsafe extern "C" fn(loss: *mut facegrad_loss, path: *const c_char) -> facegrad_status,
    pub loss_restore:
        unsafe extern "C" fn(loss: *mut facegrad_loss, path: *const c_char) -> facegrad_status,
    pub vae_new_from_functions: unsafe extern "C" fn(
        context: *const facegrad_context,
        decode: facegrad_decode_function,
        vjp: facegrad_vjp_function,
        user_data: *mut c_void,
        config: *const c_char,
        out: *mut *mut facegrad_vae,
    ) -> facegrad_status,
    pub graph_features: unsafe extern "C" fn(
        graph: *mut facegrad_graph,
        crops: i64,
        backbone: *mut facegrad_backbone,
        level: *const c_char,
        node: *mut i64,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub sampler_step: unsafe extern "C" fn(
        context: *const facegrad_context,
        x_t: *const RawTensor,
        prediction: *const RawTensor,
        times: *const RawTensor,
        next_times: *const RawTensor,
        config: *const c_char,
        next: *const RawTensor,
        stream: *mut c_void,
    ) -> facegrad_status,
    pub graph_sampler_step: unsafe extern "C" fn(
        graph: *mut facegrad_graph,
        x_t: i64,
        prediction: i64,
        times: *const RawTensor,
        next_times: *const RawTensor,
        config: *const c_char,
        node: *mut i64,
        stream: *mut c_void,
    ) -> facegrad_status,
}

static API: facegrad_api = facegrad_api {
    struct_size: size_of::<facegrad_api>(),
    abi_version: FACEGRAD_ABI_VERSION,
    reserved: 0,
    context_new: facegrad_context_new,
    context_free: facegrad_context_free,
    debug_panic: facegrad_debug_panic,
    detector_new: facegrad_detector_new,
    detector_detect: facegrad_detector_detect,
    detector_info: facegrad_detector_info,
    detector_free: facegrad_detector_free,
    backbone_new: facegrad_backbone_new,
    backbone_embed: facegrad_backbone_embed,
    backbone_align: facegrad_backbone_align,
    backbone_info: facegrad_backbone_info,
    backbone_free: facegrad_backbone_free,
    vae_new: facegrad_vae_new,
    vae_new_from_tensors: facegrad_vae_new_from_tensors,
    vae_decode: facegrad_vae_decode,
    vae_info: facegrad_vae_info,
    vae_free: facegrad_vae_free,
    loss_new: facegrad_loss_new,
    loss_set_reference: facegrad_loss_set_reference,
    loss_remove_reference: facegrad_loss_remove_reference,
    loss_images: facegrad_loss_images,
    loss_step: facegrad_loss_step,
    loss_info: facegrad_loss_info,
    loss_free: facegrad_loss_free,
    graph_new: facegrad_graph_new,
    graph_input: facegrad_graph_input,
    graph_predict_x0: facegrad_graph_predict_x0,
    graph_unpack: facegrad_graph_unpack,
    graph_decode: facegrad_graph_decode,
    graph_face_loss: facegrad_graph_face_loss,
    graph_shape: facegrad_graph_shape,
    graph_read: facegrad_graph_read,
    graph_backward: facegrad_graph_backward,
    graph_gradient: facegrad_graph_gradient,
    graph_free: facegrad_graph_free,
    version: facegrad_version,
    build_info: facegrad_build_info,
    status_name: facegrad_status_name,
    last_error: facegrad_last_error,
    set_log_callback: facegrad_set_log_callback,
    debug_live: facegrad_debug_live,
    evaluator_new: facegrad_evaluator_new,
    evaluator_faces: facegrad_evaluator_faces,
    evaluator_align: facegrad_evaluator_align,
    evaluator_set_reference: facegrad_evaluator_set_reference,
    evaluator_remove_reference: facegrad_evaluator_remove_reference,
    evaluator_compare: facegrad_evaluator_compare,
    evaluator_find: facegrad_evaluator_find,
    evaluator_info: facegrad_evaluator_info,
    evaluator_free: facegrad_evaluator_free,
    loss_save: facegrad_loss_save,
    loss_restore: facegrad_loss_restore,
    vae_new_from_functions: facegrad_vae_new_from_functions,
    graph_features: facegrad_graph_features,
    sampler_step: facegrad_sampler_step,
    graph_sampler_step: facegrad_graph_sampler_step,
};

// Positions are the ABI: the first, and the last of every release.
const _: () = {
    assert!(offset_of!(facegrad_api, context_new) == 16);
    assert!(size_of::<facegrad_api>() == 16 + 56 * 8);
};

/// The table of all functions. A host that loads the library at run time needs this symbol alone. The
/// table is static and never freed.
///
/// @param[in] abi_version the `FACEGRAD_ABI_VERSION` that the host was compiled with
///
/// @return the table; NULL where the library does not implement that version
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_get_api(abi_version: u32) -> *const facegrad_api {
    match abi_version {
        FACEGRAD_ABI_VERSION => &API,
        _ => std::ptr::null(),
    }
}
