"""Pictures that the model makes while it is trained, and how much their faces are the person's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import facegrad
from facegrad.latents import decode_latents

from .layout import pixels
from .sockets import Sample

#: Steps of equal length from noise to the picture.
STEPS = 20

#: The model as one that predicts the velocity of flow matching: noisy latents and noise fractions in.
Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sampling:
    """Makes one picture from noise with Euler's method, without a gradient and without classifier-free guidance.

    Args:
        loss: the training's own loss, which knows the decoder and the person
        latents: how the trainer's latents become the decoder's, keys of the loss's configuration
        noise: `[1,C,h,w]` of unit variance, the same for every picture
        who: whom the picture is compared with: arguments of the loss
    """

    loss: facegrad.FaceIdentityLoss
    latents: dict[str, Any]
    noise: torch.Tensor
    who: dict[str, Any]

    @torch.no_grad()
    def __call__(self, velocity: Velocity, step: int) -> Sample:
        """The picture after `step` steps of the training."""
        x = self.noise
        for at in range(STEPS):
            t = torch.full((len(x),), 1 - at / STEPS, device=x.device)
            x = x - velocity(x, t) / STEPS
        assert self.loss.vae is not None
        image = decode_latents(self.loss.vae, x, self.latents).clamp(0, 1)
        judge = self.loss.again(landmarks="detect", every_n_steps=1, t_min=0.0, t_max=1.0, time_weight="constant").loss
        assert judge is not None
        _, report = judge(image, **self.who)
        return Sample(step, pixels(image)[0], report.similarity if report.counted else None)
