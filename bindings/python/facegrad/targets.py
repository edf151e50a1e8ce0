"""What a trainer says of the samples of a batch."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence

import torch

from . import _abi
from ._tensor import optional


class Targets:
    """The arguments of one call as ``facegrad_targets``, for a batch of ``count``. Keeps their memory alive.

    Args:
        references: ``[N,3,H,W]`` or ``[1,3,H,W]``, RGB in [0, 1], any size
        reference_ids: per sample an id of ``set_reference``; None: its row of ``references``
        data_types: per sample, checked against ``face_types``; None: every sample counts
        landmarks, boxes: ``[N,5,2]``, ``[N,4]`` where the generated faces are known, pixels; rows of NaN where not
        reference_landmarks, reference_boxes: the same of the references
        sample_weights: ``[N]``, ≥ 0
        sample_ids: per sample a name that tells it from all others of the training, by which ``norm_stats`` remembers it;
            None: its reference image tells
    """

    def __init__(
        self,
        count: int,
        references: torch.Tensor | None = None,
        *,
        reference_ids: Sequence[str | None] | None = None,
        data_types: Sequence[str] | None = None,
        landmarks: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        reference_landmarks: torch.Tensor | None = None,
        reference_boxes: torch.Tensor | None = None,
        sample_weights: torch.Tensor | None = None,
        sample_ids: Sequence[str | None] | None = None,
    ) -> None:
        tensors = {
            "references": references, "landmarks": landmarks, "boxes": boxes, "reference_landmarks": reference_landmarks,
            "reference_boxes": reference_boxes, "sample_weights": sample_weights,
        }  # fmt: skip
        self._views = {name: optional(name, tensor) for name, tensor in tensors.items()}
        self.struct = _abi.Targets(struct_size=c.sizeof(_abi.Targets))
        for name, view in self._views.items():
            if view is not None:
                setattr(self.struct, name, view.pointer)
        for name, texts in (("reference_ids", reference_ids), ("data_types", data_types), ("sample_ids", sample_ids)):
            if texts is None:
                continue
            if isinstance(texts, str) or len(texts) != count:
                raise ValueError(f"{name}: expected {count} entries, one per sample, got {texts!r}")
            setattr(self.struct, name, (_abi.Text * count)(*(t.encode() if t is not None else None for t in texts)))
