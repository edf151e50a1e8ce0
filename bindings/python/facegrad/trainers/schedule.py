"""Learns a trainer's noise levels from its own tensors: the times for its model, how x_t is mixed, and how x0 follows.

A rollout chooses its own noise levels. The convention of a step (:mod:`.convention`), and the times that the trainer gave its
model there, tell what a noise level means to the trainer: a noise fraction or a timestep, counted from noise or from the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .convention import TOLERANCE, Convention, ConventionError

#: The pairs (scale, offset) of time = scale·level + offset that trainers use for flow matching: fractions and thousandths, from
#: either end, some with one timestep more or less.
CLOCKS = tuple(
    (scale, start + step * abs(scale) / 1000) for scale, start in ((1, 0), (1000, 0), (-1, 1), (-1000, 1000)) for step in (0, 1, -1)
)

#: The largest mean distance of times from a clock, as a share of its range, that rounding to bfloat16 explains.
NEAR = 0.005


@dataclass(frozen=True)
class Point:
    """One noise level: the time for the model, p and q of ``x_t = p·x0 + q·noise``, and a and b of
    ``x0 = a·x_t + b·prediction``."""

    time: float
    signal: float
    noise: float
    a: float
    b: float

    def x0(self, x_t: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """The estimate of the clean latents, float32."""
        return self.a * x_t.float() + self.b * prediction.float()

    def step(self, x_t: torch.Tensor, prediction: torch.Tensor, to: Point) -> torch.Tensor:
        """The same sample at another level: Euler's step for flow matching, DDIM's with η = 0 for variance-preserving schedules.
        Both keep the noise that the estimate of x0 leaves in x_t."""
        x0 = self.x0(x_t, prediction)
        return (to.signal * x0 + to.noise / self.noise * (x_t.float() - self.signal * x0)).to(x_t.dtype)


class Schedule:
    """Learns the noise levels from every step. It is :attr:`ready` when only one clock fits."""

    def __init__(self) -> None:
        self._names: tuple[tuple[str, bool], ...] | None = None
        self._kind, self._negated, self._flow = "", False, True
        self._alphas = scaled_linear()
        self._errors = torch.zeros(len(CLOCKS), dtype=torch.float64)
        self._seen = 0
        self._whole = True

    def observe(self, found: Convention, times: torch.Tensor, alphas: torch.Tensor | None = None) -> None:
        """Learns from one step.

        Args:
            found: the convention of the step, for the prediction that the rollout's ``predict`` returns
            times: ``[N]``, the times that the model was given
            alphas: ᾱ of every timestep of a variance-preserving trainer; None: the scaled-linear schedule of SD 1.5 and SDXL

        Raises:
            ConventionError: the convention has no name, or the times do not follow from the noise levels
        """
        times = times.detach().double().cpu().flatten().expand(len(found.level))
        p, q = found.signal, found.noise
        straight, round_ = float((p + q - 1).abs().max()), float((p.square() + q.square() - 1).abs().max())
        if found.kind == "custom" or min(straight, round_) > TOLERANCE:
            raise ConventionError(
                f"rollouts: the trainer's noise levels are neither those of flow matching nor of a variance-preserving schedule ({found}; x_t = "
                f"{float(p[0]):.3g}·x0 + {float(q[0]):.3g}·noise), so a rollout does not know its way; take `rollouts` out of the section"
            )
        # What every step so far allows.
        self._names = found.names if self._names is None else tuple(name for name in found.names if name in self._names)
        if not self._names:
            raise ConventionError(
                f"rollouts: the trainer's prediction means something else than in the steps before ({found}); take `rollouts` out of the section"
            )
        self._kind, self._negated = self._names[0]
        self._flow = self._kind == "flow" or (self._kind == "sample" and straight <= round_)
        self._seen += len(times)
        if self._flow:
            for at, (scale, offset) in enumerate(CLOCKS):
                self._errors[at] += float(((times - offset) / scale - found.level).abs().sum())
            self._whole &= bool((times == times.round()).all())
            best = float(self._errors.min()) / self._seen
            if best > NEAR:
                pairs = ", ".join(f"{t:.4g} at {v:.3f}" for t, v in zip(times.tolist(), found.level.tolist(), strict=True))
                raise ConventionError(
                    f"rollouts: the model's times do not follow from the noise levels ({pairs}); take `rollouts` out of the section"
                )
            return
        if alphas is not None:
            self._alphas = alphas.detach().double().cpu()
        rows = times.round().long()
        if (
            int(rows.min()) < 0
            or int(rows.max()) >= len(self._alphas)
            or float(((1 - self._alphas[rows]).sqrt() - q).abs().max()) > TOLERANCE
        ):
            raise ConventionError(
                f"rollouts: at the timesteps {rows.tolist()} the trainer's schedule has other noise levels than {[round(v, 4) for v in q.tolist()]}; "
                "take `rollouts` out of the section"
            )

    @property
    def ready(self) -> bool:
        """Whether exactly one kind and one clock fit. A single step at level 0.5, for example, fits two clocks."""
        if self._names is None or len(self._names) > 1:
            return False
        if not self._seen or not self._flow:
            return self._seen > 0
        best = int(self._errors.argmin())
        others = [float(e) for e, (scale, _) in zip(self._errors, CLOCKS, strict=True) if scale != CLOCKS[best][0]]
        return min(others) / self._seen > 4 * NEAR

    def __str__(self) -> str:
        if not self.ready:
            return "not known yet"
        first, last = self.at(0.0).time, self.at(1.0).time
        return f"{'flow matching' if self._flow else 'a variance-preserving schedule'}, the model is told {first:g} for the picture and {last:g} for the noise"

    def at(self, level: float) -> Point:
        """The :class:`Point` of a level in [0, 1]: the noise fraction for flow matching, the share of the last timestep otherwise."""
        if not self.ready:
            raise ValueError("rollouts: no step has told yet what the model's times are")
        sign = -1.0 if self._negated else 1.0
        if self._flow:
            scale, offset = CLOCKS[int(self._errors.argmin())]
            time = scale * level + offset
            if self._whole:
                time = float(round(time))
            p, q = 1 - level, level
            a, b = (1.0, -q * sign) if self._kind == "flow" else (0.0, sign)
            return Point(time, p, q, a, b)
        time = float(round((len(self._alphas) - 1) * level))
        p, q = float(self._alphas[int(time)].sqrt()), float((1 - self._alphas[int(time)]).sqrt())
        a, b = {"epsilon": (1 / p, -q / p), "v": (p, -q), "sample": (0.0, 1.0)}[self._kind]
        return Point(time, p, q, a, b * sign)


def scaled_linear(first: float = 0.00085, last: float = 0.012, count: int = 1000) -> torch.Tensor:
    """ᾱ of every timestep for SD 1.5, SDXL and models with their schedule: float64 ``[count]``."""
    return (1 - torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64).square()).cumprod(0)
