"""Decodes a diffusion model's latents with a gradient, by the library's decoder or by the host's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .graph import Graph
from .vae import Vae

#: The keys of a loss that say how latents become an image.
_UNPACK, _DECODE = ("packing", "latent_crop", "latent_format"), ("clamp",)


def decode_latents(
    vae: Vae, latents: torch.Tensor, config: Mapping[str, Any] | None = None, size: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """Decodes a model's latents to images ``[B,3,H,W]``, RGB in [0, 1], float32. The gradient flows to the latents.

    Args:
        vae: the decoder
        latents: ``[B,C,h,w]``, or in the layout that ``packing`` names
        config: the keys ``packing``, ``latent_crop``, ``latent_format`` and ``clamp`` of :class:`FaceLoss`; others are ignored
        size: (height, width) of the latent in latent pixels, for packed tokens
    """
    images: torch.Tensor = _Decode.apply(latents, vae, dict(config or {}), size)  # type: ignore[no-untyped-call]
    return images


class _Decode(torch.autograd.Function):
    """Unpacking and decoding by the library's graph."""

    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, vae: Vae, config: dict[str, Any], size: tuple[int, int]) -> torch.Tensor:
        graph = Graph(vae.device)
        ctx.latents = graph.input(latents, needs_gradient=ctx.needs_input_grad[0])
        space = graph.unpack(ctx.latents, vae, {key: config[key] for key in _UNPACK if key in config}, size)
        ctx.images = graph.decode(space, vae, {key: config[key] for key in _DECODE if key in config})
        ctx.graph, ctx.dtype = graph, latents.dtype
        return graph.read(ctx.images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        ctx.graph.backward(ctx.images, gradient.contiguous())
        return ctx.graph.gradient(ctx.latents).to(ctx.dtype), None, None, None
