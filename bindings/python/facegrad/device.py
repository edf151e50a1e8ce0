"""The device to which a module's ``to``, ``cuda`` and ``cpu`` send it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def moved(fn: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> torch.device | None:
    """The device to which ``fn``, the argument of ``torch.nn.Module._apply``, moves tensors on ``device``; None where they
    stay."""
    new = fn(torch.empty(0, device=device)).device
    same = new.type == device.type and (device.index is None or new.index is None or new.index == device.index)
    return None if same else new
