"""diffusers' DreamBooth LoRA scripts, without edits: the face loss is added at their call of ``accelerator.backward``.

At that call all these scripts have the variables ``model_input`` (clean latents), ``noise``, ``noisy_model_input``,
``model_pred`` and ``target``, from which the face loss is computed. A script without them is an error that names what is
missing. With prior preservation, ``model_pred`` and ``target`` belong to the instance pictures there, and the class pictures
get no face loss. Validation does not call ``backward``. The VAE is kept where the script deletes its own after caching latents.

In a script of your own, one line does the same::

    face = TrainerFace("face.yaml")  # once
    loss = loss + face.step(prediction=model_pred, latents=model_input, noise=noise, x_t=noisy_model_input, target=target, vae=vae)
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

from .face import TrainerFace
from .hook import around
from .layout import Layout, layout_of, one_picture
from .recall import Recall

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

    def forward(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled() and not kept.get("again"):
            kept.setdefault("calls", []).append((module, args, options, output))

    def backward(before: Any, arguments: dict[str, Any], self: Any, loss: torch.Tensor, **options: Any) -> None:
        script = sys._getframe(2)
        value = _value(face, script, kept, loss)
        kept.pop("calls", None)
        if value is not None:
            loss = loss + value
            if self.sync_gradients and getattr(self, "trackers", None):
                self.log(face.logs(), step=script.f_locals.get("global_step"))
        before(self, loss, **options)

    def prepare(before: Any, arguments: dict[str, Any], self: Any, *args: Any, **options: Any) -> Any:
        if face not in self._custom_objects:
            self.register_for_checkpointing(face)
        found = before(self, *args, **options)
        if face.rollouts is not None:
            for one in found if isinstance(found, (tuple, list)) else (found,):
                if isinstance(one, torch.nn.Module):
                    one.register_forward_hook(forward, with_kwargs=True)
        return found

    around(accelerate.Accelerator, "backward", backward)
    around(accelerate.Accelerator, "prepare", prepare)


def find(_: dict[str, Any]) -> None:
    """Returns None, because nothing in the script itself is changed."""


def _value(face: TrainerFace, script: FrameType, kept: dict[str, Any], loss: torch.Tensor) -> torch.Tensor | None:
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
    recall = None
    if face.rollouts is not None:
        recall = _recall(kept, names["noisy_model_input"], count, loss, getattr(names.get("noise_scheduler"), "alphas_cumprod", None))
    # Where latents are cached, some scripts pair them with the pictures of another step: no `pictures` from the batch.
    return face.step(
        prediction=prediction, target=target.detach(), latents=latents, noise=noise, x_t=x_t, vae=vae, recall=recall,
        captions=prompts[:count] if prompts and len(prompts) >= count else None,
    )  # fmt: skip


def _recall(kept: dict[str, Any], noisy: torch.Tensor, count: int, loss: torch.Tensor, alphas: torch.Tensor | None) -> Recall:
    """How to call the script's model again as it was called with ``noisy_model_input``. Comparing the arguments of that call
    with ``noisy_model_input`` tells which argument and which layout it was.

    Args:
        count: the instances, which are the first of the batch
    """
    whole = one_picture(noisy.detach())
    for module, args, options, output in reversed(kept.get("calls", [])):
        found = _argument(args, options, whole)
        time = next((name for name in TIMES if name in options), 1 if len(args) > 1 else None)
        if found is None or time is None:
            continue
        where, layout = found
        times = options[time] if isinstance(time, str) else args[time]
        raw = output[0] if isinstance(output, (tuple, list)) else getattr(output, "sample", output)
        one = one_picture(torch.stack(list(raw))) if isinstance(raw, (tuple, list)) else raw
        there = layout if not isinstance(raw, (tuple, list)) else LISTED

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            # Class pictures, the other half of the batch, get the same latents; what comes out for them is left out.
            x = one_picture(x)
            x = x.repeat(len(whole) // count, 1, 1, 1)
            new = {where: _put(args[where] if isinstance(where, int) else options[where], layout.pack(x))}
            new[time] = t.repeat(len(whole) // count).to(times) if times.dim() else t[0].to(times)
            kept["again"] = True
            try:
                made = module(
                    *(new.get(at, value) for at, value in enumerate(args)),
                    **{**options, **{k: v for k, v in new.items() if isinstance(k, str)}},
                )
            finally:
                kept["again"] = False
            made = made[0] if isinstance(made, (tuple, list)) else getattr(made, "sample", made)
            made = one_picture(torch.stack(list(made))) if isinstance(made, (tuple, list)) else made
            picture: torch.Tensor = there.unpack(made, whole.shape)[:count]
            return picture

        times = times[:count] if times.dim() else times[None]
        return Recall(
            predict, times, (loss, list(raw) if isinstance(raw, (tuple, list)) else raw), there.unpack(one, whole.shape)[:count], alphas
        )
    raise RuntimeError(
        "rollouts: none of the models that the script prepared was called with its noisy latents and their times, so it cannot be called "
        "again with others; take `rollouts` out of the section"
    )


#: Names of the models' argument for the times; where none of them is given, it is the second one.
TIMES = ("timestep", "timesteps", "t")

#: Z-Image takes and returns a list of pictures ``[C,1,h,w]``.
LISTED = Layout("list of [C,1,h,w]", lambda x: x.unsqueeze(2), lambda x, shape: x)


def _argument(args: tuple[Any, ...], options: Mapping[str, Any], noisy: torch.Tensor) -> tuple[int | str, Layout] | None:
    """Which argument of a model's call has the noisy latents ``[N,C,h,w]``, and in which layout."""
    places: list[tuple[int | str, Any]] = [*enumerate(args), *options.items()]
    for where, value in places:
        if isinstance(value, (tuple, list)) and len(value) == len(noisy) and all(isinstance(x, torch.Tensor) for x in value):
            if all(x.shape == value[0].shape for x in value) and layout_of(torch.stack(list(value)), noisy) is not None:
                return where, LISTED
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            layout = layout_of(value, noisy)
            if layout is not None:
                return where, layout
    return None


def _put(value: Any, x: torch.Tensor) -> Any:
    """An argument with other latents: control channels and tokens behind them stay."""
    if isinstance(value, (tuple, list)):
        return type(value)(one.to(value[0]) for one in x)
    return torch.cat([x.to(value), value[:, x.shape[1] :]], 1)
