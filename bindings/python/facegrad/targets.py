"""What a trainer says about the samples of a batch."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence

import torch

from . import _abi
from ._tensor import optional


class Targets:
    """The arguments of one call as ``facegrad_targets``, for a batch of ``count``. It keeps their memory alive.

    Args:
        references: reference images ``[N,3,H,W]``, or ``[1,3,H,W]`` for all samples, RGB in [0, 1], any size
        reference_ids: per sample an id of ``set_reference``, or None where the sample uses its row of ``references``
        data_types: per sample the kind of training image; only those among ``face_types`` count. None: every sample counts
        landmarks, boxes: places of the generated faces in pixels: ``[N,5,2]``, and ``[N,4]`` as x1, y1, x2, y2. Faces whose
            rows are NaN are detected. None: all are detected
        reference_landmarks, reference_boxes: the same for the faces in ``references``
        sample_weights: weights of the samples in the mean, ``[N]``, from 0 to 1e30; None: 1 each
        sample_ids: per sample a name that is unique in the training set, under which ``norm_stats`` remembers statistics;
            None: the sample is identified by its reference image
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
