"""The score without a gradient: faces, embeddings and similarities as InsightFace computes them."""

from __future__ import annotations

import ctypes as c
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import _abi
from ._compile import eager
from ._library import Context, Owner, call, config_text, library, onnxruntime_folder, read_text
from ._tensor import View, optional
from .models import DetectionSize, Face, _face, _faces, detection_sizes, execution_providers
from .report import Report, Sample, Sink
from .targets import Targets

#: Where a detector at 640 finds nothing: smaller canvases, on which a face that fills the picture looks usual.
RETRY_SIZES = (320, 160, 128)


@dataclass(frozen=True)
class EmbeddedFace(Face):
    """A face and its embedding.

    Attributes:
        embedding: ``[D]`` float32 of length 1; NaN where the face spans no area
    """

    embedding: torch.Tensor


class Evaluator(Owner):
    """Faces and embeddings as ``insightface.app.FaceAnalysis.get`` computes them, from 8-bit pixels, and similarities of
    people. Nothing here has a gradient. Any thread may use it; calls run one after the other.

    Args:
        detector: an SCRFD ONNX file
        recogniser: a recogniser's ONNX file or weights, or a mapping with ``path`` and further keys of
            ``facegrad_backbone_new`` (``mean``, ``std``, ``color``, …)
        device: ``cpu``, ``cuda`` or ``cuda:N``
        det_sizes: sides of the detection canvases, or pairs (width, height), in pixels, multiples of 32; the faces of all
            sizes are merged. InsightFace used 640 before version 1.0, and uses 128 and 640 since
        threshold, nms_threshold: least score of a face, and overlap (intersection over union) above which the weaker of two
            boxes is dropped; both in (0, 1)
        min_size: least length of a face's shorter side, pixels
        retry_sizes: sizes that are tried one after the other where ``det_sizes`` find no face
        retry_padding: after these, ``det_sizes`` are tried with a black border of this part of the image's longer side
        engine: ``ort`` (ONNX Runtime), ``torch``, or ``auto``: ONNX Runtime on the CPU where it is installed
        providers: ONNX Runtime's execution providers, best first: ``cpu``, ``cuda``, ``tensorrt``, ``rocm``,
            ``migraphx``, ``openvino``, ``coreml``, ``directml``, or by ONNX Runtime's own names, such as
            ``CUDAExecutionProvider``. A provider that is missing is an error
        onnxruntime: the library of ONNX Runtime or its folder; default: the installed wheel's
        face_choice: which of several faces counts: ``score`` (the highest), ``largest``, ``center``, or ``index`` with
            ``face_index``
        pooling: how several reference images of one person are compared: ``centroid``, the cosine with their normalised
            mean; ``mean``, the mean of the cosines; ``max``, the largest
        face_types: the ``data_types`` that count; None: all

    Raises:
        facegrad.FacegradError: a file that cannot be read or is no such network, or an engine or provider that is missing
    """

    _kind = "evaluator"

    def __init__(
        self,
        detector: str | os.PathLike[str],
        recogniser: str | os.PathLike[str] | Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        det_sizes: Sequence[DetectionSize] = (640,),
        threshold: float = 0.5,
        nms_threshold: float = 0.4,
        min_size: float = 0.0,
        retry_sizes: Sequence[int] = (),
        retry_padding: float = 0.0,
        engine: str = "auto",
        providers: Sequence[str] = (),
        onnxruntime: str | os.PathLike[str] | None = None,
        face_choice: str = "score",
        face_index: int = 0,
        pooling: str = "centroid",
        face_types: Sequence[str] | None = None,
    ) -> None:
        self._context = Context.of(device)
        runtime = os.fsdecode(onnxruntime) if onnxruntime is not None else onnxruntime_folder()
        engines: dict[str, Any] = {"engine": engine, "providers": execution_providers(providers)}
        if runtime is not None and engine != "torch":
            engines["onnxruntime"] = runtime
        config = {
            "detector": {
                "path": os.fsdecode(detector), "det_sizes": detection_sizes(det_sizes), "threshold": threshold, "nms_threshold": nms_threshold,
                "min_size": min_size, "retry_sizes": list(retry_sizes), "retry_padding": retry_padding, **engines,
            },
            "recogniser": dict(recogniser) if isinstance(recogniser, Mapping) else os.fsdecode(recogniser),
            "face_choice": face_choice, "face_index": face_index, "pooling": pooling, **engines,
            **({} if face_types is None else {"face_types": list(face_types)}),
        }  # fmt: skip
        text = config_text(config)
        super().__init__(lambda out: call("evaluator_new", self._context._handle, text, out))
        info = json.loads(read_text(library.facegrad_evaluator_info, self._handle))
        #: What was loaded, which engine runs it, and under ``settings`` what decides between faces.
        self.description: dict[str, Any] = {key: info[key] for key in ("detector", "recogniser", "settings")}
        #: Numbers of an embedding.
        self.dim: int = info["dim"]
        #: Side of an aligned crop, pixels.
        self.input_size: int = info["input_size"]

    @property
    def device(self) -> torch.device:
        """The device of the networks. Images may be on any device."""
        return self._context.device

    def _here(self, images: torch.Tensor) -> torch.Tensor:
        if not isinstance(images, torch.Tensor):
            raise TypeError(f"images: expected a torch.Tensor, got {type(images).__name__}")
        return images.detach().to(self._context.device)

    @eager
    def faces(self, images: torch.Tensor) -> list[list[EmbeddedFace]]:
        """The faces of every image of ``[N,3,H,W]`` by falling score; RGB, uint8, or floats in [0, 1]."""
        view, count = View("images", self._here(images)), c.c_size_t()
        capacity = 16 * max(1, images.shape[0])
        while True:
            faces = (_abi.Face * capacity)()
            faces[0].struct_size = c.sizeof(_abi.Face)
            rows = torch.empty(capacity, self.dim, device=self._context.device)
            out = View("embeddings", rows)
            call(
                "evaluator_faces", self._handle, view.pointer, faces, capacity, out.pointer, c.byref(count), self._context.stream,
            )  # fmt: skip
            if count.value <= capacity:
                break
            capacity = count.value
        found: list[list[EmbeddedFace]] = [[] for _ in range(images.shape[0])]
        for face, row in zip(faces[: count.value], rows.cpu()):
            plain = _face(face)
            found[face.image].append(EmbeddedFace(plain.bbox, plain.score, plain.landmarks, row.clone()))
        return found

    @eager
    def align(self, images: torch.Tensor, faces: Sequence[Sequence[Face]] | torch.Tensor) -> torch.Tensor:
        """The crops that the recogniser sees, ``[M,3,S,S]`` float32 in [0, 1], as InsightFace's ``norm_crop`` makes them.

        Args:
            images: ``[N,3,H,W]``, RGB, uint8, or floats in [0, 1]
            faces: lists of faces as :meth:`faces` returns them, or landmarks ``[N,5,2]`` in pixels, one face per image
        """
        array, count = _faces(images, faces)
        crops = torch.empty(count, 3, self.input_size, self.input_size, device=self._context.device)
        view, out = View("images", self._here(images)), View("crops", crops)
        call("evaluator_align", self._handle, view.pointer, array, count, out.pointer, self._context.stream)
        return crops

    @eager
    def set_reference(self, id: str, images: torch.Tensor, landmarks: torch.Tensor | None = None) -> None:
        """Registers a person by one face of every image. Images without a face are left out with a warning.

        Args:
            id: the name of the person; an earlier person of that name is replaced
            images: ``[K,3,H,W]``, RGB, uint8, or floats in [0, 1]
            landmarks: ``[K,5,2]`` in pixels, rows of NaN where not known: the detected face nearest to them is used. None:
                ``face_choice`` decides

        Raises:
            facegrad.FacegradError: no image has a face
        """
        view, points = View("images", self._here(images)), optional("landmarks", landmarks)
        call("evaluator_set_reference", self._handle, id.encode(), view.pointer, points.pointer if points else None, self._context.stream)

    def remove_reference(self, id: str) -> None:
        """Removes a registered person."""
        call("evaluator_remove_reference", self._handle, id.encode())

    @eager
    def compare(
        self,
        images: torch.Tensor,
        references: torch.Tensor | None = None,
        **targets: Any,
    ) -> Report:
        """Compares one face of every image with its reference. ``report.similarity`` is the mean cosine.

        Args:
            images: ``[N,3,H,W]``, RGB, uint8, or floats in [0, 1]
            references: ``[N,3,H,W]`` or ``[1,3,H,W]``, any size
            targets: the arguments of :class:`facegrad.targets.Targets`. Landmarks and boxes say which face is meant: the
                detected face nearest to them is compared. ``sample_weights`` change only ``report.loss``
        """
        images = self._here(images)
        references = None if references is None else self._here(references)
        count = images.shape[0] if images.dim() else 0
        told, view = Targets(count, references, **targets), View("images", images)
        return self._report(count, lambda *out: call("evaluator_compare", self._handle, view.pointer, c.byref(told.struct), *out))

    @eager
    def find(self, images: torch.Tensor, ids: Sequence[str]) -> list[dict[str, Sample]]:
        """Finds registered people in every image of ``[N,3,H,W]``. Faces and people are matched one to one so that the sum
        of the similarities is largest (the Hungarian method). Returns per image the sample of every id."""
        view = View("images", self._here(images))
        names = (_abi.Text * max(1, len(ids)))(*(id.encode() for id in ids))
        report = self._report(
            images.shape[0] * len(ids),
            lambda *out: call("evaluator_find", self._handle, view.pointer, names, len(ids), *out),
        )
        rows = iter(report.samples)
        return [{id: next(rows) for id in ids} for _ in range(images.shape[0])]

    def _report(self, count: int, run: Callable[..., None]) -> Report:
        """Runs a call whose last arguments are samples, their number, result and stream, and returns its report."""
        sink = Sink(count)
        run(sink.samples, sink.capacity, c.byref(sink.result), self._context.stream)
        return sink.report()
