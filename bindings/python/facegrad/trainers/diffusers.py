"""diffusers' DreamBooth LoRA scripts, unedited: the face loss at their call of ``accelerator.backward``.

All these scripts name the same things at that call: ``model_input`` (clean latents), ``noise``, ``noisy_model_input``,
``model_pred`` and ``target``. They are read from the script's own variables; a script without them is an error that names
what is missing. With prior preservation, ``model_pred`` and ``target`` are the instances' half there, and the class
pictures get no face loss. Validation does not call ``backward``. The VAE is kept when the script deletes its own after
caching latents.

In a script of your own, one line does the same::

    face = TrainerFace("face.yaml")  # once
    loss = loss + face.step(prediction=model_pred, latents=model_input, noise=noise, x_t=noisy_model_input, target=target, vae=vae)
"""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import Any

import torch

from .face import TrainerFace
from .hook import around

#: What a script must name where it calls ``accelerator.backward``.
NAMES = ("model_input", "noise", "noisy_model_input", "model_pred", "target")


def install(face: TrainerFace, _: Any = None) -> None:
    """Puts the face loss into ``accelerate.Accelerator.backward``, and keeps the first VAE that diffusers loads."""
    import accelerate  # type: ignore[import-untyped]
    import diffusers

    kept: dict[str, Any] = {}

    def from_pretrained(before: Any, _: dict[str, Any], *args: Any, **options: Any) -> Any:
        loaded = before(*args, **options)
        kept.setdefault("vae", loaded)
        return loaded

    for name in dir(diffusers):
        if name.startswith(("Autoencoder", "AsymmetricAutoencoder", "VQModel")):
            one = getattr(diffusers, name, None)
            if isinstance(one, type) and hasattr(one, "from_pretrained"):
                around(one, "from_pretrained", from_pretrained)

    def backward(before: Any, arguments: dict[str, Any], self: Any, loss: torch.Tensor, **options: Any) -> None:
        script = sys._getframe(2)
        value = _value(face, script, kept)
        if value is not None:
            loss = loss + value
            if self.sync_gradients and getattr(self, "trackers", None):
                self.log(face.logs(), step=script.f_locals.get("global_step"))
        before(self, loss, **options)

    def prepare(before: Any, arguments: dict[str, Any], self: Any, *args: Any, **options: Any) -> Any:
        if face not in self._custom_objects:
            self.register_for_checkpointing(face)
        return before(self, *args, **options)

    around(accelerate.Accelerator, "backward", backward)
    around(accelerate.Accelerator, "prepare", prepare)


def find(_: dict[str, Any]) -> None:
    """Nothing of the script itself is changed."""


def _value(face: TrainerFace, script: FrameType, kept: dict[str, Any]) -> torch.Tensor | None:
    """The face loss of a script's step, from its variables; None for a step that predicts no picture."""
    names = script.f_locals
    if not any(name in names for name in NAMES):
        return None
    missing = [name for name in NAMES if name not in names]
    if missing:
        raise RuntimeError(
            f"{script.f_code.co_filename}: no variable {', '.join(missing)} at its call of accelerator.backward: the face loss reads "
            f"{', '.join(NAMES)} there; in a script with other names add the line that docs/trainers.md shows"
        )
    prediction, target = names["model_pred"], names["target"]
    # A step of the text alone leaves the last picture's prediction in the variable.
    stale = kept.get("last") is not None and kept["last"]() is prediction
    if stale or not isinstance(prediction, torch.Tensor) or not prediction.requires_grad:
        return None
    kept["last"] = weakref.ref(prediction)
    # With prior preservation the instances are the first half of the batch.
    count = len(prediction)
    latents, noise, x_t = (names[name][:count].detach() for name in ("model_input", "noise", "noisy_model_input"))
    batch = names.get("batch")
    prompts = batch.get("prompts") if isinstance(batch, dict) else None
    vae = kept.get("vae", names.get("vae"))
    # Where latents are cached, some scripts pair them with the pictures of another step: no `pictures` from the batch.
    return face.step(
        prediction=prediction, target=target.detach(), latents=latents, noise=noise, x_t=x_t, vae=vae,
        captions=prompts[:count] if prompts and len(prompts) >= count else None,
    )  # fmt: skip
