"""tdrussell/diffusion-pipe: the face loss is added in the loss function of its models.

A pipeline's last stage gets the prediction and a label. diffusion-pipe passes every entry of the label but the last, the mask,
from the first stage to the last. Clean and noisy latents are therefore added as further entries. The section must name the
VAE, because diffusion-pipe frees its own after caching latents.
"""

from __future__ import annotations

from typing import Any

import torch

from .face import TrainerFace
from .hook import around
from .layout import from_patches

MARK = "models/cosmos_predict2_modeling.py"


def install(face: TrainerFace, bases: tuple[type, ...]) -> None:
    """Puts the face loss into ``get_loss_fn`` of the classes that diffusion-pipe's models extend, and of those models that have
    their own, whether they are known already or imported later."""
    if face.rollouts is not None:
        raise ValueError(
            "rollouts: diffusion-pipe spreads its model over the stages of a pipeline, so the loss cannot call it again; take `rollouts` out of the section"
        )
    asked: set[int] = set()

    def prepare_inputs(before: Any, arguments: dict[str, Any], *args: Any, **options: Any) -> Any:
        features, (*targets, mask) = before(*args, **options)
        latents = arguments["inputs"]["latents"].float()
        return features, (*targets, latents, features[0].detach().clone(), mask)

    def get_loss_fn(before: Any, _: dict[str, Any], self: Any) -> Any:
        if id(self) in asked:  # a model's own function asks its base's
            return before(self)
        asked.add(id(self))
        try:
            own = before(self)
        finally:
            asked.discard(id(self))
        around(self, "prepare_inputs", prepare_inputs)

        def loss_fn(output: Any, label: Any) -> torch.Tensor:
            *targets, latents, x_t, mask = label
            loss: torch.Tensor = own(output, (*targets, mask))
            # SDXL's output has its timesteps behind the prediction.
            prediction = output if isinstance(output, torch.Tensor) else output[0]
            if not torch.is_grad_enabled() or not prediction.requires_grad:
                return loss
            size, device = latents.shape, prediction.device
            return loss + face.step(
                prediction=_picture(prediction, size),
                target=_picture(targets[0].to(device), size),
                latents=latents.to(device),
                x_t=_picture(x_t.to(device), size),
            )

        return loss_fn

    def watch(model: type) -> None:
        if "get_loss_fn" in model.__dict__:
            around(model, "get_loss_fn", get_loss_fn)
        extended: list[type] = model.__subclasses__()
        for one in extended:
            watch(one)

    for base in bases:
        watch(base)
        # The file of a model is imported when the job's type is known.
        base.__init_subclass__ = classmethod(lambda cls, **_: watch(cls))  # type: ignore[assignment]


def find(_: dict[str, Any]) -> tuple[type, ...]:
    """The classes that diffusion-pipe's models extend."""
    from models import base  # type: ignore[import-not-found]

    return tuple(one for name in ("BasePipeline", "ComfyPipeline") if (one := getattr(base, name, None)) is not None)


def _picture(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Converts tokens of 2×2 latent pixels, the layout of FLUX and Qwen-Image, to ``[N,C,h,w]``. Other layouts are returned
    as they are."""
    return from_patches(x, (len(x), x.shape[2] // 4, *size[-2:])) if x.dim() == 3 else x
