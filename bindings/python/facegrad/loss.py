"""The identity loss as torch's autograd sees it."""

from __future__ import annotations

import ctypes as c
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from . import _abi
from ._library import Context, Owner, call, library, read_text
from ._tensor import View, optional
from .models import Detector, Recogniser


class Outcome(IntEnum):
    """Why a sample counts, or why not."""

    COUNTED = 0
    DISABLED = 1
    DATA_TYPE = 2
    ZERO_WEIGHT = 3
    NO_REFERENCE_FACE = 4
    NO_FACE = 5
    DEGENERATE = 6
    NON_FINITE = 7
    TIME = 8
    STEP = 9


class Located(IntEnum):
    """How the generated face was found."""

    NOWHERE = 0
    DETECTED = 1
    GIVEN = 2
    REFERENCE = 3


class Alignment(IntEnum):
    """How it was brought to the recogniser's input."""

    NONE = 0
    KPS = 1
    BBOX = 2
    BBOX_FALLBACK = 3


class Decoded(IntEnum):
    """What was decoded of the generated image."""

    NOTHING = 0
    FULL = 1
    WINDOW_EXACT = 2
    WINDOW_CACHED = 3
    WINDOW = 4


@dataclass(frozen=True)
class Sample:
    """What one sample did for the loss. Pixels; NaN and None where a number was not computed.

    ``exact_pass``: the whole image was decoded without a gradient, for detection or for GroupNorm's statistics.
    ``audit_cosine``, ``audit_norm_ratio``: the window's gradient against the whole image's, at steps that audit.
    """

    outcome: Outcome
    located: Located
    alignment: Alignment
    similarity: float
    weight: float
    score: float
    bbox: tuple[float, ...] | None
    landmarks: tuple[tuple[float, float], ...] | None
    decoded: Decoded
    exact_pass: bool
    audit_cosine: float
    audit_norm_ratio: float


@dataclass(frozen=True)
class Report:
    """The value of a loss and what every sample did for it.

    Attributes:
        loss: the weighted loss, what the gradient belongs to
        mean_distance: mean of 1 − cos over the counted samples, in [0, 2]
        counted: how many samples count
        samples: one a generated image
        exact_passes: how many whole images were decoded without a gradient for the sake of windows
        audit_cosine, audit_norm_ratio: of the audited sample with the least cosine; NaN where none was audited
    """

    loss: float
    mean_distance: float
    counted: int
    samples: tuple[Sample, ...]
    exact_passes: int
    audit_cosine: float
    audit_norm_ratio: float

    @property
    def similarity(self) -> float:
        """Mean cosine similarity of the counted samples; NaN where none counts."""
        return 1 - self.mean_distance if self.counted else math.nan


