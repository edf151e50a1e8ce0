"""Decoding a diffusion model's latents with a gradient, by whatever decodes: the library or the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .graph import Graph
from .vae import Vae

#: The keys of a loss that say how latents become an image.
_UNPACK, _DECODE = ("packing", "latent_crop", "latent_format"), ("clamp",)


def decode_latents(vae: Vae, latents: torch.Tensor, config: Mapping[str, Any] | None = None, size: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """A model's latents as images ``[B,3,H,W]`` float32 in [0, 1]; the gradient flows to the latents.

    Args:
        latents: ``[B,C,h,w]``, or as ``packing`` says
        config: ``packing``, ``latent_crop``, ``latent_format``, ``clamp`` of :class:`FaceLoss`; other keys are not looked at
        size: (height, width) of the latent in latent pixels, for packed tokens
    """
    images: torch.Tensor = _Decode.apply(latents, vae, dict(config or {}), size)  # type: ignore[no-untyped-call]
    return images


class _Decode(torch.autograd.Function):
    """Unpacking and decoding on the library's tape."""

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
