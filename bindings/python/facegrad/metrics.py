"""Numbers of a training run, collected from the reports of its steps."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, deque
from collections.abc import Sequence

import torch

from .report import Located, Outcome, Report


def copy_paste(generated: torch.Tensor, references: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Per generated face how much it copies a training reference instead of showing the person: ``[N]``, −1 to 1.

    The value is ``(θ(g, t) − θ(g, r)) / θ(t, r)``, with the angles θ between the embeddings of the generated face g, the
    reference r that is nearest to it, and a photograph t of the same person that was not in the training (WithAnyone,
    arXiv:2510.14975). 1 means a copy of the reference. 0 means that g is as far from r as from t.

    Args:
        generated: ``[N,D]``
        references: ``[K,D]``, the training's own photographs
        targets: ``[N,D]`` or ``[1,D]``, photographs that were not in the training
    """
    g, r, t = (torch.nn.functional.normalize(x.detach().double().cpu(), dim=-1) for x in (generated, references, targets))
    nearest = r[(g @ r.T).argmax(1)]
    t = t.expand_as(g)

    def angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum(-1).clamp(-1, 1).acos()

    return (angle(g, t) - angle(g, nearest)) / angle(t, nearest).clamp_min(1e-6)


class Statistics:
    """Count, mean, standard deviation, least and largest of numbers that are added one by one (Welford's method)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = math.nan
        self.least, self.largest = math.inf, -math.inf
        self._squares = 0.0

    def add(self, value: float) -> None:
        """Adds a number."""
        self.count += 1
        before = 0.0 if self.count == 1 else self.mean
        self.mean = before + (value - before) / self.count
        self._squares += (value - before) * (value - self.mean)
        self.least, self.largest = min(self.least, value), max(self.largest, value)

    @property
    def deviation(self) -> float:
        """The sample standard deviation; NaN for fewer than two numbers."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else math.nan


class TrainingMetrics:
    """Similarities, detection rate and reasons of skipping, over a run and over its last samples.

    >>> metrics = TrainingMetrics()  # doctest: +SKIP
    >>> metrics.update(report, times=t)  # doctest: +SKIP
    >>> writer.add_scalars("face", metrics.as_dict(), step)  # TensorBoard; wandb.log(metrics.as_dict())  # doctest: +SKIP

    Args:
        window: how many of the last counted samples ``similarity`` is a mean of
        buckets: into how many equal parts the noise levels 0 to 1 are divided
    """

    def __init__(self, *, window: int = 100, buckets: int = 10) -> None:
        if window < 1 or buckets < 1:
            raise ValueError(f"window, buckets: expected at least 1, got {window} and {buckets}")
        self.window: deque[float] = deque(maxlen=window)
        self.overall = Statistics()
        self.by_time = [Statistics() for _ in range(buckets)]
        self.copying = Statistics()
        self.outcomes: Counter[Outcome] = Counter()
        self.similarities: list[float] = []
        self._looked = 0
        self._found = 0

    def update(self, report: Report, *, times: torch.Tensor | Sequence[float] | None = None) -> None:
        """Adds the report of a step.

        Args:
            report: the report of a loss or of an evaluator
            times: per sample the noise level in [0, 1]
        """
        levels = [math.nan] * len(report.samples) if times is None else [float(t) for t in times]
        if len(levels) != len(report.samples):
            raise ValueError(f"times: expected {len(report.samples)} entries, one per sample, got {len(levels)}")
        self.similarities = [sample.similarity for sample in report.samples]
        for sample, level in zip(report.samples, levels):
            self.outcomes[sample.outcome] += 1
            self._found += sample.located == Located.DETECTED
            self._looked += sample.located == Located.DETECTED or sample.outcome == Outcome.NO_FACE
            if sample.outcome != Outcome.COUNTED:
                continue
            self.window.append(sample.similarity)
            self.overall.add(sample.similarity)
            if 0 <= level <= 1:
                bucket = min(int(level * len(self.by_time)), len(self.by_time) - 1)
                self.by_time[bucket].add(sample.similarity)

    def update_copying(self, generated: torch.Tensor, references: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds :func:`copy_paste` of some generated faces, with the same arguments. Rows of NaN are left out."""
        for value in copy_paste(generated, references, targets).tolist():
            if math.isfinite(value):
                self.copying.add(value)

    def as_dict(self, prefix: str = "face/") -> dict[str, float]:
        """All metrics as plain numbers. Metrics that are not known yet are left out.

        The keys are ``similarity`` (the window's mean), ``similarity_mean``, ``_std``, ``_min``, ``_max`` of the run,
        ``detection_rate``, ``counted``, ``skipped/<reason>``, ``similarity_t/<from>-<to>`` and ``copy_paste``.
        """
        count = len(self.window)
        values = {
            "similarity": sum(self.window) / count if count else math.nan,
            "similarity_mean": self.overall.mean, "similarity_std": self.overall.deviation,
            "similarity_min": self.overall.least, "similarity_max": self.overall.largest,
            "detection_rate": self._found / self._looked if self._looked else math.nan,
            "copy_paste": self.copying.mean,
            "counted": float(self.outcomes[Outcome.COUNTED]),
        }  # fmt: skip
        for outcome, times in sorted(self.outcomes.items()):
            if outcome != Outcome.COUNTED:
                values[f"skipped/{outcome.name.lower()}"] = float(times)
        width = 1 / len(self.by_time)
        for at, bucket in enumerate(self.by_time):
            values[f"similarity_t/{at * width:.2f}-{(at + 1) * width:.2f}"] = bucket.mean
        return {prefix + name: value for name, value in values.items() if math.isfinite(value)}

    def to_json(self, step: int) -> str:
        """One line of JSON: ``step``, the last step's ``similarities`` (null where there was none), and :meth:`as_dict`."""
        last = [value if math.isfinite(value) else None for value in self.similarities]
        return json.dumps({"step": step, "similarities": last, **self.as_dict(prefix="")})

    def append(self, path: str | os.PathLike[str], step: int) -> None:
        """Adds :meth:`to_json` to a file of JSON lines."""
        with open(path, "a", encoding="utf-8") as file:
            file.write(self.to_json(step) + "\n")
