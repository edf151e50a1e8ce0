"""Nerogar/OneTrainer: the face loss in ``calculate_loss`` of a model setup.

OneTrainer's factory keeps the classes it has seen and takes no second one for the same model, so the class itself
gets a new method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .term import FaceTerm


def add_face_loss(setup: type, face: FaceTerm, targets: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Gives a LoRA setup of ``modules.modelSetup`` for a flow-matching model with an AutoencoderKL (``FluxLoRASetup``,
    ``ChromaLoRASetup``, ``StableDiffusion3LoRASetup``) the face loss. Validation, which runs without gradients, gets none.

    A step's prediction comes with its clean latents and target only, so ``x_t`` is ``latents + t·target``. ``targets`` gets
    the batch, whose ``image_path`` tells the pictures apart: it names persons of ``set_reference``.
    """
    before = setup.calculate_loss  # type: ignore[attr-defined]

    def calculate_loss(self: Any, model: Any, batch: dict[str, Any], data: dict[str, Any], config: Any) -> torch.Tensor:
        loss: torch.Tensor = before(self, model, batch, data, config)
        if not torch.is_grad_enabled():
            return loss
        settings, prediction = model.vae.config, data["predicted"]
        latents = (batch["latent_image"].to(prediction.device) - settings["shift_factor"]) * settings["scaling_factor"]
        # OneTrainer's own table of levels: step k is (k + 1)/n.
        t = (data["timestep"].float() + 1) / model.noise_scheduler.config["num_train_timesteps"]
        return loss + face(prediction=prediction, latents=latents, target=data["target"], t=t, **targets(batch))

    setup.calculate_loss = calculate_loss  # type: ignore[attr-defined]
