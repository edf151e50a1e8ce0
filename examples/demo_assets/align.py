"""ArcFace alignment in PyTorch: the least-squares similarity (Umeyama) onto the template of 112 px."""

from __future__ import annotations

import torch
import torch.nn.functional as F

TEMPLATE = torch.tensor([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366],
                         [41.5493, 92.3655], [70.7299, 92.2041]])


def crop(images: torch.Tensor, landmarks: torch.Tensor, size: int = 112) -> torch.Tensor:
    """images [N, 3, H, W], landmarks [N, 5, 2] in pixels → aligned crops [N, 3, size, size], zero outside."""
    src = torch.view_as_complex(landmarks.float().contiguous())
    dst = torch.view_as_complex(TEMPLATE * (size / 112)).expand_as(src)
    src_mean, dst_mean = src.mean(1, keepdim=True), dst.mean(1, keepdim=True)
    src, dst = src - src_mean, dst - dst_mean
    turn = (src.conj() * dst).sum(1, keepdim=True) / src.abs().square().sum(1, keepdim=True)
    axis = torch.arange(size, dtype=torch.float32)
    pixels = torch.complex(axis.expand(size, size).contiguous(), axis[:, None].expand(size, size).contiguous())
    where = (pixels[None] - dst_mean[..., None]) / turn[..., None] + src_mean[..., None]
    h, w = images.shape[2:]
    grid = torch.stack([where.real * 2 / (w - 1) - 1, where.imag * 2 / (h - 1) - 1], -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
