"""kohya-ss/musubi-tuner: a subclass of its ``NetworkTrainer`` whose loss holds the face loss.

Hooks: ``process_batch`` (clean latents, noise, the batch), ``get_noisy_model_input_and_timesteps`` (noisy latents),
``compute_loss`` (prediction and target).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .term import FaceTerm


def with_face_loss(trainer: type, face: FaceTerm, targets: Callable[[dict[str, Any]], dict[str, Any]]) -> type:
    """A subclass of an image trainer: ``FluxKontextNetworkTrainer``, ``Flux2NetworkTrainer``,
    ``QwenImageNetworkTrainer``, ``ZImageNetworkTrainer``, or ``WanNetworkTrainer`` on single frames.

    musubi-tuner trains from cached latents, so a batch has no pictures: ``targets`` names persons of
    ``set_reference``. Z-Image's negated flow is turned round here; the loss's default prediction, flow matching, is right
    for all of them.
    """

    class WithFaceLoss(trainer):  # type: ignore[misc]
        _face_batch: tuple[torch.Tensor, torch.Tensor, dict[str, Any]] | None = None
        _face_noisy: torch.Tensor | None = None

        def process_batch(
            self, args: Any, accelerator: Any, transformer: Any, network: Any, batch: dict[str, Any], latents: torch.Tensor, noise: torch.Tensor, *rest: Any, **options: Any
        ) -> Any:
            self._face_batch, self._face_noisy = (latents, noise, batch), None
            try:
                return super().process_batch(args, accelerator, transformer, network, batch, latents, noise, *rest, **options)
            finally:
                self._face_batch = None

        def get_noisy_model_input_and_timesteps(self, *rest: Any, **options: Any) -> Any:
            found = super().get_noisy_model_input_and_timesteps(*rest, **options)
            self._face_noisy = found[0].detach()
            return found

        def compute_loss(self, args: Any, output: Any, *rest: Any, **options: Any) -> tuple[torch.Tensor, dict[str, float]]:
            loss, metrics = super().compute_loss(args, output, *rest, **options)
            if self._face_batch is None or self._face_noisy is None:
                return loss, metrics
            latents, noise, batch = self._face_batch
            device = output.pred.device
            x0, x1, x_t, target = (_one_frame(x.detach()).float().to(device) for x in (latents, noise, self._face_noisy, output.target))
            flow, prediction = x1 - x0, _one_frame(output.pred)
            if torch.sum(target * flow) < 0:
                prediction = -prediction
            value = face(prediction=prediction, x_t=x_t, t=noise_level(x_t, x0, flow), **targets(batch))
            return loss + value, {**metrics, **face.logs()}

    WithFaceLoss.__name__ = f"{trainer.__name__}WithFaceLoss"
    return WithFaceLoss


def noise_level(x_t: torch.Tensor, x0: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """``[N]``: t of ``x_t = x0 + t·flow``. Read from the latents, because the number of a time step means another level
    with each of musubi-tuner's ways of sampling it."""
    along = ((x_t - x0) * flow).flatten(1).sum(1)
    return (along / flow.square().flatten(1).sum(1)).clamp(0, 1)


def _one_frame(x: torch.Tensor) -> torch.Tensor:
    return x.squeeze(2) if x.dim() == 5 and x.shape[2] == 1 else x
