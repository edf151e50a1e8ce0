"""ostris/ai-toolkit: a subclass of its ``SDTrainer`` whose ``calculate_loss`` holds the face loss, for an extension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .term import FaceTerm


def pictures_as_references(batch: Any) -> dict[str, Any]:
    """Every training picture is its own reference. Needs the pictures in the batch."""
    if batch.tensor is None:
        raise ValueError(
            "the batch has no pictures, because latents are cached: set load_image_when_caching_latents in the data set's "
            "configuration, or register the person with face.loss.set_reference and name it in targets"
        )
    return {"references": batch.tensor.float() / 2 + 0.5}


def with_face_loss(trainer: type, face: FaceTerm, targets: Callable[[Any], dict[str, Any]] = pictures_as_references) -> type:
    """A subclass of ``SDTrainer``, ``UITrainer`` or ``DiffusionTrainer`` of ``extensions_built_in.sd_trainer``.

    Flow-matching models need the loss's default prediction; SD and SDXL need
    ``{"prediction": {"kind": "epsilon" or "v", "time": "alpha_bar"}}``. Regularisation pictures get no face loss.
    """

    class WithFaceLoss(trainer):  # type: ignore[misc]
        def calculate_loss(self, noise_pred: torch.Tensor, noise: torch.Tensor, noisy_latents: torch.Tensor, timesteps: torch.Tensor, batch: Any, *rest: Any, **options: Any) -> torch.Tensor:
            loss: torch.Tensor = super().calculate_loss(noise_pred, noise, noisy_latents, timesteps, batch, *rest, **options)
            if any(batch.get_is_reg_list()):
                return loss
            if self.sd.is_flow_matching:
                t = timesteps.float() / 1000
            else:
                t = self.sd.noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps.long()].float()
            value = face(prediction=noise_pred, x_t=noisy_latents, t=t, **targets(batch))
            self.additional_logs.update(face.logs())
            return loss + value

    WithFaceLoss.__name__ = f"{trainer.__name__}WithFaceLoss"
    return WithFaceLoss
