"""Rollouts in ComfyUI's trainer: the loss on what the model makes of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import facegrad
from facegrad.trainers import Rollout

from .layout import frames


class ModelAsFlow:
    """A model of ComfyUI's as one that predicts the velocity of flow matching, whatever it predicts itself.

    ComfyUI's models take `a·x0 + b·noise` and a sigma, and give x0. With the noise fraction t = b / (a + b), the latent of
    flow matching is x = (1 − t)·x0 + t·noise, and its velocity is (x − x0) / t.

    Args:
        guider: ComfyUI's model as its samplers call it
        model_sampling: what the model's sigmas mean
        extra: further arguments of the call
    """

    def __init__(self, guider: Any, model_sampling: Any, extra: dict[str, Any], dimensions: int) -> None:
        self._guider, self._extra, self._dimensions = guider, extra, dimensions
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        half = torch.full((1,), 0.5)
        #: Whether a falls as b rises, as with flow matching; otherwise a is 1.
        self._flow = float(model_sampling.noise_scaling(half, zero, one, False)) < 0.75
        self._largest = float(model_sampling.sigma_max)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The velocity `[N,C,h,w]` at the noise fractions `[N]`."""
        wide = t.view(-1, 1, 1, 1).to(x)
        if self._flow:
            sigma, given = t, x
        else:
            sigma = (t / (1 - t).clamp_min(1e-6)).clamp_max(self._largest)
            # At t = 1 there is noise alone, and the model's largest sigma stands for it.
            given = x * (sigma.view(-1, 1, 1, 1).to(x) / wide)
        if self._dimensions == 5:
            given = given.unsqueeze(2)
        x0 = frames(self._guider(given, sigma.to(x.device), **self._extra)).float()
        return (x.float() - x0) / wide.float()


def make(loss: Callable[[], facegrad.FaceIdentityLoss], weight: float, every_n_steps: int, target_similarity: float, seed: int) -> Rollout:
    """Rollouts with a loss for models that predict the velocity of flow matching."""
    return Rollout(loss, weight=weight, every_n_steps=every_n_steps, target_similarity=min(target_similarity, 0.8), seed=seed)


def noise_like(target: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise of a generator of its own: the trainer's random numbers stay as they are."""
    return torch.randn(target.shape, generator=torch.Generator().manual_seed(seed)).to(target.device)
