"""Computes how x0 follows from a trainer's prediction, by the trainer's own tensors instead of its name.

Every diffusion trainer mixes clean latents and noise, and compares the model's output with a target:

    x_t    = p·x0 + q·noise
    target = c·x0 + d·noise

All four numbers follow from the tensors of one step by least squares, per sample. Solving both lines for x0 gives
``x0 = a·x_t + b·target`` with ``a = d/(p·d − c·q)`` and ``b = −q/(p·d − c·q)``. The prediction approximates the target, so
``a·x_t + b·prediction`` is the model's estimate of x0. The residuals of both fits say whether it can be trusted: they are
about 1e-7 in float32, 3e-3 in bfloat16, and near 1 where the tensors do not belong together.

x0 is not fitted on (x_t, target) directly, because the rounding of both in bfloat16 would bias the coefficients by up to 15 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

#: Largest residual that rounding explains.
TOLERANCE = 0.02


class ConventionError(ValueError):
    """The trainer's tensors do not fit together, or do not fit the ``prediction`` that the configuration states."""


@dataclass(frozen=True)
class Convention:
    """The convention of one step. Numbers per sample are float64 ``[N]`` on the CPU.

    Attributes:
        a, b: the numbers of ``x0 = a·x_t + b·prediction``
        signal, noise: p and q of ``x_t = p·x0 + q·noise``
        level: the noise level that ``t_min``, ``t_max`` and ``time_weight`` use: t for flow matching, √(1 − ᾱ) for
            variance-preserving schedules, q/√(p² + q²) for others (EDM)
        residual: the largest relative residual of all fits
        kind: ``flow``, ``epsilon``, ``v``, ``sample`` or ``custom``, as the configuration's ``prediction.kind``
        negated: whether the prediction has the opposite sign of that kind
        names: all pairs of kind and sign that fit within rounding, the nearest first. Where x_t has hardly any noise, epsilon
            and v are hard to tell apart
    """

    a: torch.Tensor
    b: torch.Tensor
    signal: torch.Tensor
    noise: torch.Tensor
    level: torch.Tensor
    residual: float
    kind: str
    negated: bool
    names: tuple[tuple[str, bool], ...] = ()

    @property
    def coefficients(self) -> torch.Tensor:
        """``[N,2]`` float64: a and b, for ``prediction.kind: custom``."""
        return torch.stack([self.a, self.b], 1)

    @property
    def formula(self) -> str:
        """The convention in one line, such as ``x0 = x_t − t·v``."""
        minus, plus = ("+", "-") if self.negated else ("-", "+")
        sign = "-" if self.negated else ""
        return {
            "flow": f"x0 = x_t {minus} t·v",
            "epsilon": f"x0 = (x_t {minus} q·eps)/p",
            "v": f"x0 = p·x_t {minus} q·v",
            "sample": f"x0 = {sign}prediction",
        }.get(self.kind, f"x0 = {self.a[0]:.4g}·x_t {plus} {self.b[0]:.4g}·prediction (sample 0)")

    def __str__(self) -> str:
        return f"{self.formula}, residual {self.residual:.0e}"

    def check(self, stated: Mapping[str, Any]) -> None:
        """Compares the convention with the ``prediction`` that a configuration states.

        Raises:
            ConventionError: they differ; the text names both
        """
        kind = stated.get("kind", "flow")
        # What the library calls these models' own signs and times is flow matching with the other sign.
        turned = kind in ("z_image", "lumina2", "hidream")
        negated = bool(stated.get("negated", False)) != turned
        named = "flow" if turned else kind
        if named == "custom" or _distance(named, negated, self) <= 2 * _near(self.residual):
            return
        raise ConventionError(
            f"prediction: the configuration says {kind}{', negated' if stated.get('negated') else ''}, the trainer's tensors say "
            f"{self.kind}{', negated' if self.negated else ''} ({self}); leave `prediction` out, and the tensors decide"
        )


