"""Images, latents and noise levels: from ComfyUI's conventions to the library's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def planes(image: torch.Tensor) -> torch.Tensor:
    """IMAGE `[B,H,W,C]` → `[B,3,H,W]` float32, RGB in [0, 1]; an alpha channel is dropped."""
    if image.ndim != 4 or image.shape[-1] < 3:
        raise ValueError(f"expected an IMAGE [B,H,W,3], got {tuple(image.shape)}")
    return image[..., :3].float().movedim(-1, 1).contiguous()


def pixels(images: torch.Tensor) -> torch.Tensor:
    """`[B,3,H,W]` → IMAGE `[B,H,W,3]` float32 on the CPU, cut to [0, 1]."""
    return images.detach().float().cpu().clamp(0, 1).movedim(1, -1).contiguous()


class Affine:
    """Per channel `z = mul·x + add`.

    Attributes:
        mul, add: one number a channel
    """

    def __init__(self, mul: list[float], add: list[float]) -> None:
        self.mul, self.add = mul, add

    def inverse(self) -> Affine:
        """From z back to x."""
        return Affine([1 / m for m in self.mul], [-a / m for m, a in zip(self.mul, self.add)])

    def config(self) -> dict[str, Any]:
        """`latent_format` of the library."""
        return {"custom": {"std": self.mul, "mean": self.add}}


def probe(process_out: Callable[[torch.Tensor], torch.Tensor], channels: int, dimensions: int = 2) -> Affine:
    """What a model's `process_latent_out` does to each channel, found by trying it.

    Every latent format that a per-channel scale and shift describes is known this way, whatever its name.

    Raises:
        ValueError: it does something else
    """
    shape = (1, channels) + (1,) * dimensions
    x = torch.linspace(-1.5, 1.7, channels, dtype=torch.float64).reshape(shape)
    zero, one, other = (process_out(v.clone()).double() for v in (torch.zeros_like(x), torch.ones_like(x), x))
    add, mul = zero, one - zero
    known = other.shape == x.shape and torch.allclose(mul * x + add, other, rtol=1e-5, atol=1e-6) and bool((mul != 0).all())
    if not known:
        raise ValueError(
            "the model's latent format is not a scale and shift of each channel, so its latents cannot be handed to the VAE; "
            "the identity loss needs an image model such as SD1.5, SDXL, SD3, FLUX, Qwen-Image or Wan 2.1"
        )
    return Affine(mul.flatten().tolist(), add.flatten().tolist())


def noise_levels(noise_scaling: Callable[..., torch.Tensor], sigmas: torch.Tensor) -> torch.Tensor:
    """The noise fraction t in [0, 1] of every sigma, `[N]` float32 on the CPU.

    A model's `noise_scaling` mixes `a·latent + b·noise`; `t = b / (a + b)` is sigma for flow matching, and for other
    processes the time of flow matching that has the same signal-to-noise ratio.
    """
    sigmas = sigmas.detach().float().cpu().flatten()
    zero, one = torch.zeros(len(sigmas), 1, 1, 1), torch.ones(len(sigmas), 1, 1, 1)
    a = noise_scaling(sigmas, zero.clone(), one.clone(), False).flatten()
    b = noise_scaling(sigmas, one.clone(), zero.clone(), False).flatten()
    return (b / (a + b)).clamp(0, 1)


def frames(latents: torch.Tensor) -> torch.Tensor:
    """`[B,C,h,w]` of latents that may have a time axis of length 1, `[B,C,1,h,w]`."""
    if latents.ndim == 5 and latents.shape[2] == 1:
        return latents.squeeze(2)
    if latents.ndim != 4:
        raise ValueError(f"expected latents of single images [B,C,h,w] or [B,C,1,h,w], got {tuple(latents.shape)}")
    return latents
