"""Nerogar/OneTrainer: the face loss in ``calculate_loss`` of the model setup that a run makes.

``_add_noise_discrete`` tells clean latents, noise and noisy latents as the model has them, scaled and shifted; ``predict``
tells prediction and target before prior prediction replaces the latter.
"""

from __future__ import annotations

from typing import Any

import torch

from .face import TrainerFace
from .hook import around

MARK = "modules/modelSetup/BaseModelSetup.py"


def install(face: TrainerFace, create: Any) -> None:
    """Puts the face loss into every setup that ``modules.util.create.create_model_setup`` makes. Works for the command
    line and the window alike, in the process that they run in; further processes of a multi-GPU run do not see it."""

    def create_model_setup(before: Any, _: dict[str, Any], *args: Any, **options: Any) -> Any:
        setup = before(*args, **options)
        if setup is not None:
            add(face, setup)
        return setup

    around(create, "create_model_setup", create_model_setup)


def add(face: TrainerFace, setup: Any) -> None:
    """Puts the face loss into one model setup, an object."""
    seen: dict[str, Any] = {}

    def add_noise(before: Any, _: dict[str, Any], scaled: torch.Tensor, noise: torch.Tensor, *args: Any, **options: Any) -> Any:
        found = before(scaled, noise, *args, **options)
        seen.update(latents=scaled.detach(), noise=noise.detach(), x_t=(found[0] if isinstance(found, tuple) else found).detach())
        return found

    def predict(before: Any, _: dict[str, Any], *args: Any, **options: Any) -> Any:
        found = before(*args, **options)
        seen["target"] = found["target"].detach().clone()
        return found

    def calculate_loss(before: Any, arguments: dict[str, Any], *args: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = before(*args, **options)
        model, batch, prediction = arguments["model"], arguments["batch"], arguments["data"]["predicted"]
        if not torch.is_grad_enabled() or not prediction.requires_grad:
            return loss
        if "latents" not in seen:
            raise RuntimeError(f"OneTrainer: {type(setup).__name__} mixes noise and latents elsewhere than where the face loss looks for them")
        target = seen["target"]
        if prediction.shape != seen["latents"].shape and hasattr(model, "patchify_latents"):
            prediction, target = model.patchify_latents(prediction), model.patchify_latents(target)
        concepts = batch.get("concept_type") or [None] * len(prediction)
        return loss + face.step(
            prediction=prediction, target=target, latents=seen["latents"], noise=seen["noise"], x_t=seen["x_t"],
            vae=model.vae, paths=batch.get("image_path"), captions=batch.get("prompt"), skip=[_prior(concept) for concept in concepts],
        )  # fmt: skip

    around(setup, "_add_noise_discrete", add_noise)
    around(setup, "predict", predict)
    around(setup, "calculate_loss", calculate_loss)


def find(_: dict[str, Any]) -> Any:
    """OneTrainer's module of factories."""
    from modules.util import create  # type: ignore[import-not-found]

    return create


def _prior(concept: Any) -> str | None:
    """Samples that teach nothing new, whose target is the frozen model's output."""
    return "prior_prediction" if str(getattr(concept, "value", concept)).upper() == "PRIOR_PREDICTION" else None
