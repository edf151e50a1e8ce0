"""Which of the pictures that the user connected is which sample of the training set.

ComfyUI's Resolution Bucket puts pictures of one size together, so the trainer's order is not always the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .layout import frames

#: The largest relative distance of two latents that are the same but for their number format.
TOLERANCE = 0.02


def regrouped(sampler: Any) -> bool:
    """Whether the trainer has samples of several sizes, which may have been put together by their size."""
    return any(len({tuple(batch.shape[1:]) for batch in batches}) > 1 for batches in _datasets(sampler))


def samples(sampler: Any, latent_image: torch.Tensor) -> list[torch.Tensor]:
    """The trainer's samples `[C,h,w]` in its own order."""
    for batches in _datasets(sampler):
        return [row for batch in batches for row in frames(batch)]
    return list(frames(latent_image))


def _datasets(sampler: Any) -> list[Sequence[torch.Tensor]]:
    """What the trainer keeps of samples in several tensors: its multi-resolution and its bucket mode."""
    return [batches for name in ("real_dataset", "bucket_latents") if (batches := getattr(sampler, name, None)) is not None]


def match(connected: Sequence[torch.Tensor], trained: Sequence[torch.Tensor], scaled: Callable[[torch.Tensor], torch.Tensor]) -> list[int]:
    """For every sample of the trainer the number of the connected latent that is the same.

    Args:
        connected: latents `[C,h,w]` as the VAE made them, in the user's order
        trained: latents `[C,h,w]` in the trainer's order and number format
        scaled: the model's own scaling, which the trainer has applied to some

    Raises:
        ValueError: a sample is none of the connected latents
    """
    free: dict[tuple[int, ...], list[int]] = {}
    for at, latent in enumerate(connected):
        free.setdefault(tuple(latent.shape), []).append(at)
    found: list[int] = []
    tables = {shape: torch.stack([connected[at].float().cpu() for at in rows]) for shape, rows in free.items()}
    used: set[int] = set()
    for number, latent in enumerate(trained):
        shape, sample = tuple(latent.shape), latent.detach().float().cpu()
        rows = free.get(shape, [])
        best: int | None = None
        if rows:
            for table in (tables[shape], scaled(tables[shape])):
                errors = (table - sample).flatten(1).norm(dim=1) / sample.norm().clamp_min(1e-12)
                near = [at for at, error in zip(rows, errors.tolist()) if error < TOLERANCE]
                # The same picture twice: each of its samples has its own place.
                best = next((at for at in near if at not in used), near[0] if near else best)
                if best is not None:
                    break
        if best is None:
            raise ValueError(
                f"Face Identity Loss: sample {number} of the training set is none of the {len(connected)} latents that are connected to "
                "`latents`; connect the latents as they are before Resolution Bucket, from the same VAE Encode"
            )
        used.add(best)
        found.append(best)
    return found
