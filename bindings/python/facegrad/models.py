"""The frozen networks: detector and recogniser."""

from __future__ import annotations

import ctypes as c
import json
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from . import _abi
from ._compile import eager
from ._library import Context, Frozen, call, config_text, dtype_name, library, onnxruntime_folder, read_text
from ._tensor import View


@dataclass(frozen=True)
class Face:
    """A face in an image. Places are in pixels, with pixel centres at integers.

    Attributes:
        bbox: x1, y1, x2, y2
        score: detection score in [0, 1]
        landmarks: x and y of left eye, right eye, nose, left and right mouth corner, where left and right are those of the
            image; None where the detector finds no landmarks
    """

    bbox: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...] | None


#: ONNX Runtime's execution providers, by what is left of their names without case and ``ExecutionProvider``.
_PROVIDERS = {"dml": "directml"}


def execution_providers(names: Sequence[str]) -> list[str]:
    """Execution providers as the library names them: ``cuda`` for ``CUDAExecutionProvider``.

    Raises:
        TypeError: for a single text, whose letters would be taken for providers
    """
    if isinstance(names, str):
        raise TypeError(f"providers: expected a list of names, got {names!r}; write [{names!r}]")
    short = (str(name).lower().removesuffix("executionprovider") for name in names)
    return [_PROVIDERS.get(name, name) for name in short]


#: The side of a square detection canvas, or its width and height.
DetectionSize: TypeAlias = "int | tuple[int, int]"


def detection_sizes(sizes: Sequence[DetectionSize]) -> list[int | list[int]]:
    """Detection sizes in the form that the library's configuration takes."""
    return [list(size) if isinstance(size, (tuple, list)) else size for size in sizes]


def canvases(det_size: int | tuple[int, int] | list[Any]) -> list[DetectionSize]:
    """The detection canvases of a ``det_size`` as InsightFace's users write it: a side, or a tuple (width, height) of one
    canvas. A list holds several canvases, whose faces are merged.

    Raises:
        ValueError: it is none of these
    """
    refusal = f"det_size: expected a side in whole pixels, a pair (width, height), or a list of sizes to merge, got {det_size!r}"

    def size(given: Any) -> DetectionSize:
        if isinstance(given, (tuple, list)) and len(given) == 2:
            width, height = (side(one) for one in given)
            return width if width == height else (width, height)
        return side(given)

    def side(given: Any) -> int:
        try:
            return operator.index(given)  # numpy's integers are sides as well
        except TypeError:
            raise ValueError(refusal) from None

    if isinstance(det_size, tuple):
        return [size(det_size)]
    if not isinstance(det_size, list):
        return [side(det_size)]
    if len(det_size) == 2 and det_size[0] == det_size[1]:
        det_size = det_size[:1]
    return [size(one) for one in det_size]


class Detector(Frozen):
    """An SCRFD face detector: InsightFace's ``det_10g.onnx``, ``det_500m.onnx``, ``scrfd_10g_bnkps.onnx``, … Any thread may use
    it; calls run one after the other.

    Args:
        path: the ONNX file
        device: ``cpu``, ``cuda`` or ``cuda:N``
        det_sizes: sides of the detection canvases, or pairs (width, height), in pixels, multiples of 32; the faces of all
            sizes are merged. Only small sizes find a face that fills the image
        threshold: least score of a face, in (0, 1)
        nms_threshold: overlap (intersection over union) above which the weaker of two boxes is dropped, in (0, 1)
        engine: ``auto``, ``ort`` (ONNX Runtime) or ``torch``
        min_size: least length of a face's shorter side, pixels
        retry_sizes: sizes that are tried one after the other where ``det_sizes`` find no face
        retry_padding: after these, ``det_sizes`` are tried with a black border of this part of the image's longer side
        providers: ONNX Runtime's execution providers, best first: ``cpu``, ``cuda``, …, or by ONNX Runtime's own names; a
            provider that is missing is an error
        onnxruntime: the library of ONNX Runtime or its folder; default: the installed wheel's
    """

    _kind = "detector"

    def __init__(
        self,
        path: str | bytes | os.PathLike[Any],
        *,
        device: str | torch.device = "cpu",
        det_sizes: Sequence[DetectionSize] = (640,),
        threshold: float = 0.5,
        nms_threshold: float = 0.4,
        engine: str = "auto",
        min_size: float = 0.0,
        retry_sizes: Sequence[int] = (),
        retry_padding: float = 0.0,
        providers: Sequence[str] = (),
        onnxruntime: str | os.PathLike[str] | None = None,
    ) -> None:
        config: dict[str, Any] = {
            "path": os.fsdecode(path), "det_sizes": detection_sizes(det_sizes), "threshold": threshold,
            "nms_threshold": nms_threshold, "engine": engine, "min_size": min_size,
            "retry_sizes": list(retry_sizes), "retry_padding": retry_padding, "providers": execution_providers(providers),
        }  # fmt: skip
        runtime = os.fsdecode(onnxruntime) if onnxruntime is not None else onnxruntime_folder()
        if runtime is not None and engine != "torch":
            config["onnxruntime"] = runtime
        self._open(device, config_text(config))

    def _open(self, device: str | torch.device, config: bytes) -> None:
        self._context, self._config = Context.of(device), config
        super().__init__(lambda out: call("detector_new", self._context._handle, config, out))

    def on(self, device: str | torch.device) -> Detector:
        """The same detector, loaded on another device."""
        other = object.__new__(type(self))
        other._open(device, self._config)
        return other

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._context.device

    @property
    def description(self) -> str:
        """File, engine and why, sizes and thresholds."""
        return read_text(library.facegrad_detector_info, self._handle)

    @eager
    def detect(self, images: torch.Tensor) -> list[list[Face]]:
        """The faces of every image of ``[N,3,H,W]`` by falling score; RGB, uint8, or floats in [0, 1]."""
        view, count = View("images", images), c.c_size_t()
        capacity = 32
        while True:
            faces = (_abi.Face * capacity)()
            faces[0].struct_size = c.sizeof(_abi.Face)
            call("detector_detect", self._handle, view.pointer, faces, capacity, c.byref(count), self._context.stream)
            if count.value <= capacity:
                break
            capacity = count.value
        found: list[list[Face]] = [[] for _ in range(images.shape[0])]
        for face in faces[: count.value]:
            found[face.image].append(_face(face))
        return found


