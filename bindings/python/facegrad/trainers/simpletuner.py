"""bghira/SimpleTuner: the face loss is added in ``auxiliary_loss`` of its ``ModelFoundation``, which all model families extend."""

from __future__ import annotations

from typing import Any

import torch

from .face import TrainerFace
from .hook import around
from .recall import Recall

MARK = "simpletuner/helpers/models/common.py"


def install(face: TrainerFace, model: type) -> None:
    """Puts the face loss into ``simpletuner.helpers.models.common.ModelFoundation``."""
    kept: list[Any] = []

    def unload_vae(before: Any, _: dict[str, Any], self: Any) -> None:
        # SimpleTuner throws the weights away once latents are cached, which the face loss is decoded by.
        if face.section.vae is not None or not face.term.enabled or getattr(self, "vae", None) is None:
            before(self)
            return
        kept[:] = [self.vae]
        self.vae = None

    def auxiliary_loss(before: Any, arguments: dict[str, Any], self: Any, *args: Any, **options: Any) -> Any:
        loss, logs = before(self, *args, **options)
        batch, output = arguments["prepared_batch"], arguments["model_output"]
        prediction = output["model_prediction"]
        if not torch.is_grad_enabled() or not prediction.requires_grad:  # validation
            return loss, logs
        device = prediction.device
        # A batch of regularisation pictures, which have the frozen model's output as their target.
        of_class = batch.get("target") is not None or batch.get("is_regularisation_data")
        target = self.get_prediction_target(batch)

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            again = {**batch, "noisy_latents": x.to(batch["noisy_latents"]), "timesteps": t.to(batch["timesteps"])}
            sigmas = batch.get("sigmas")
            if isinstance(sigmas, torch.Tensor):
                # Sigmas are noise levels here, and the times of flow matching their thousandths.
                again["sigmas"] = (t / 1000).view(-1, *[1] * (sigmas.dim() - 1)).to(sigmas)
            made: torch.Tensor = self.model_predict(again)["model_prediction"]
            return made

        value = face.step(
            recall=Recall(predict, batch["timesteps"], (loss, prediction), alphas=getattr(getattr(self, "noise_schedule", None), "alphas_cumprod", None)),
            prediction=prediction, target=target.detach().to(device),
            latents=batch["latents"].to(device), noise=batch["noise"].to(device), x_t=batch["noisy_latents"].to(device),
            vae=kept[0] if kept else getattr(self, "vae", None), paths=batch.get("filepaths"), captions=batch.get("prompts"),
            skip=["regularisation"] * len(prediction) if of_class else None,
        )  # fmt: skip
        return loss + value, {**(logs or {}), **face.logs()}

    around(model, "auxiliary_loss", auxiliary_loss)
    if hasattr(model, "unload_vae"):
        around(model, "unload_vae", unload_vae)


def find(_: dict[str, Any]) -> type:
    """The class that all model families extend."""
    from simpletuner.helpers.models.common import ModelFoundation  # type: ignore[import-not-found]

    found: type = ModelFoundation
    return found
