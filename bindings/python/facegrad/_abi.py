"""The C ABI of ``include/facegrad.h`` in ctypes: layouts, prototypes, nothing else.

``tests/test_abi.py`` compares every size, offset and prototype with the header.
"""

from __future__ import annotations

import ctypes as c

ABI_VERSION = 1
#: The version of this package and of the library that it comes with.
VERSION = "0.2.0"

Handle = c.c_void_p
Status = c.c_int32
Text = c.c_char_p
LogCallback = c.CFUNCTYPE(None, c.c_int32, c.c_char_p, c.c_void_p)


class Tensor(c.Structure):
    """``facegrad_tensor``."""

    _fields_ = [
        ("data", c.c_void_p),
        ("device_type", c.c_int32),
        ("device_id", c.c_int32),
        ("ndim", c.c_int32),
        ("dtype_code", c.c_uint8),
        ("dtype_bits", c.c_uint8),
        ("dtype_lanes", c.c_uint16),
        ("shape", c.POINTER(c.c_int64)),
        ("strides", c.POINTER(c.c_int64)),
        ("byte_offset", c.c_uint64),
    ]


TensorPointer = c.POINTER(Tensor)
DecodeFunction = c.CFUNCTYPE(c.c_int32, TensorPointer, c.c_uint64, TensorPointer, c.c_void_p)
VjpFunction = c.CFUNCTYPE(c.c_int32, c.c_uint64, TensorPointer, TensorPointer, c.c_void_p)


class Face(c.Structure):
    """``facegrad_face``."""

    _fields_ = [
        ("struct_size", c.c_size_t),
        ("image", c.c_int64),
        ("bbox", c.c_float * 4),
        ("score", c.c_float),
        ("has_landmarks", c.c_int32),
        ("landmarks", c.c_float * 10),
    ]


class Targets(c.Structure):
    """``facegrad_targets``."""

    _fields_ = [
        ("struct_size", c.c_size_t),
        ("references", TensorPointer),
        ("reference_ids", c.POINTER(Text)),
        ("data_types", c.POINTER(Text)),
        ("landmarks", TensorPointer),
        ("boxes", TensorPointer),
        ("reference_landmarks", TensorPointer),
        ("reference_boxes", TensorPointer),
        ("sample_weights", TensorPointer),
        ("sample_ids", c.POINTER(Text)),
    ]


class Step(c.Structure):
    """``facegrad_step``."""

    _fields_ = [
        ("struct_size", c.c_size_t),
        ("x_t", TensorPointer),
        ("prediction", TensorPointer),
        ("times", TensorPointer),
        ("coefficients", TensorPointer),
        ("latent_height", c.c_int64),
        ("latent_width", c.c_int64),
        ("number", c.c_uint64),
        ("gradient_norm", c.c_double),
    ]


class Sample(c.Structure):
    """``facegrad_sample``."""

    _fields_ = [
        ("struct_size", c.c_size_t),
        ("outcome", c.c_int32),
        ("located", c.c_int32),
        ("alignment", c.c_int32),
        ("has_bbox", c.c_int32),
        ("has_landmarks", c.c_int32),
        ("similarity", c.c_float),
        ("weight", c.c_float),
        ("score", c.c_float),
        ("bbox", c.c_float * 4),
        ("landmarks", c.c_float * 10),
        ("decoded", c.c_int32),
        ("exact_pass", c.c_int32),
        ("audit_cosine", c.c_float),
        ("audit_norm_ratio", c.c_float),
    ]


class Result(c.Structure):
    """``facegrad_result``."""

    _fields_ = [
        ("struct_size", c.c_size_t),
        ("loss", c.c_double),
        ("mean_distance", c.c_double),
        ("counted", c.c_int64),
        ("samples", c.c_int64),
        ("exact_passes", c.c_int64),
        ("audit_cosine", c.c_double),
        ("audit_norm_ratio", c.c_double),
        ("levels", c.c_int64),
        ("level_distances", c.c_double * 8),
    ]


_STRING_OUT = [c.c_char_p, c.c_size_t, c.POINTER(c.c_size_t)]