class FaceLoss(Owner):
    """The library's loss object: images in, weighted loss and report out.

    Args:
        config: the keys of ``facegrad_loss_new`` (``face_loss_weight``, ``face_align_mode``, ``face_types``,
            ``landmarks``, ``target_similarity``, …)
        detector: None: every face's place has to be given
        recogniser: None: loaded from the config's ``arcface_weights``
        device: where the networks are loaded that the config names
    """

    _kind = "loss"

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        detector: Detector | None = None,
        recogniser: Recogniser | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if device is None:
            owner = recogniser or detector
            device = owner._context.device if owner is not None else "cpu"
        self._context = Context.of(device)
        self._parts = (detector, recogniser, None)
        text = json.dumps(dict(config or {})).encode()
        handles = [part._handle if part is not None else None for part in self._parts]
        super().__init__(lambda out: call("loss_new", self._context._handle, *handles, text, out))

    @property
    def description(self) -> dict[str, Any]:
        """What the loss uses."""
        info: dict[str, Any] = json.loads(read_text(library.facegrad_loss_info, self._handle))
        return info

    def set_reference(self, id: str, images: torch.Tensor, landmarks: torch.Tensor | None = None) -> None:
        """Registers a person under an id with the faces of ``[K,3,H,W]``, RGB in [0, 1]."""
        views = View("images", images), optional("landmarks", landmarks)
        call("loss_set_reference", self._handle, id.encode(), views[0].pointer, views[1].pointer if views[1] else None, self._context.stream)

    def remove_reference(self, id: str) -> None:
        """Forgets a registered person."""
        call("loss_remove_reference", self._handle, id.encode())

    def __call__(
        self,
        images: torch.Tensor,
        references: torch.Tensor | None = None,
        *,
        reference_ids: Sequence[str | None] | None = None,
        data_types: Sequence[str] | None = None,
        landmarks: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        reference_landmarks: torch.Tensor | None = None,
        reference_boxes: torch.Tensor | None = None,
        sample_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Report]:
        """The weighted loss, a scalar that ``backward()`` can start from, and the report.

        Args:
            images: generated images ``[N,3,H,W]``, RGB, nominally in [0, 1]; float32, float16 or bfloat16
            references: ``[N,3,H,W]`` or ``[1,3,H,W]``, RGB in [0, 1], any size
            reference_ids: per sample an id of :meth:`set_reference`; None: its row of ``references``
            data_types: per sample, checked against ``face_types``; None: every sample counts
            landmarks, boxes: ``[N,5,2]``, ``[N,4]`` where the generated faces are known, pixels; rows of NaN
                where not
            reference_landmarks, reference_boxes: the same of the references
            sample_weights: ``[N]``, ≥ 0
        """
        targets = _Targets(
            self, images, references, reference_ids, data_types, landmarks, boxes,
            reference_landmarks, reference_boxes, sample_weights,
        )  # fmt: skip
        value: torch.Tensor = _Value.apply(images, targets)  # type: ignore[no-untyped-call]
        assert targets.report is not None
        return value, targets.report


class _Targets:
    """One call's arguments in the ABI's form, and what came back."""

    def __init__(
        self,
        loss: FaceLoss,
        images: torch.Tensor,
        references: torch.Tensor | None,
        reference_ids: Sequence[str | None] | None,
        data_types: Sequence[str] | None,
        landmarks: torch.Tensor | None,
        boxes: torch.Tensor | None,
        reference_landmarks: torch.Tensor | None,
        reference_boxes: torch.Tensor | None,
        sample_weights: torch.Tensor | None,
    ) -> None:
        self.loss, self.report = loss, None  # type: tuple[FaceLoss, Report | None]
        tensors = {
            "references": references, "landmarks": landmarks, "boxes": boxes, "reference_landmarks": reference_landmarks,
            "reference_boxes": reference_boxes, "sample_weights": sample_weights,
        }  # fmt: skip
        self._views = {name: optional(name, tensor) for name, tensor in tensors.items()}
        struct = _abi.Targets(struct_size=c.sizeof(_abi.Targets))
        for name, view in self._views.items():
            if view is not None:
                setattr(struct, name, view.pointer)
        count = images.shape[0] if images.dim() else 0
        for name, texts in (("reference_ids", reference_ids), ("data_types", data_types)):
            if texts is None:
                continue
            if isinstance(texts, str) or len(texts) != count:
                raise ValueError(f"{name}: expected {count} entries, one per image, got {texts!r}")
            setattr(struct, name, (_abi.Text * count)(*(t.encode() if t is not None else None for t in texts)))
        self._struct = struct

    def run(self, images: torch.Tensor, with_gradient: bool) -> tuple[float, torch.Tensor | None]:
        view = View("images", images)
        count = images.shape[0] if images.dim() else 0
        gradient = torch.empty_like(view.tensor, memory_format=torch.contiguous_format) if with_gradient else None
        output = optional("gradient", gradient)
        samples = (_abi.Sample * max(1, count))()
        samples[0].struct_size = c.sizeof(_abi.Sample)
        result = _abi.Result(struct_size=c.sizeof(_abi.Result))
        call(
            "loss_images", self.loss._handle, view.pointer, c.byref(self._struct), output.pointer if output else None,
            samples, len(samples), c.byref(result), self.loss._context.stream,
        )  # fmt: skip
        self.report = Report(
            result.loss, result.mean_distance, result.counted, tuple(_sample(s) for s in samples[:count]),
            result.exact_passes, result.audit_cosine, result.audit_norm_ratio,
        )  # fmt: skip
        return result.loss, gradient


