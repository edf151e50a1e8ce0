"""Rollouts in a trainer: its own model is called again with other latents, at other noise levels."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..identity import FaceIdentityLoss
from .convention import Convention, through
from .layout import one_picture
from .rollout import Predict, Rollout
from .schedule import Schedule

log = logging.getLogger("facegrad")

#: Arguments of :class:`Rollout` that the section may have.
KEYS = tuple(name for name in inspect.signature(Rollout).parameters if name not in ("loss", "times", "schedule", "enabled"))


@dataclass(frozen=True)
class Recall:
    """How an adapter calls its trainer's model again.

    Attributes:
        predict: the model with the conditions of the step's batch. It takes latents ``[N,…]`` in the layout of the step's clean
            latents, float32, and times ``[N]``, float32. It returns the model's output in the same layout
        times: ``[N]``, the times that the model was given in this step
        main: the trainer's own loss, and the model's output from which it was computed
        output: the result of ``predict`` for this step's latents, where it is not the prediction itself
        alphas: ᾱ of every timestep, where the trainer has a noise schedule with them
    """

    predict: Predict
    times: torch.Tensor
    main: tuple[torch.Tensor, torch.Tensor | Sequence[torch.Tensor]]
    output: torch.Tensor | None = None
    alphas: torch.Tensor | None = None


class Rollouts:
    """The section's key ``rollouts``.

    Args:
        keys: the section's keys, as :func:`checked` returns them
        loss: returns the loss of the training pairs
        warn_after: after so many steps in which the meaning of the times is not clear, a warning is logged
    """

    def __init__(self, keys: Mapping[str, Any], loss: Callable[[], FaceIdentityLoss], warn_after: int) -> None:
        self.schedule = Schedule()
        self._loss, self._warn_after, self._waited = loss, warn_after, 0
        self.rollout = Rollout(self._pair, schedule=self.schedule, **keys)
        self._made = self._told = False

    def _pair(self) -> FaceIdentityLoss:
        self._made = True
        return self._loss()

    def register(self, id: str, picture: torch.Tensor, landmarks: torch.Tensor | None) -> None:
        """Registers a reference that the loss of the training pairs has registered. Earlier ones are copied at the first
        rollout."""
        if self._made:
            self.rollout.loss.set_reference(id, picture, landmarks)

    def forget(self, id: str) -> None:
        """Removes a reference."""
        if self._made and self.rollout.loss.loss is not None:
            self.rollout.loss.loss.remove_reference(id)

    def step(
        self,
        recall: Recall,
        found: Convention,
        tensors: Mapping[str, torch.Tensor],
        rows: Sequence[int],
        latents: torch.Tensor,
        number: int,
        ids: Sequence[str | None],
        references: torch.Tensor | None,
    ) -> torch.Tensor:
        """The weighted loss of this step's rollout; 0 where none is due, or none is possible.

        Args:
            found, tensors, rows: the convention, prediction and x_t ``[n,C,h,w]`` of the samples that get a face loss, and
                their rows in the batch
            latents: the clean latents of the whole batch in the trainer's layout
            ids: the references of the whole batch; a sample without one has no gradient
            references: the pictures of the whole batch, instead of ids
        """
        prediction, x_t = tensors["prediction"], tensors["x_t"]
        if recall.output is not None:
            found = through(found, x_t, one_picture(recall.output)[list(rows)], prediction)
        times = recall.times.detach().flatten()
        self.schedule.observe(found, times if len(times) == 1 else times[list(rows)], recall.alphas)
        if self.schedule.ready and not self._told:
            self._told = True
            log.info("rollouts: %s", self.schedule)
        if not self.schedule.ready:
            self._waited += 1
            if self._waited == self._warn_after:
                log.warning(
                    "rollouts: after %d steps it is still open whether the model's times count from the noise or from the picture",
                    self._waited,
                )
        live = [at for at in rows if ids[at] is not None or references is not None]
        if not self.schedule.ready or not live or not self.rollout.due(number):
            return self.accompany(recall, latents, number)
        shape = latents.shape

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return one_picture(recall.predict(x.reshape(shape), t))

        weights = torch.zeros(shape[0])
        weights[live] = 1.0
        targets: dict[str, Any] = {"sample_weights": weights}
        targets |= (
            {"references": references}
            if references is not None
            else {"reference_ids": [id if id is not None else ids[live[0]] for id in ids]}
        )
        noise = torch.randn((shape[0], *x_t.shape[1:]), device=x_t.device)
        gradients = torch.autograd.grad(*recall.main, retain_graph=True)
        main = sum(float(one.float().square().sum()) for one in gradients) ** 0.5
        return self.rollout(predict, noise, main=main, step=number, **targets)

    def accompany(self, recall: Recall, latents: torch.Tensor, number: int) -> torch.Tensor:
        """0. Where other processes may have a rollout in this step, it is made of as many predictions as theirs: a wrapped model (DDP
        with buffers, FSDP) waits in each of them for all processes."""
        nothing = latents.new_zeros((), dtype=torch.float32)
        if not _several_processes() or not self.rollout.scheduled(number):
            return nothing
        x, times = latents.detach().float(), recall.times.detach().float().flatten().expand(len(latents))
        with torch.no_grad():
            for _ in range(self.rollout.without_gradient(number)):
                recall.predict(x, times)
        return nothing + 0.0 * recall.predict(x, times).float().nan_to_num(0.0, 0.0, 0.0).sum()


def _several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def checked(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The section's keys as arguments of :class:`Rollout`.

    Raises:
        ValueError: a value that does not fit
    """
    made = dict(keys)
    if "levels" in made:
        levels = made["levels"]
        if not isinstance(levels, Sequence) or isinstance(levels, str) or len(levels) != 2:
            raise ValueError(f"levels: expected two noise levels, the lowest and the highest, got {levels!r}")
        made["levels"] = (levels[0], levels[1])
    Rollout(_never, schedule=Schedule(), **made)
    return made


def _never() -> FaceIdentityLoss:
    raise AssertionError("a rollout that is only checked makes no loss")
