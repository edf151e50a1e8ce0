"""kohya-ss/sd-scripts: a subclass of its ``NetworkTrainer`` whose loss holds the face loss.

Hooks: ``call_unet`` (noisy latents of SD and SDXL), ``get_noise_pred_and_target`` (prediction, target, time steps),
``post_process_loss`` (the loss per sample, of which ``process_batch`` takes the mean).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .term import FaceTerm

Targets = Callable[[dict[str, Any]], dict[str, Any]]


def pictures_as_references(batch: dict[str, Any]) -> dict[str, Any]:
    """Every training picture is its own reference. Needs latents that are not cached: the batch has no pictures else."""
    if batch.get("images") is None:
        raise ValueError(
            "the batch has no pictures, because latents are cached: train without --cache_latents, or register the "
            'person with face.loss.set_reference("name", pictures) and pass targets=lambda batch: {"reference_ids": [...]}'
        )
    return {"references": batch["images"].float() / 2 + 0.5}


def with_face_loss(trainer: type, face: FaceTerm, targets: Targets = pictures_as_references) -> type:
    """A subclass of ``train_network.NetworkTrainer``, ``SdxlNetworkTrainer`` or ``FluxNetworkTrainer``.

    For SD and SDXL the loss's configuration needs ``{"prediction": {"kind": "epsilon" or "v", "time": "alpha_bar"}}``;
    FLUX needs ``--model_prediction_type raw`` and the default prediction, flow matching. Validation passes get no
    face loss.
    """

    class WithFaceLoss(trainer):  # type: ignore[misc]
        _face_noisy: torch.Tensor | None = None
        _face_value: torch.Tensor | float = 0.0

        def call_unet(self, args: Any, accelerator: Any, unet: Any, noisy_latents: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            if "indices" not in options:  # those are the calls of differential output preservation
                self._face_noisy = noisy_latents.detach()
            prediction: torch.Tensor = super().call_unet(args, accelerator, unet, noisy_latents, *rest, **options)
            return prediction

        def get_noise_pred_and_target(
            self, args: Any, accelerator: Any, noise_scheduler: Any, latents: torch.Tensor, batch: dict[str, Any], *rest: Any, **options: Any
        ) -> Any:
            self._face_noisy, self._face_value = None, 0.0
            found = super().get_noise_pred_and_target(args, accelerator, noise_scheduler, latents, batch, *rest, **options)
            prediction, target, timesteps, _ = found
            if options.get("is_train", True):
                self._face_value = self._face_loss(args, noise_scheduler, latents, prediction, target, timesteps, batch)
            return found

        def _face_loss(
            self, args: Any, scheduler: Any, latents: torch.Tensor, prediction: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor, batch: dict[str, Any]
        ) -> torch.Tensor:
            if self._face_noisy is not None:
                t = scheduler.alphas_cumprod.to(timesteps.device)[timesteps.long()]
                return face(prediction=prediction, x_t=self._face_noisy, t=t, **targets(batch))
            kind = getattr(args, "model_prediction_type", "raw")
            if kind != "raw":
                raise ValueError(f"--model_prediction_type {kind}: the face loss needs the flow itself, --model_prediction_type raw")
            return face(prediction=prediction, latents=latents, target=target, t=timesteps.float() / 1000, **targets(batch))

        def post_process_loss(self, loss: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            # A scalar added to every sample's loss is added once to their mean.
            processed: torch.Tensor = super().post_process_loss(loss, *rest, **options)
            return processed + self._face_value

        def generate_step_logs(self, *rest: Any, **options: Any) -> dict[str, Any]:
            logs: dict[str, Any] = super().generate_step_logs(*rest, **options)
            return {**logs, **face.logs()}

    WithFaceLoss.__name__ = f"{trainer.__name__}WithFaceLoss"
    return WithFaceLoss
