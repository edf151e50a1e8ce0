"""VAEs that decode with the host's own code: any object with ``decode`` and ``config``, or any function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

log = logging.getLogger("facegrad")

#: Classes that decode videos. An image is a video of one frame.
_VIDEO = (
    "AutoencoderKLQwenImage", "AutoencoderKLWan", "AutoencoderKLHunyuanVideo", "AutoencoderKLHunyuanVideo15", "AutoencoderKLCogVideoX",
    "AutoencoderKLMochi", "AutoencoderKLLTXVideo", "AutoencoderKLCosmos", "AutoencoderKLAllegro", "AutoencoderKLMagvit",
)  # fmt: skip


def is_duck(vae: object) -> bool:
    """Whether an object decodes as diffusers' VAEs do: it has ``decode`` and ``config``."""
    return callable(getattr(vae, "decode", None)) and hasattr(vae, "config")


def class_names(module: object) -> list[str]:
    """The names of an object's class and its base classes, in method resolution order."""
    return [one.__name__ for one in type(module).__mro__]


def config_of(vae: object, name: str, default: Any = None) -> Any:
    """An entry of a VAE's config, which may be a mapping or an object."""
    config = getattr(vae, "config", None)
    if isinstance(config, Mapping):
        return config.get(name, default)
    return getattr(config, name, default)


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decodes a model's latents ``[B,C,h,w]`` to images ``[B,3,H,W]``, RGB in [0, 1], clamped. ``vae`` is a diffusers VAE, an
    object that behaves like one, or a function from latents to images. The gradient flows through the host's own decoder.

    The VAE's ``config`` tells how the model's latents relate to the VAE's: ``scaling_factor`` and ``shift_factor``, or
    ``latents_mean`` and ``latents_std``. Of an image with alpha, the colour channels are used.
    """
    if not is_duck(vae):
        if not callable(vae):
            raise TypeError(f"vae: expected a diffusers VAE or a function from latents to images in [0, 1], got {type(vae).__name__}")
        return pictures(vae(latents))
    if hasattr(vae, "bn"):
        raise TypeError("vae: FLUX.2's latents are patches; give a function that unpacks and decodes them")
    mean, std = config_of(vae, "latents_mean"), config_of(vae, "latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        scale = config_of(vae, "scaling_factor", 1.0) or 1.0
        x = latents * (latents.new_tensor(std).view(shape) / scale) + latents.new_tensor(mean).view(shape)
    else:
        x = latents / (config_of(vae, "scaling_factor", 1.0) or 1.0) + (config_of(vae, "shift_factor") or 0.0)
    return (raw(vae, x) / 2 + 0.5).clamp(0, 1)


def raw(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decodes a VAE's own latents ``[B,C,h,w]`` to ``[B,3,H,W]`` float32, RGB, nominally in [−1, 1], not clamped."""
    dtype = weights_dtype(vae)
    x = latents if dtype is None else latents.to(dtype)
    frames = any(name in _VIDEO for name in class_names(vae))
    made = vae.decode(x.unsqueeze(2) if frames else x)
    image = made["sample"] if isinstance(made, Mapping) and "sample" in made else getattr(made, "sample", made)
    if isinstance(image, (tuple, list)):
        image = image[0]
    return pictures(image.squeeze(2) if frames and image.dim() == 5 else image).float()


def pictures(images: Any) -> torch.Tensor:
    """Checks that a decoder returned ``[B,3,H,W]``, or ``[B,4,H,W]`` with alpha. Returns the colour channels."""
    if not isinstance(images, torch.Tensor) or images.dim() != 4 or images.shape[1] not in (3, 4):
        got = list(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"vae: expected the decoder to give images [B,3,H,W] (or [B,4,H,W] with alpha), got {got}")
    return images[:, :3]


def expected_range(function: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    """The function, with one warning where its images can hardly be meant as RGB in [0, 1]."""
    told = False

    def watched(latents: torch.Tensor) -> Any:
        nonlocal told
        images = function(latents)
        if not told and isinstance(images, torch.Tensor) and images.numel():
            least, largest = (float(value) for value in images.detach().aminmax())
            if least < -0.25 or largest > 1.25:
                told = True
                log.warning(
                    "vae: the function's images have values from %.2f to %.2f, where RGB in [0, 1] is expected; a VAE's own output needs (x + 1) / 2",
                    least, largest,
                )  # fmt: skip
        return images

    return watched


def weights_dtype(vae: object) -> torch.dtype | None:
    """The dtype that a module computes in; None where it has no floating weights, or is no module."""
    declared = getattr(vae, "dtype", None)
    if isinstance(declared, torch.dtype) and declared.is_floating_point:
        return declared
    if isinstance(vae, torch.nn.Module):
        return next((p.dtype for p in vae.parameters() if p.is_floating_point()), None)
    return None
