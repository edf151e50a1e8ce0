"""bghira/SimpleTuner: a subclass of a model family whose ``auxiliary_loss`` holds the face loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .term import FaceTerm


def with_face_loss(model: type, face: FaceTerm, targets: Callable[[dict[str, Any]], dict[str, Any]]) -> type:
    """A subclass of a model of ``simpletuner.helpers.models``, to be put into its ``ModelRegistry``.

    Flow-matching families need the loss's default prediction; SD and SDXL need
    ``{"prediction": {"kind": "epsilon" or "v", "time": "alpha_bar"}}``. ``targets`` gets SimpleTuner's prepared batch,
    which has no pictures: it names persons of ``set_reference``.
    """

    class WithFaceLoss(model):  # type: ignore[misc]
        def auxiliary_loss(self, model_output: dict[str, Any], prepared_batch: dict[str, Any], loss: torch.Tensor, **options: Any) -> Any:
            loss, logs = super().auxiliary_loss(model_output=model_output, prepared_batch=prepared_batch, loss=loss, **options)
            value = face(
                prediction=model_output["model_prediction"],
                x_t=prepared_batch["noisy_latents"],
                t=self._face_times(prepared_batch),
                **targets(prepared_batch),
            )
            return loss + value, {**(logs or {}), **face.logs()}

        def _face_times(self, batch: dict[str, Any]) -> torch.Tensor:
            if str(getattr(self.PREDICTION_TYPE, "value", "")) == "flow_matching":
                sigmas: torch.Tensor = batch["sigmas"].float().reshape(len(batch["noisy_latents"]), -1)
                return sigmas[:, 0]
            levels: torch.Tensor = self.noise_schedule.alphas_cumprod
            return levels.to(batch["timesteps"].device)[batch["timesteps"].long()].float()

    WithFaceLoss.__name__ = f"{model.__name__}WithFaceLoss"
    return WithFaceLoss
