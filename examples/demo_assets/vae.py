"""Writes vae.safetensors: a decoder of the TAESD family whose weights are written down, not trained.

    python examples/demo_assets/vae.py

Latents are pictures of half the size, `[B,3,h,w]` with RGB from -1 to 1, and decoding enlarges them smoothly to
`[B,3,2h,2w]` in [0, 1]. `latents = 2 * mean_of_2x2(image) - 1` is the encoder. What a VAE needs to be for a host's
example is this: small, differentiable and exact.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

SMOOTH = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
POINT = torch.zeros(3, 3)
POINT[1, 1] = 1


def decoder() -> dict[str, torch.Tensor]:
    """Three convolutions. A ReLU follows the first, so that positive and negative halves go apart (6 channels)."""
    halves = torch.cat([torch.eye(3), -torch.eye(3)])
    return {
        "decoder.layers.0.weight": halves[:, :, None, None] * POINT,
        "decoder.layers.0.bias": torch.zeros(6),
        "decoder.layers.3.weight": torch.eye(6)[:, :, None, None] * SMOOTH,
        "decoder.layers.4.weight": (0.5 * halves.T)[:, :, None, None] * POINT,
        "decoder.layers.4.bias": torch.full((3,), 0.5),
    }


if __name__ == "__main__":
    save_file({k: v.contiguous() for k, v in decoder().items()}, Path(__file__).with_name("vae.safetensors"))
