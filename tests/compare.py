"""How the Python suites compare tensors: by the size of everything that is compared, never part by part."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Tensors = torch.Tensor | Mapping[str, torch.Tensor]


def relative(got: Tensors, want: Tensors) -> float:
    """‖got − want‖ / ‖want‖ over all tensors together.

    A part that is zero in exact arithmetic (the gradient of a query whose keys are all equal, say) holds nothing but
    rounding, which differs between processors. Measured by its own norm it would be wrong by a factor of two or three,
    so no part is measured by its own norm.
    """
    got, want = flat(got), flat(want)
    assert got.keys() == want.keys(), got.keys() ^ want.keys()
    assert all(got[k].shape == want[k].shape for k in want), "other shapes"
    size = norm(want.values())
    assert size > 0, "what is zero has no relative size: compare with an absolute bound"
    return norm(got[k] - want[k] for k in want) / size


def flat(tensors: Tensors) -> dict[str, torch.Tensor]:
    named = tensors if isinstance(tensors, Mapping) else {"": tensors}
    return {name: tensor.detach().double().cpu() for name, tensor in named.items()}


def norm(tensors) -> float:
    return sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5
