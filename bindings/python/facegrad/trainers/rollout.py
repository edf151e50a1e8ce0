"""The face loss on images that the model makes from noise, as a LoRA's identity is judged."""

from __future__ import annotations

import logging
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..identity import FaceIdentityLoss
from ..report import Outcome, Report
from ..sampler import sampler_step
from .schedule import Schedule

log = logging.getLogger("facegrad")

#: The host's model: noisy latents and their noise levels ``[N]`` in; its prediction, of the latents' shape, out.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RolloutReport:
    """What one rollout did and what it cost.

    Attributes:
        face: the face loss's own report about the samples that had a gradient
        loss: the weighted loss that was returned
        level: the noise level in [0, 1] at which the prediction with a gradient was made
        without_gradient: how many predictions of the whole batch were made without a gradient
        with_gradient: how many predictions of the whole batch were made with a gradient
        low_score: how many samples had a detection score below ``min_score``
        ramp: the factor of λ by ``start``, ``ramp`` and earlier pauses, in [0, 1]
        found: the share of the last samples (about forty) that show a face with a sufficient score
        paused: whether that share was below ``min_found``, so that there was no gradient
    """

    face: Report
    loss: float
    level: float
    without_gradient: int
    with_gradient: int
    low_score: int
    ramp: float
    found: float = 1.0
    paused: bool = False


def _number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """The value, or an error that names it where it is no finite number of the range. numpy's and torch's numbers are numbers."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        asked = f" from {low} to {high}" if math.isfinite(high) else f" >= {low}" if math.isfinite(low) else ""
        raise ValueError(f"{name}: expected a number{asked}, got {value!r}")
    return number


def _whole(name: str, value: Any, least: int) -> None:
    """An error that names the value where it is no whole number, or too small."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")


