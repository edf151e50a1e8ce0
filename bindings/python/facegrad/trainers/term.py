"""The face loss as one more term of a trainer's loss, with counters, logs and state for a long run."""

from __future__ import annotations

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from .._compile import eager
from ..identity import FaceIdentityLoss
from ..report import Outcome, Report

log = logging.getLogger("facegrad")


class FaceTerm:
    """Wraps a :class:`facegrad.FaceIdentityLoss` for a training loop. It counts the steps, keeps statistics for the
    trainer's log, warns when no sample has counted for long, and can be saved and restored.

    >>> face = FaceTerm(loss)  # doctest: +SKIP
    >>> total = mse + face(x_t=x_t, prediction=v, t=t, references=pictures, size=(h, w))  # doctest: +SKIP

    Nothing is synchronised between processes. Every rank has its own term over its own samples.

    Args:
        loss: the loss, which has λ and all weights; or a function without arguments that makes it. The function is called at
            the first step, so every process loads the models then, on its own device
        average: ``"counted"``: the method's mean over the samples that count. ``"batch"``: their sum divided by the size of the
            batch. Only with ``"batch"`` is the mean over ranks or accumulated batches exactly the value of one large batch,
            however the faces are distributed
        warn_after: after so many calls in a row without a counted sample, a warning names the reasons, and again after as many
            calls. Calls that ``every_n_steps`` leaves out are not counted
        enabled: False makes every call return 0 without work, as for a validation pass
    """

    def __init__(
        self,
        loss: FaceIdentityLoss | Callable[[], FaceIdentityLoss],
        *,
        average: Literal["counted", "batch"] = "counted",
        warn_after: int = 100,
        enabled: bool = True,
    ) -> None:
        if average not in ("counted", "batch"):
            raise ValueError(f'average: expected "counted" or "batch", got {average!r}')
        if warn_after < 1:
            raise ValueError(f"warn_after: expected at least 1, got {warn_after}")
        self._source, self.average, self.warn_after, self.enabled = loss, average, warn_after, enabled
        self.step = 0
        self.report: Report | None = None
        self.left_out: dict[str, int] = {}
        self._quiet = 0
        self._reasons: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()

    @property
    def loss(self) -> FaceIdentityLoss:
        """The loss, which is made here at the first use."""
        if not isinstance(self._source, FaceIdentityLoss):
            self._source = self._source()
        return self._source

    @eager
    def __call__(
        self,
        *,
        prediction: torch.Tensor,
        x_t: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        target: torch.Tensor | None = None,
        t: torch.Tensor | None = None,
        step: int | None = None,
        left_out: Mapping[str, int] | None = None,
        **targets: Any,
    ) -> torch.Tensor:
        """The weighted face loss of one batch: a scalar to be added to the trainer's own loss before ``backward``.

        Args:
            prediction: the model's output ``[N,…]``, in the layout and dtype that the trainer has it in
            x_t: the noisy latents. A flow-matching trainer that keeps only the clean ``latents`` and the ``target``
                ``noise − latents`` may give these two instead: ``x_t = latents + t·target``
            t: noise levels ``[N]`` in the unit of the loss's ``prediction.time``
            step: the optimiser's step, for ``every_n_steps``; None: the calls are counted
            left_out: by reason, how many samples of the batch the caller left out. They are reported as samples that do not
                count
            targets: further arguments of :class:`facegrad.FaceIdentityLoss`: ``references``, ``reference_ids``,
                ``data_types``, ``size``, ``landmarks``, …
        """
        if not self.enabled:
            return prediction.new_zeros((), dtype=torch.float32)
        if x_t is None and latents is not None and target is not None and t is not None:
            x_t = noisy_latents(latents, target, t)
        number = self.step if step is None else step
        if len(prediction):
            value, report = self.loss(x_t=x_t, prediction=prediction, t=t, step=number, **targets)
        else:
            value, report = prediction.new_zeros((), dtype=torch.float32), Report(0.0, 0.0, 0, ())
        self.step = number + 1
        self.left_out = {reason: count for reason, count in (left_out or {}).items() if count}
        self._remember(report)
        if self.average == "batch" and report.counted:
            value = value * (report.counted / (len(report.samples) + sum(self.left_out.values())))
        return value

    def _remember(self, report: Report) -> None:
        self.report = report
        outcomes = Counter(sample.outcome.name.lower() for sample in report.samples)
        outcomes.update(self.left_out)
        self._totals.update(outcomes)
        self._totals["similarity"] += report.similarity * report.counted if report.counted else 0  # type: ignore[assignment]
        if report.counted:
            self._quiet = 0
            self._reasons.clear()
            return
        if set(outcomes) <= {Outcome.STEP.name.lower()}:
            return
        self._quiet += 1
        self._reasons.update(outcomes)
        if self._quiet % self.warn_after == 0:
            reasons = ", ".join(f"{name} {count}" for name, count in self._reasons.most_common())
            log.warning("no sample has counted for the face loss in the last %d steps (%s): it trains nothing", self._quiet, reasons)

    def logs(self) -> dict[str, float]:
        """Figures of the last call for a trainer's log: ``face/loss``, ``face/similarity`` (where any sample
        counted), ``face/counted``, and ``face/skipped_…`` per reason."""
        if self.report is None:
            return {}
        figures = {"face/loss": self.report.loss, "face/counted": float(self.report.counted)}
        if self.report.counted:
            figures["face/similarity"] = self.report.similarity
        skipped = Counter(sample.outcome.name.lower() for sample in self.report.samples if sample.outcome is not Outcome.COUNTED)
        skipped.update(self.left_out)
        return figures | {f"face/skipped_{reason}": float(count) for reason, count in skipped.items()}

    def summary(self) -> dict[str, float]:
        """Figures of the whole run: samples by outcome, and ``similarity``, the mean over the counted ones (NaN where there are
        none)."""
        counted = self._totals["counted"]
        return {
            **{k: float(v) for k, v in self._totals.items()},
            "similarity": self._totals["similarity"] / counted if counted else math.nan,
        }

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: the step, the figures of the run, and under ``memory`` what the loss remembers
        (:meth:`facegrad.FaceLoss.save`: references, statistics) as a uint8 tensor, or None before the loss is made."""
        state = {"step": self.step, "quiet": self._quiet, "reasons": dict(self._reasons), "totals": dict(self._totals)}
        return state | {"memory": self._memory()}

    def _memory(self) -> torch.Tensor | None:
        if not isinstance(self._source, FaceIdentityLoss) or self._source.loss is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory"
            self._source.save(path)
            return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned. If the state has something for the loss to remember, the loss is made here.

        Raises:
            facegrad.FacegradError: the state was saved with another recogniser or VAE
        """
        missing = {"step", "quiet", "reasons", "totals", "memory"} - set(state)
        if missing:
            raise ValueError(f"state: the keys {sorted(missing)} are missing: expected what state_dict() returned")
        if state["memory"] is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "memory"
                path.write_bytes(state["memory"].cpu().numpy().tobytes())
                self.loss.restore(path)
        self.step, self._quiet = int(state["step"]), int(state["quiet"])
        self._reasons, self._totals = Counter(state["reasons"]), Counter(state["totals"])


def noisy_latents(latents: torch.Tensor, target: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``x_t = (1 − t)·x0 + t·x1 = x0 + t·(x1 − x0)`` from clean latents and the flow target, float32.

    Args:
        latents, target: of one shape, the batch first
        t: ``[N]`` in [0, 1]
    """
    if latents.shape != target.shape or t.shape != latents.shape[:1]:
        raise ValueError(
            f"latents, target, t: expected one shape and [N], got {list(latents.shape)}, {list(target.shape)}, {list(t.shape)}"
        )
    levels = t.detach().float().reshape(-1, *[1] * (latents.dim() - 1)).to(latents.device)
    return latents.detach().float() + levels * target.detach().float()


def person_types(names: Sequence[str], face_types: Sequence[str] = ("person", "person_head")) -> list[str]:
    """Data types from the paths of pictures, for trainers whose data sets have no field for them: ``person_head`` or ``person``
    where a folder of the path has that name, else ``other``."""
    found = []
    for name in names:
        parts = name.replace("\\", "/").split("/")[:-1]
        found.append(next((part for part in reversed(parts) if part in face_types), "other"))
    return found
