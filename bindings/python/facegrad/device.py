"""Where a module's networks are sent by ``to``, ``cuda`` and ``cpu``."""

from __future__ import annotations

from collections.abc import Callable

import torch


def moved(fn: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> torch.device | None:
    """The device that ``fn``, the function of ``torch.nn.Module._apply``, brings tensors of ``device`` to; None where they
    stay."""
    new = fn(torch.empty(0, device=device)).device
    same = new.type == device.type and (device.index is None or new.index is None or new.index == device.index)
    return None if same else new