class Rollout:
    """The identity loss on an image that the model samples. From pure noise, a deterministic sampler steps down to a random
    noise level without a gradient. There the model makes one prediction with a gradient, and its x0 is decoded and compared.

    >>> rollout = Rollout(face_loss, weight=0.2)  # doctest: +SKIP
    >>> total = mse + face(…) + rollout(predict, noise, main=(mse, prediction), reference_ids=["anna"] * len(noise))  # doctest: +SKIP

    ``predict(x, t)`` is the host's own model with captions of the host's choice, preferably not those of the training pictures.
    ``x`` has the layout and dtype of ``noise``; ``t`` is ``[N]`` in the unit of the loss's ``prediction.time``.

    A model that follows this loss too far makes images that the recogniser accepts and that show no face. The guard against
    this is on by default. It consists of the bound on the gradient, the least detection score, ``target_similarity``, the ramp,
    and the end of the rollouts when faces vanish.

    ``seed`` and the step determine every random number. All processes of a training therefore use the same level, and a
    training that was stopped continues with the same numbers. A call at a step without a rollout computes nothing.

    Args:
        loss: the loss of the training pairs, or a function that makes it, which is called at the first rollout. The rollouts
            have a loss of their own with the same networks. Its λ, ``gradient_limit`` and ``target_similarity`` are given here,
            the detector finds the faces, and every noise level has the same weight. All other keys are those of ``loss``
        weight: λ of the rollouts
        steps: how many steps of equal length the sampler has from t = 1 to 0
        levels: the range, within (0, 1], of the noise level at which to stop. The level is the noise fraction for flow
            matching, and the share of the 999 training timesteps otherwise
        every_n_steps: only steps whose number is a multiple of this have a rollout. With 1, long trainings lost faces
        gradient_limit: the largest norm of the gradient with respect to the prediction, relative to the norm of the main loss's
            gradient, which ``main`` gives; None: no bound
        min_score: the least detection score of a face that has a gradient, in [0, 1]
        target_similarity: the cosine from which on a sample has no gradient
        min_found: below this share of the last samples (about forty) that show a face, there is no gradient; 0: no pause
        backoff: the factor of λ, in [0, 1], by every such pause. λ then grows anew over ``ramp`` steps. 0: the first pause ends
            the rollouts
        start: the first step with a rollout
        ramp: over so many steps from ``start`` on, λ grows from 0 to its value
        times: turns a noise level in [0, 1] into the host's time; None: as the loss's ``prediction`` says, with the
            scaled-linear schedule of SD1.5 and SDXL for epsilon, v and x0
        schedule: the trainer's noise levels, learned from its steps, for a loss whose ``prediction.kind`` is ``custom``. They
            determine the times for ``predict`` and how x0 follows; ``times`` is not used
        seed: the seed of the noise levels
        warn_after: after so many rollouts in a row without a face, a warning names the reasons. One more line is logged once
            when the guard has stopped as many rollouts wholly
        enabled: False makes every call return 0 without work
    """

    def __init__(
        self,
        loss: FaceIdentityLoss | Callable[[], FaceIdentityLoss],
        *,
        weight: float = 0.1,
        steps: int = 8,
        levels: tuple[float, float] = (0.125, 0.5),
        every_n_steps: int = 4,
        gradient_limit: float | None = 0.25,
        min_score: float = 0.6,
        target_similarity: float = 0.8,
        min_found: float = 0.95,
        backoff: float = 0.0,
        start: int = 0,
        ramp: int = 20,
        times: Callable[[float], float] | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        warn_after: int = 50,
        enabled: bool = True,
    ) -> None:
        low, high = (_number("levels", level) for level in levels)
        if not 0 < low <= high <= 1:
            raise ValueError(f"levels: expected noise levels with 0 < low <= high <= 1, got {low:g} and {high:g}")
        _number("weight", weight, 0)
        _number("target_similarity", target_similarity, -1, 1)
        if gradient_limit is not None:
            _number("gradient_limit", gradient_limit, 0)
        for name, share in (("min_score", min_score), ("min_found", min_found), ("backoff", backoff)):
            _number(name, share, 0, 1)
        for name, value, least in (
            ("steps", steps, 1),
            ("every_n_steps", every_n_steps, 1),
            ("warn_after", warn_after, 1),
            ("start", start, 0),
            ("ramp", ramp, 0),
            ("seed", seed, 0),
        ):
            _whole(name, value, least)
        self._source, self._times, self._schedule = loss, times, schedule
        self._loss: FaceIdentityLoss | None = None
        self._keys: dict[str, Any] = {"face_loss_weight": weight, "gradient_limit": gradient_limit, "target_similarity": target_similarity}
        self.steps, self.levels, self.every_n_steps = steps, (low, high), every_n_steps
        self.min_score, self.min_found, self.backoff, self.start, self.ramp, self.seed = min_score, min_found, backoff, start, ramp, seed
        self.warn_after, self.enabled = warn_after, enabled
        self.step = 0
        self.report: RolloutReport | None = None
        self._quiet = self._stopped = 0
        self._found = self._strength = 1.0
        self._paused = self._said = False
        self._since = 0
        self._reasons: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()

    @property
    def loss(self) -> FaceIdentityLoss:
        """The rollouts' own loss, which is made here at the first use. Persons for ``reference_ids`` are registered with it."""
        if self._loss is None:
            source = self._source if isinstance(self._source, FaceIdentityLoss) else self._source()
            kind = _prediction(source).get("kind", "flow")
            if kind == "custom" and self._schedule is None:
                raise ValueError("prediction.kind: a rollout needs to know what the model predicts; custom coefficients do not tell")
            same = {"landmarks": "detect", "every_n_steps": 1, "t_min": 0.0, "t_max": 1.0, "time_weight": "constant"}
            self._loss = source.again(**same, **self._keys)
        return self._loss

    def due(self, step: int | None = None) -> bool:
        """Whether the step with this number (None: the next one) has a rollout. Only then does the host need noise for it."""
        number = self.step if step is None else step
        return self.scheduled(number) and (self._strength > 0 or number < self._since)

    def scheduled(self, step: int) -> bool:
        """Whether this step has a rollout while none has ended for want of faces. All processes of a training agree on it."""
        return self.enabled and bool(self._keys["face_loss_weight"]) and step >= self.start and step % self.every_n_steps == 0

    def without_gradient(self, step: int) -> int:
        """How many predictions without a gradient the rollout of this step makes."""
        return len(self._ways(self._level(step))) - 1

    def __call__(
        self,
        predict: Predict,
        noise: torch.Tensor,
        *,
        main: tuple[torch.Tensor, torch.Tensor] | float | None = None,
        step: int | None = None,
        **targets: Any,
    ) -> torch.Tensor:
        """The weighted loss of one rollout: a scalar to be added to the trainer's own loss before ``backward``; 0 where none is due.

        Args:
            predict: the host's model. Its last call has a gradient; those before run under ``torch.no_grad``
            noise: ``[N,…]`` in the layout that the model takes, of unit variance
            main: the main loss and the prediction from which it was computed, or the norm of that loss's gradient with respect
                to the prediction. ``gradient_limit`` is relative to this norm
            step: the optimiser's step; None: the calls are counted
            targets: further arguments of :class:`facegrad.FaceIdentityLoss`: ``reference_ids``, ``references``, ``size``, …

        Raises:
            ValueError: ``predict`` returns another shape, numbers that are not finite, or no gradient; or ``main`` is missing
        """
        number = self.step if step is None else step
        self.step = number + 1
        if not self.due(number):
            return noise.new_zeros((), dtype=torch.float32)
        if not torch.is_grad_enabled():
            raise ValueError(
                "rollout: called under torch.no_grad(): there is no gradient to train with; set enabled=False for a validation pass"
            )
        loss = self.loss
        if loss.loss is None:
            return noise.new_zeros((), dtype=torch.float32)
        level = self._level(number)
        descend = self._descend if self._schedule is None else self._descend_schedule
        x, t, made = descend(predict, noise.detach(), level)
        prediction = _checked(predict(x, t), x, level)
        if not prediction.requires_grad:
            raise ValueError("predict: returned a prediction without a gradient; it must not run under no_grad or detach what it returns")
        arguments = {**targets, "gradient_norm": self._norm(main)}
        if self._schedule is not None:
            point = self._schedule.at(level)
            arguments |= {"coefficients": torch.tensor([[point.a, point.b]], dtype=torch.float64).expand(len(x), 2)}
            t = torch.full((len(x),), level, dtype=torch.float32, device=x.device)
        value, report = loss(x_t=x, prediction=prediction, t=t, **arguments)
        low = [s.outcome is Outcome.COUNTED and s.score < self.min_score for s in report.samples]
        if any(low):
            given = targets.get("sample_weights")
            weights = torch.ones(len(low)) if given is None else torch.as_tensor(given).detach().float().cpu()
            arguments["sample_weights"] = weights * ~torch.tensor(low)
            value, report = loss(x_t=x, prediction=prediction, t=t, **arguments)
        looked = sum(s.outcome in (Outcome.COUNTED, Outcome.NO_FACE) for s in report.samples) + sum(low)
        if looked:
            new = min(1.0, looked / 40)
            self._found = (1 - new) * self._found + new * report.counted / looked
        paused = self._found < self.min_found - 1e-9
        if paused:
            self._pause(number)
        self._paused = paused
        ramp = 0.0 if paused else self._ramp(number)
        value = value * ramp
        self.report = RolloutReport(report, report.loss * ramp, level, made, 1, sum(low), ramp, self._found, paused)
        self._remember(self.report)
        return value

    def _ramp(self, number: int) -> float:
        return self._strength * min(1.0, max(0, number - max(self.start, self._since) + 1) / (self.ramp + 1))

    def _pause(self, number: int) -> None:
        """λ grows anew from the next step on, to less than before where the pause begins now."""
        self._since = number + 1
        if not self._paused:
            self._strength *= self.backoff
            after = (
                f"nothing is pushed until they are back, and λ is {self._strength:.3g} of the weight then"
                if self._strength
                else "the rollouts end here"
            )
            log.warning(
                "faces vanish from what the model makes of noise (%.3f of the last samples show one, min_found %.3f): %s",
                self._found,
                self.min_found,
                after,
            )

    def _level(self, number: int) -> float:
        low, high = self.levels
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    @torch.no_grad()
    def _descend(self, predict: Predict, x: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Samples from noise down to the level. Returns the latents, the host's times there, and the number of predictions."""
        ways = self._ways(level)
        config = _prediction(self.loss)
        times = [self._time(v, config) for v in ways]
        for here, value, after in zip(times, ways, times[1:]):
            t = torch.full((len(x),), here, dtype=torch.float32, device=x.device)
            x = sampler_step(x, _checked(predict(x, t), x, value), here, after, config)
        return x, torch.full((len(x),), times[-1], dtype=torch.float32, device=x.device), len(times) - 1

    @torch.no_grad()
    def _descend_schedule(self, predict: Predict, x: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor, int]:
        """:meth:`_descend` over the trainer's own noise levels."""
        assert self._schedule is not None
        ways = self._ways(level)
        points = [self._schedule.at(v) for v in ways]
        times = [torch.full((len(x),), point.time, dtype=torch.float32, device=x.device) for point in points]
        for t, value, here, after in zip(times, ways, points, points[1:]):
            x = here.step(x, _checked(predict(x, t), x, value), after)
        return x, times[-1], len(points) - 1

    def _ways(self, level: float) -> list[float]:
        """The noise levels of the grid above ``level``, and ``level`` itself."""
        grid = [1 - k / self.steps for k in range(self.steps)]
        return [v for v in grid if v > level + 1e-9] + [level]

    def _time(self, level: float, config: Mapping[str, Any]) -> float:
        return self._times(level) if self._times is not None else host_time(level, config)

    def _norm(self, main: tuple[torch.Tensor, torch.Tensor] | float | None) -> float | None:
        if self._keys["gradient_limit"] is None:
            return None
        if main is None:
            raise ValueError(
                "main: gradient_limit is relative to the main loss's gradient; give main=(loss, prediction), or gradient_limit=None"
            )
        if isinstance(main, tuple):
            (gradient,) = torch.autograd.grad(main[0], main[1], retain_graph=True)
            main = float(gradient.float().norm())
        # A main loss of 0 leaves nothing to be relative to, and the library takes 0 as not known.
        return max(float(main), 1e-30)

    def _remember(self, report: RolloutReport) -> None:
        outcomes = Counter(sample.outcome.name.lower() for sample in report.face.samples)
        if report.low_score:
            outcomes["low_score"] += report.low_score
            outcomes["zero_weight"] -= report.low_score
        self._totals.update(+outcomes)
        self._totals["rollouts"] += 1
        self._totals["predictions_without_gradient"] += report.without_gradient
        self._totals["predictions_with_gradient"] += report.with_gradient
        counted = [s for s in report.face.samples if s.outcome is Outcome.COUNTED]
        target = float(self._keys["target_similarity"])
        pushed = not report.paused and any(s.similarity < target for s in counted)
        seen = bool(counted) or report.low_score > 0
        self._quiet = 0 if seen else self._quiet + 1
        self._stopped = 0 if pushed or not seen else self._stopped + 1
        if seen:
            self._reasons.clear()
        else:
            self._reasons.update(+outcomes)
            if self._quiet % self.warn_after == 0:
                reasons = ", ".join(f"{name} {count}" for name, count in self._reasons.most_common())
                log.warning("no face has counted in the last %d rollouts (%s): they train nothing", self._quiet, reasons)
        if self._stopped >= self.warn_after and not self._said:
            self._said = True
            log.warning(
                "the guard has stopped the last %d rollouts wholly: every face is below min_score %.2f or beyond target_similarity %.2f, "
                "or too few samples show a face (%.2f of them, min_found %.2f)",
                self._stopped, self.min_score, target, self._found, self.min_found,
            )  # fmt: skip

    def logs(self) -> dict[str, float]:
        """Figures of the last rollout for a trainer's log."""
        if self.report is None:
            return {}
        r = self.report
        figures = {
            "rollout/loss": r.loss, "rollout/counted": float(r.face.counted), "rollout/level": r.level, "rollout/low_score": float(r.low_score),
            "rollout/found": r.found, "rollout/predictions_without_gradient": float(r.without_gradient), "rollout/predictions_with_gradient": float(r.with_gradient),
        }  # fmt: skip
        return figures | ({"rollout/similarity": r.face.similarity} if r.face.counted else {})

    def summary(self) -> dict[str, float]:
        """Over the whole run: rollouts, predictions without and with a gradient, samples by outcome."""
        return {k: float(v) for k, v in self._totals.items()}

    def state_dict(self) -> dict[str, Any]:
        """What ``torch.save`` keeps with the rest of a checkpoint. Persons are registered anew by the host."""
        return {"step": self.step, "quiet": self._quiet, "stopped": self._stopped, "said": self._said, "found": self._found,
                "strength": self._strength, "paused": self._paused, "since": self._since,
                "reasons": dict(self._reasons), "totals": dict(self._totals)}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        missing = {"step", "quiet", "stopped", "said", "reasons", "totals"} - set(state)
        if missing:
            raise ValueError(f"state: the keys {sorted(missing)} are missing: expected what state_dict() returned")
        self.step, self._quiet, self._stopped, self._said = (
            int(state["step"]),
            int(state["quiet"]),
            int(state["stopped"]),
            bool(state["said"]),
        )
        self._found, self._strength = float(state.get("found", 1.0)), float(state.get("strength", 1.0))
        self._paused, self._since = bool(state.get("paused", False)), int(state.get("since", 0))
        self._reasons, self._totals = Counter(state["reasons"]), Counter(state["totals"])


def _prediction(loss: FaceIdentityLoss) -> dict[str, Any]:
    return dict(loss.config.get("prediction") or {})


def _checked(prediction: torch.Tensor, x: torch.Tensor, level: float) -> torch.Tensor:
    if not isinstance(prediction, torch.Tensor):
        raise ValueError(f"predict: expected a tensor of the latents' shape {list(x.shape)}, got {type(prediction).__name__}")
    if prediction.shape != x.shape:
        raise ValueError(f"predict: expected a prediction of the latents' shape {list(x.shape)}, got {list(prediction.shape)}")
    if not bool(prediction.detach().isfinite().all()):
        raise ValueError(
            f"predict: returned NaN or infinity at noise level {level:.3f}; the latents that it got were finite: {bool(x.isfinite().all())}"
        )
    return prediction


def host_time(level: float, config: Mapping[str, Any]) -> float:
    """A noise level in [0, 1] as the host's time: the noise fraction for flow matching, the timestep in 0 to 999 otherwise.

    Args:
        config: the object ``prediction`` of a loss's configuration
    """
    kind, time = config.get("kind", "flow"), config.get("time", "t")
    if kind not in ("epsilon", "v", "sample"):
        if time == "alpha_bar":
            # √ᾱ : √(1 − ᾱ) = 1 − t : t, and ᾱ may not be 0.
            return max((1 - level) ** 2 / ((1 - level) ** 2 + level**2), 1e-8)
        turned = config.get("reversed_time")
        if turned is None:
            turned = kind in ("z_image", "lumina2")
        return 1 - level if turned else level
    timestep = round(999 * level)
    if time == "t":
        return float(timestep)
    first, last = 0.00085**0.5, 0.012**0.5
    signal = math.prod(1 - (first + (last - first) * k / 999) ** 2 for k in range(timestep + 1))
    return signal if time == "alpha_bar" else math.sqrt((1 - signal) / signal)
