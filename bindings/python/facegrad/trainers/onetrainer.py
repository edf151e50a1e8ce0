"""Nerogar/OneTrainer: the face loss is added in ``calculate_loss`` of the model setup that a run makes.

``_add_noise_discrete`` has clean latents, noise and noisy latents, scaled and shifted for the model. ``predict`` has prediction
and target, before prior prediction replaces the target.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .face import TrainerFace
from .hook import around
from .recall import Recall

MARK = "modules/modelSetup/BaseModelSetup.py"


def install(face: TrainerFace, create: Any) -> None:
    """Puts the face loss into every setup that ``modules.util.create.create_model_setup`` makes. It works for the command line
    and for the window, in their own process. Further processes of a multi-GPU run do not have it."""

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
        if "again" in seen:
            # The second value, where there is one, is the noise levels; it goes into OneTrainer's debugging pictures only.
            x = seen["again"][0].to(scaled)
            return (x, found[1]) if isinstance(found, tuple) else x
        seen.update(latents=scaled.detach(), noise=noise.detach(), x_t=(found[0] if isinstance(found, tuple) else found).detach())
        return found

    def predict(before: Any, _: dict[str, Any], *args: Any, **options: Any) -> Any:
        found = before(*args, **options)
        if "again" not in seen:
            seen.update(target=found["target"].detach().clone(), step=lambda: before(*args, **options)["predicted"])
        return found

    def get_timestep(before: Any, _: dict[str, Any], *args: Any, **options: Any) -> torch.Tensor:
        found: torch.Tensor = before(*args, **options)
        if "again" in seen:
            told: torch.Tensor = seen["again"][1]
            return told.round().to(found)
        seen["times"] = found.detach()
        return found

    def again(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen["again"] = (x, t)
        try:
            prediction: torch.Tensor = seen["step"]()
        finally:
            del seen["again"]
        return prediction

    def calculate_loss(before: Any, arguments: dict[str, Any], *args: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = before(*args, **options)
        model, batch, prediction = arguments["model"], arguments["batch"], arguments["data"]["predicted"]
        if not torch.is_grad_enabled() or not prediction.requires_grad:
            return loss
        if "latents" not in seen:
            raise RuntimeError(
                f"OneTrainer: {type(setup).__name__} mixes noise and latents elsewhere than where the face loss looks for them"
            )
        target = seen["target"]
        recall = Recall(again, seen["times"], (loss, prediction), alphas=_alphas(model)) if "times" in seen else None
        if prediction.shape != seen["latents"].shape and hasattr(model, "patchify_latents"):
            prediction, target = model.patchify_latents(prediction), model.patchify_latents(target)
            recall = replace(recall, predict=lambda x, t: model.patchify_latents(again(x, t))) if recall is not None else None
        concepts = batch.get("concept_type") or [None] * len(prediction)
        return loss + face.step(
            prediction=prediction, target=target, latents=seen["latents"], noise=seen["noise"], x_t=seen["x_t"],
            vae=model.vae, recall=recall, paths=batch.get("image_path"), captions=batch.get("prompt"), skip=[_prior(concept) for concept in concepts],
        )  # fmt: skip

    around(setup, "_add_noise_discrete", add_noise)
    around(setup, "predict", predict)
    if hasattr(setup, "_get_timestep_discrete"):
        around(setup, "_get_timestep_discrete", get_timestep)
    around(setup, "calculate_loss", calculate_loss)


def find(_: dict[str, Any]) -> Any:
    """OneTrainer's module of factories."""
    from modules.util import create  # type: ignore[import-not-found]

    return create


def _alphas(model: Any) -> torch.Tensor | None:
    found: torch.Tensor | None = getattr(getattr(model, "noise_scheduler", None), "alphas_cumprod", None)
    return found


def _prior(concept: Any) -> str | None:
    """Why a sample of a concept gets no face loss: its target is the frozen model's output. None for other concepts."""
    return "prior_prediction" if str(getattr(concept, "value", concept)).upper() == "PRIOR_PREDICTION" else None