def _sample(s: _abi.Sample) -> Sample:
    points = tuple((s.landmarks[2 * i], s.landmarks[2 * i + 1]) for i in range(5))
    return Sample(
        Outcome(s.outcome), Located(s.located), Alignment(s.alignment), s.similarity, s.weight, s.score,
        tuple(s.bbox) if s.has_bbox else None, points if s.has_landmarks else None,
        Decoded(s.decoded), bool(s.exact_pass), s.audit_cosine, s.audit_norm_ratio,
    )  # fmt: skip


class _Value(torch.autograd.Function):
    """Value and gradient come from one call, so backward is one multiplication."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, targets: _Targets) -> torch.Tensor:
        value, gradient = targets.run(images, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.full((), value, dtype=torch.float32, device=images.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None


class DifferentiableFaceLoss(torch.nn.Module):
    """``mean(1 − cos)`` between reference and generated faces, differentiable in the generated images.

    Args:
        model_name: ``r50``, ``r100``, … of the recogniser; checked against the weights. None: not checked
        pretrained_path: the recogniser: arcface_torch weights or an ONNX file. None: the one of the pack in ``root``
        device: ``cpu``, ``cuda`` or ``cuda:N``
        det_size: side, ``(side, side)``, or a list of sides to merge
        root: the folder of InsightFace packs, or of one pack; default ``~/.insightface``
        align_mode: ``bbox``, as the method's default, or ``kps``, recommended
        detector: the detector's ONNX file. None: the one of the pack in ``root``
        config: further keys of :class:`FaceLoss`
    """

    def __init__(
        self,
        model_name: str | None = "r50",
        pretrained_path: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cuda",
        det_size: int | Sequence[int] = (640, 640),
        root: str | os.PathLike[str] | None = None,
        align_mode: str = "bbox",
        *,
        detector: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        from .packs import find_detector, find_recogniser

        weights = pretrained_path if pretrained_path is not None else find_recogniser(root, model_name)
        found = detector if detector is not None else find_detector(root)
        self.detector = Detector(found, device=device, det_sizes=_sizes(det_size))
        self.recogniser = Recogniser(weights, device=device, model=model_name)
        keys = {"face_loss_weight": 1.0, "face_align_mode": align_mode, **(config or {})}
        self.loss = FaceLoss(keys, detector=self.detector, recogniser=self.recogniser)

    def forward(
        self,
        ref_images: torch.Tensor,
        gen_images: torch.Tensor,
        return_details: bool = False,
        *,
        data_types: Sequence[str] | None = None,
        landmarks: torch.Tensor | None = None,
        ref_landmarks: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Report]:
        """The loss, a scalar; with ``return_details`` also the report.

        Args:
            ref_images: ``[B,3,H,W]`` (or one for all), RGB in [0, 1]
            gen_images: ``[B,3,H,W]``, RGB in [0, 1]; the gradient flows here
            data_types: per sample; only ``person`` and ``person_head`` count. None: all count
            landmarks, ref_landmarks: ``[B,5,2]`` where the faces are known; None: detected
        """
        value, report = self.loss(
            gen_images, ref_images, data_types=data_types, landmarks=landmarks, reference_landmarks=ref_landmarks
        )
        return (value, report) if return_details else value


def _sizes(det_size: int | Sequence[int]) -> list[int]:
    """``640``, ``(640, 640)`` and lists of sides to merge, in the library's form."""
    if isinstance(det_size, int):
        return [det_size]
    sizes = list(det_size)
    if len(sizes) == 2 and sizes[0] == sizes[1]:
        return sizes[:1]
    return sizes