class Recogniser(Frozen):
    """A frozen face recogniser: arcface_torch weights (``.pth``, ``.safetensors``) or any recogniser ONNX
    (``w600k_r50.onnx``, ``glintr100.onnx``, …). Any thread may use it; calls run one after the other.

    Args:
        path: the file of the weights; its content tells its kind
        device: ``cpu``, ``cuda`` or ``cuda:N``
        model: ``r18``, ``r34``, ``r50``, ``r100`` or ``r200``, which is checked against the weights; None: not checked
        dtype: the precision of the network: ``f32``, ``bf16`` or ``f16``
        mean, std: three numbers each in units of an image in [0, 1], in the network's channel order; default: the family's
        color: the channel order of the network, ``rgb`` or ``bgr``; default: the family's
        input_size: side of the crops, pixels; default: the network's
    """

    _kind = "backbone"

    def __init__(
        self,
        path: str | bytes | os.PathLike[Any],
        *,
        device: str | torch.device = "cpu",
        model: str | None = None,
        dtype: str | torch.dtype = "f32",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        color: str | None = None,
        input_size: int | None = None,
    ) -> None:
        config: dict[str, Any] = {"path": os.fsdecode(path), "dtype": dtype_name(dtype)}
        given = {"model": model, "mean": mean, "std": std, "color": color, "input_size": input_size}
        config.update({key: list(v) if isinstance(v, tuple) else v for key, v in given.items() if v is not None})
        self._open(device, config_text(config))

    def _open(self, device: str | torch.device, config: bytes) -> None:
        self._context, self._config = Context.of(device), config
        super().__init__(lambda out: call("backbone_new", self._context._handle, config, out))
        info = json.loads(read_text(library.facegrad_backbone_info, self._handle))
        #: Family, file, normalisation, colour order, and where each comes from.
        self.description: str = info["description"]
        #: Numbers of an embedding.
        self.dim: int = info["dim"]
        #: Side of the network's input, pixels.
        self.input_size: int = info["input_size"]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._context.device

    def on(self, device: str | torch.device) -> Recogniser:
        """The same recogniser, loaded on another device."""
        other = object.__new__(type(self))
        other._open(device, self._config)
        return other

    @eager
    def embed(self, images: torch.Tensor, faces: Sequence[Sequence[Face]] | torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings of length 1, ``[M,D]`` float32, without a gradient.

        Args:
            images: ``[N,3,H,W]`` RGB in [0, 1]
            faces: lists of faces as :meth:`Detector.detect` returns them, or landmarks ``[N,5,2]`` in pixels, one face per
                image; None: the images are aligned crops already
        """
        array, count = _faces(images, faces)
        out = torch.empty(images.shape[0] if faces is None else count, self.dim, device=images.device)
        view, result = View("images", images), View("embeddings", out)
        call("backbone_embed", self._handle, view.pointer, array, count, result.pointer, self._context.stream)
        return out

    @eager
    def align(self, images: torch.Tensor, faces: Sequence[Sequence[Face]] | torch.Tensor) -> torch.Tensor:
        """The crops that the network sees, ``[M,3,S,S]`` float32 in the units of the images. The arguments are those of
        :meth:`embed`."""
        array, count = _faces(images, faces)
        out = torch.empty(count, 3, self.input_size, self.input_size, device=images.device)
        view, result = View("images", images), View("crops", out)
        call("backbone_align", self._handle, view.pointer, array, count, result.pointer, self._context.stream)
        return out


def _face(face: _abi.Face) -> Face:
    points = tuple((face.landmarks[2 * i], face.landmarks[2 * i + 1]) for i in range(5))
    x1, y1, x2, y2 = face.bbox
    return Face((x1, y1, x2, y2), face.score, points if face.has_landmarks else None)


def _faces(images: torch.Tensor, faces: Sequence[Sequence[Face]] | torch.Tensor | None) -> tuple[Any, int]:
    """The ABI's array of faces, and how many there are."""
    if faces is None:
        return None, 0
    rows: list[tuple[int, Face]] = []
    if isinstance(faces, torch.Tensor):
        if faces.shape != (images.shape[0], 5, 2):
            raise ValueError(f"landmarks: expected {(images.shape[0], 5, 2)}, got {tuple(faces.shape)}")
        for at, points in enumerate(faces.detach().cpu().float()):
            low, high = points.amin(0), points.amax(0)
            box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
            rows.append((at, Face(box, 1.0, tuple((float(x), float(y)) for x, y in points))))
    else:
        rows = [(at, face) for at, group in enumerate(faces) for face in group]
    array = (_abi.Face * max(1, len(rows)))()
    for slot, (at, face) in zip(array, rows):
        slot.struct_size = c.sizeof(_abi.Face)
        slot.image, slot.score = at, face.score
        slot.bbox[:] = face.bbox
        if face.landmarks is not None:
            slot.has_landmarks = 1
            slot.landmarks[:] = [v for point in face.landmarks for v in point]
    return array, len(rows)
