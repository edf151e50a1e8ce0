"""The report of a loss about every sample."""

from __future__ import annotations

import ctypes as c
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch

from . import _abi


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
    """How the face was brought to the recogniser's input."""

    NONE = 0
    KPS = 1
    BBOX = 2
    BBOX_FALLBACK = 3


class Decoded(IntEnum):
    """Which part of the generated image was decoded with a gradient."""

    NOTHING = 0
    FULL = 1
    WINDOW_EXACT = 2
    WINDOW_CACHED = 3
    WINDOW = 4
    WINDOW_PREDICTED = 5


@dataclass(frozen=True)
class Sample:
    """What happened to one sample. NaN or None where a number was not computed.

    Attributes:
        outcome: whether it counts, or why not
        located: how the generated face was found
        alignment: how the face was aligned
        similarity: cosine similarity to the reference in [−1, 1]
        weight: the sample's weight in the mean
        score: detection score in [0, 1]
        bbox: the generated face's box x1, y1, x2, y2, pixels
        landmarks: the generated face's five points x, y, pixels
        decoded: which part of the image was decoded with a gradient
        exact_pass: whether the whole image was decoded without a gradient, for detection or for GroupNorm's statistics
        audit_cosine: at steps that audit, the cosine between the gradients through the window and the whole image
        audit_norm_ratio: at steps that audit, the norm of the former divided by that of the latter
    """

    outcome: Outcome
    located: Located
    alignment: Alignment
    similarity: float
    weight: float
    score: float
    bbox: tuple[float, ...] | None
    landmarks: tuple[tuple[float, float], ...] | None
    decoded: Decoded = Decoded.NOTHING
    exact_pass: bool = False
    audit_cosine: float = math.nan
    audit_norm_ratio: float = math.nan


@dataclass(frozen=True)
class Report:
    """The value of a loss, and what happened to every sample.

    Attributes:
        loss: the weighted loss, which is differentiated
        mean_distance: mean of 1 − cos over the counted samples, in [0, 2]; 0 where none counts
        counted: how many samples count
        samples: one per generated image, in order
        exact_passes: how many whole images were decoded without a gradient, for detection or for GroupNorm's statistics
        audit_cosine, audit_norm_ratio: those of the audited sample with the least cosine; NaN where none was audited
        level_distances: with ``levels``, the mean of 1 − cos per level, in the order of the config; empty without
    """

    loss: float
    mean_distance: float
    counted: int
    samples: tuple[Sample, ...]
    exact_passes: int = 0
    audit_cosine: float = math.nan
    audit_norm_ratio: float = math.nan
    level_distances: tuple[float, ...] = ()

    @property
    def similarity(self) -> float:
        """Mean cosine similarity of the counted samples; NaN where none counts."""
        return 1 - self.mean_distance if self.counted else math.nan


class _Details(NamedTuple):
    loss: torch.Tensor
    per_sample: torch.Tensor
    mask: torch.Tensor


class Details(_Details):
    """The tuple ``loss, per_sample, mask`` that the method's losses return with ``return_details=True``.

    Attributes:
        loss: the loss, a scalar with a gradient
        per_sample: ``[B]`` float32, 1 − cos of every sample that counts, 0 elsewhere, without a gradient
        mask: ``[B]`` bool: which samples count
        report: the :class:`Report`, which says why, and where the faces are
    """

    report: Report

    @classmethod
    def of(cls, loss: torch.Tensor, report: Report) -> Details:
        """The details of a loss and its report."""
        counts = [sample.outcome is Outcome.COUNTED for sample in report.samples]
        distances = [1 - sample.similarity if count else 0.0 for sample, count in zip(report.samples, counts)]
        details = cls(
            loss,
            torch.tensor(distances, dtype=torch.float32, device=loss.device),
            torch.tensor(counts, dtype=torch.bool, device=loss.device),
        )
        details.report = report
        return details


class Sink:
    """The ABI's structs that a call fills in, for a batch of ``count``."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.capacity = max(1, count)
        self.samples = (_abi.Sample * self.capacity)()
        self.samples[0].struct_size = c.sizeof(_abi.Sample)
        self.result = _abi.Result(struct_size=c.sizeof(_abi.Result))

    def report(self) -> Report:
        """The report that the call wrote."""
        result = self.result
        samples = tuple(_sample(s) for s in self.samples[: self._count])
        return Report(
            result.loss, result.mean_distance, result.counted, samples,
            result.exact_passes, result.audit_cosine, result.audit_norm_ratio,
            tuple(result.level_distances[: result.levels]),
        )  # fmt: skip


def _sample(s: _abi.Sample) -> Sample:
    points = tuple((s.landmarks[2 * i], s.landmarks[2 * i + 1]) for i in range(5))
    return Sample(
        Outcome(s.outcome), Located(s.located), Alignment(s.alignment), s.similarity, s.weight, s.score,
        tuple(s.bbox) if s.has_bbox else None, points if s.has_landmarks else None,
        Decoded(s.decoded), bool(s.exact_pass), s.audit_cosine, s.audit_norm_ratio,
    )  # fmt: skip