#: name → (result, arguments)
PROTOTYPES: dict[str, tuple[object, list[object]]] = {
    "abi_version": (c.c_uint32, []),
    "version": (c.c_char_p, []),
    "build_info": (Status, _STRING_OUT),
    "status_name": (c.c_char_p, [Status]),
    "last_error": (Status, _STRING_OUT),
    "set_log_callback": (Status, [c.c_void_p, c.c_void_p, c.c_int32]),
    "debug_live": (Status, [Text, c.POINTER(c.c_int64)]),
    "debug_panic": (Status, [Handle]),
    "context_new": (Status, [Text, c.POINTER(Handle)]),
    "context_free": (None, [Handle]),
    "detector_new": (Status, [Handle, Text, c.POINTER(Handle)]),
    "detector_detect": (Status, [Handle, TensorPointer, c.POINTER(Face), c.c_size_t, c.POINTER(c.c_size_t), c.c_void_p]),
    "detector_info": (Status, [Handle, *_STRING_OUT]),
    "detector_free": (None, [Handle]),
    "backbone_new": (Status, [Handle, Text, c.POINTER(Handle)]),
    "backbone_embed": (Status, [Handle, TensorPointer, c.POINTER(Face), c.c_size_t, TensorPointer, c.c_void_p]),
    "backbone_align": (Status, [Handle, TensorPointer, c.POINTER(Face), c.c_size_t, TensorPointer, c.c_void_p]),
    "backbone_info": (Status, [Handle, *_STRING_OUT]),
    "backbone_free": (None, [Handle]),
    "vae_new": (Status, [Handle, Text, c.POINTER(Handle)]),
    "vae_new_from_tensors": (Status, [Handle, c.POINTER(Text), TensorPointer, c.c_size_t, Text, c.POINTER(Handle)]),
    "vae_new_from_functions": (Status, [Handle, DecodeFunction, VjpFunction, c.c_void_p, Text, c.POINTER(Handle)]),
    "vae_decode": (Status, [Handle, TensorPointer, TensorPointer, c.c_void_p]),
    "vae_info": (Status, [Handle, *_STRING_OUT]),
    "vae_free": (None, [Handle]),
    "loss_new": (Status, [Handle, Handle, Handle, Handle, Text, c.POINTER(Handle)]),
    "loss_set_reference": (Status, [Handle, Text, TensorPointer, TensorPointer, c.c_void_p]),
    "loss_remove_reference": (Status, [Handle, Text]),
    "loss_images": (Status, [Handle, TensorPointer, c.POINTER(Targets), TensorPointer, c.POINTER(Sample), c.c_size_t, c.POINTER(Result), c.c_void_p]),
    "loss_step": (Status, [Handle, c.POINTER(Step), c.POINTER(Targets), TensorPointer, c.POINTER(Sample), c.c_size_t, c.POINTER(Result), c.c_void_p]),
    "loss_info": (Status, [Handle, *_STRING_OUT]),
    "loss_save": (Status, [Handle, Text]),
    "loss_restore": (Status, [Handle, Text]),
    "loss_free": (None, [Handle]),
    "graph_new": (Status, [Handle, c.POINTER(Handle)]),
    "graph_input": (Status, [Handle, TensorPointer, c.c_int32, c.POINTER(c.c_int64), c.c_void_p]),
    "graph_predict_x0": (Status, [Handle, c.c_int64, c.c_int64, TensorPointer, Text, c.POINTER(c.c_int64), c.c_void_p]),
    "graph_unpack": (Status, [Handle, c.c_int64, Handle, Text, c.c_int64, c.c_int64, c.POINTER(c.c_int64), c.c_void_p]),
    "graph_decode": (Status, [Handle, c.c_int64, Handle, Text, c.POINTER(c.c_int64), c.c_void_p]),
    "graph_features": (Status, [Handle, c.c_int64, Handle, Text, c.POINTER(c.c_int64), c.c_void_p]),
    "graph_face_loss": (Status, [Handle, c.c_int64, Handle, c.POINTER(Targets), c.POINTER(Sample), c.c_size_t, c.POINTER(Result), c.POINTER(c.c_int64), c.c_void_p]),
    "graph_shape": (Status, [Handle, c.c_int64, c.POINTER(c.c_int64), c.c_size_t, c.POINTER(c.c_size_t)]),
    "graph_read": (Status, [Handle, c.c_int64, TensorPointer, c.c_void_p]),
    "graph_backward": (Status, [Handle, c.c_int64, TensorPointer, c.c_void_p]),
    "graph_gradient": (Status, [Handle, c.c_int64, TensorPointer, c.c_void_p]),
    "graph_sampler_step": (Status, [Handle, c.c_int64, c.c_int64, TensorPointer, TensorPointer, Text, c.POINTER(c.c_int64), c.c_void_p]),
    "graph_free": (None, [Handle]),
    "sampler_step": (Status, [Handle, TensorPointer, TensorPointer, TensorPointer, TensorPointer, Text, TensorPointer, c.c_void_p]),
    "evaluator_new": (Status, [Handle, Text, c.POINTER(Handle)]),
    "evaluator_faces": (Status, [Handle, TensorPointer, c.POINTER(Face), c.c_size_t, TensorPointer, c.POINTER(c.c_size_t), c.c_void_p]),
    "evaluator_align": (Status, [Handle, TensorPointer, c.POINTER(Face), c.c_size_t, TensorPointer, c.c_void_p]),
    "evaluator_set_reference": (Status, [Handle, Text, TensorPointer, TensorPointer, c.c_void_p]),
    "evaluator_remove_reference": (Status, [Handle, Text]),
    "evaluator_compare": (Status, [Handle, TensorPointer, c.POINTER(Targets), c.POINTER(Sample), c.c_size_t, c.POINTER(Result), c.c_void_p]),
    "evaluator_find": (Status, [Handle, TensorPointer, c.POINTER(Text), c.c_size_t, c.POINTER(Sample), c.c_size_t, c.POINTER(Result), c.c_void_p]),
    "evaluator_info": (Status, [Handle, *_STRING_OUT]),
    "evaluator_free": (None, [Handle]),
}  # fmt: skip
