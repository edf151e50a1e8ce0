"""The layouts in which trainers keep a batch of latents, and how to tell the layout of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .convention import TOLERANCE


@dataclass(frozen=True)
class Layout:
    """One layout. ``pack`` converts ``[N,C,h,w]`` to it, and ``unpack`` converts back, given that shape."""

    name: str
    pack: Callable[[torch.Tensor], torch.Tensor]
    unpack: Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


def one_picture(x: torch.Tensor) -> torch.Tensor:
    """Converts one frame of a video model, ``[N,C,1,h,w]`` or ``[N,1,C,h,w]``, to ``[N,C,h,w]``.

    Raises:
        ValueError: there are several frames
    """
    if x.dim() != 5:
        return x
    for at in (2, 1):
        if x.shape[at] == 1:
            return x.squeeze(at)
    raise ValueError(f"expected single pictures, got {list(x.shape)}: the face loss takes no videos; train on single frames")


def patches(x: torch.Tensor) -> torch.Tensor:
    """Converts ``[N,C,h,w]`` to tokens of 2×2 latent pixels ``[N,hw/4,4C]``, the layout of FLUX and Qwen-Image."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def from_patches(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The inverse of :func:`patches`. Control tokens after those of the picture are left out."""
    n, c, h, w = shape
    return x[:, : h * w // 4].reshape(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def _from_tokens(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    n, c, h, w = shape
    return x[:, : h * w].transpose(1, 2).reshape(n, c, h, w)


LAYOUTS = (
    Layout("[N,C,h,w]", lambda x: x, lambda x, shape: x[:, : shape[1]]),
    Layout("[N,C,1,h,w]", lambda x: x.unsqueeze(2), lambda x, shape: x.squeeze(2)),
    Layout("[N,1,C,h,w]", lambda x: x.unsqueeze(1), lambda x, shape: x.squeeze(1)),
    Layout("[N,hw/4,4C]", patches, from_patches),
    Layout("[N,hw,C]", lambda x: x.flatten(2).transpose(1, 2), _from_tokens),
)


def layout_of(found: torch.Tensor, x: torch.Tensor) -> Layout | None:
    """The layout in which ``found`` begins with ``x`` ``[N,C,h,w]``, up to rounding. Control channels or tokens may follow.
    None where no layout fits."""
    for layout in LAYOUTS:
        if layout.name == "[N,hw/4,4C]" and (x.shape[-1] % 2 or x.shape[-2] % 2):
            continue
        want = layout.pack(x)
        if (
            found.dim() != want.dim()
            or found.shape[1] < want.shape[1]
            or found.shape[:1] + found.shape[2:] != want.shape[:1] + want.shape[2:]
        ):
            continue
        there = found[:, : want.shape[1]].detach().float()
        if float((there - want.float()).norm()) <= TOLERANCE * float(want.float().norm()):
            return layout
    return None