def fit(
    latents: torch.Tensor,
    x_t: torch.Tensor,
    target: torch.Tensor,
    noise: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Convention:
    """The convention of one step.

    Args:
        latents: the clean latents ``[N,…]``, scaled as the model's latents
        x_t, target, noise: tensors of the same shape, any float dtype. Without ``noise``, x_t is fitted on the clean latents
            and the target; the target must then not be the latents themselves
        tolerance: the largest relative residual that is accepted

    Raises:
        ConventionError: a shape differs, or a residual is too large; the text names x_t and target
    """
    shapes = {
        name: list(x.shape) for name, x in (("latents", latents), ("x_t", x_t), ("target", target), ("noise", noise)) if x is not None
    }
    if len({tuple(shape) for shape in shapes.values()}) != 1:
        raise ConventionError(
            "clean latents, noisy latents, target, noise: expected one shape, got " + ", ".join(f"{k} {v}" for k, v in shapes.items())
        )
    if noise is None:
        one, two, residual = _mixture(x_t, latents, target)
        _believe(residual, None, tolerance)
        a, b = 1 / one, -two / one
        # x_t = one·x0 + two·target is flow matching with one = 1; else p = 1/one or p = one, as for v and epsilon.
        flow = (one - 1).abs() < tolerance
        epsilon = (one.square() + two.square() - 1).abs() < tolerance
        p = torch.where(flow, 1 - two.abs(), torch.where(epsilon, one, 1 / one))
        q = torch.where(flow | epsilon, two.abs(), two.abs() / one)
        rest = residual
    else:
        p, q, rest = _mixture(x_t, latents, noise)
        c, d, residual = _mixture(target, latents, noise)
        _believe(rest, residual, tolerance)
        det = p * d - c * q
        if bool((det.abs() < 1e-4).any()):
            raise ConventionError(
                "the target is a multiple of the noisy latents, so that no prediction of it gives x0 "
                f"(x_t = {p[0]:.3g}·x0 + {q[0]:.3g}·noise, target = {c[0]:.3g}·x0 + {d[0]:.3g}·noise)"
            )
        a, b = d / det, -q / det
    straight = ((p + q - 1).abs() < tolerance) | ((p.square() + q.square() - 1).abs() < tolerance)
    level = torch.where(straight, q, q / (p.square() + q.square()).sqrt().clamp(min=1e-12))
    # Flow matching whose noise has another scale than 1 (HiDream-O1).
    level = torch.where(((a - 1).abs() < tolerance) & ((p + b.abs() - 1).abs() < tolerance), b.abs(), level).clamp(0, 1)
    worst = max(float(rest.max()), float(residual.max())) if len(rest) else 0.0
    return _named(Convention(a, b, p, q, level, worst, "custom", False))


def through(found: Convention, x_t: torch.Tensor, output: torch.Tensor, prediction: torch.Tensor) -> Convention:
    """The convention of the model's own output, where the trainer computes its prediction from that output and x_t, as for
    SD3's preconditioning or a change of sign.

    Raises:
        ConventionError: the prediction is no mixture of output and x_t
    """
    alpha, beta, residual = _mixture(prediction, output, x_t)
    if not bool((residual <= TOLERANCE).all()):
        raise ConventionError(
            f"the trainer's prediction should be a mixture of the model's output and the noisy latents (relative residual {float(residual.max()):.1e}; "
            f"rounding explains {TOLERANCE:g}): a rollout cannot tell how x0 follows from the output; take `rollouts` out of the section"
        )
    worst = max(found.residual, float(residual.max()) if len(residual) else 0.0)
    return _named(replace(found, a=found.a + found.b * beta, b=found.b * alpha, residual=worst, kind="custom", negated=False))


def _named(found: Convention) -> Convention:
    every = {(kind, negated): _distance(kind, negated, found) for kind in ("flow", "v", "epsilon", "sample") for negated in (False, True)}
    fits = tuple(sorted((name for name in every if every[name] <= _near(found.residual)), key=lambda name: every[name]))
    return replace(found, kind=fits[0][0], negated=fits[0][1], names=fits) if fits else replace(found, names=())


def _mixture(y: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per sample the weights of ``y = α·one + β·two`` by least squares, and the relative residual; ``[N]`` float64 each."""
    y, one, two = (_rows(x) for x in (y, one, two))
    xx, xz, zz = (one * one).sum(1), (one * two).sum(1), (two * two).sum(1)
    xy, zy = (one * y).sum(1), (two * y).sum(1)
    det = (xx * zz - xz * xz).clamp(min=1e-300)
    alpha, beta = (zz * xy - xz * zy) / det, (xx * zy - xz * xy) / det
    rest = (y - alpha[:, None] * one - beta[:, None] * two).norm(dim=1) / y.norm(dim=1).clamp(min=1e-300)
    return alpha.cpu(), beta.cpu(), rest.cpu()


def _rows(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    # Apple's GPUs have no float64.
    return (x.cpu() if x.device.type == "mps" else x).double().flatten(1)


def _believe(x_t: torch.Tensor, target: torch.Tensor | None, tolerance: float) -> None:
    """Raises :class:`ConventionError` where a residual is larger than rounding explains."""
    what = {"the noisy latents (x_t)": x_t, "the target": target}
    bad = {name: r for name, r in what.items() if r is not None and not bool((r <= tolerance).all())}
    if not bad:
        return
    said = "; ".join(f"{name}: {float(r.max()):.1e} of sample {int(r.argmax())}" for name, r in what.items() if r is not None)
    raise ConventionError(
        f"{' and '.join(bad)} should be a mixture of the clean latents and the noise, but a part is neither (relative residual: "
        f"{said}; rounding explains {tolerance:g}). Then x0 does not follow from the prediction; switch the option off that changes "
        "them (noise of another level per token, a replaced target, masked or perturbed noise), or the face loss"
    )


def _near(residual: float) -> float:
    """How far coefficients may be from those of a named convention, by the residual of their fit."""
    return min(max(10 * residual, 1e-5), 2 * TOLERANCE)


def _distance(kind: str, negated: bool, found: Convention) -> float:
    """How far the coefficients and levels are from those of a named convention, relative to 1 and themselves."""
    p, q = found.signal, found.noise
    one, zero = torch.ones_like(p), torch.zeros_like(p)
    a, b, path = {
        "flow": (one, -q, p + q),
        "v": (p, -q, p.square() + q.square()),
        "epsilon": (1 / p, -q / p, p.square() + q.square()),
        "sample": (zero, one, one),
    }[kind]
    b = -b if negated else b
    pairs = ((found.a, a), (found.b, b), (path, one))
    return max((float(((x - y).abs() / (1 + y.abs())).max()) for x, y in pairs if len(x)), default=0.0)
