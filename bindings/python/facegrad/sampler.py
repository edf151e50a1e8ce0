"""The deterministic step of a sampler: the same sample at another noise level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._library import Context, call
from ._tensor import View


def sampler_step(
    x_t: torch.Tensor,
    prediction: torch.Tensor,
    t: torch.Tensor | Sequence[float] | float,
    next_t: torch.Tensor | Sequence[float] | float,
    config: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """The same sample at another noise level: Euler's step for flow matching, DDIM's with η = 0 for epsilon, v and x0.

    The step is computed in float32, without a gradient. The result has the layout, dtype and device of ``x_t``. The step is
    linear in both tensors, so it works in any packing.

    >>> x = torch.ones(1, 4, 2, 2)
    >>> sampler_step(x, x, 1.0, 0.75)[0, 0, 0, 0].item()
    0.75

    Args:
        x_t: the noisy latents ``[N,…]``; float32, float16 or bfloat16
        prediction: the model's output, of the same shape
        t, next_t: noise levels per sample (or one for all) before and after the step, in the unit of ``prediction.time``.
            With timesteps of epsilon, v and x0, a ``next_t`` of −1 means the clean latent
        config: the object ``prediction`` of :class:`facegrad.FaceIdentityLoss`'s configuration; None for flow matching.
            Kind ``sample`` is x0 of a variance-preserving process. For x0 of a flow model, give the velocity
            ``(x_t − x0)/t`` as kind ``flow``

    Raises:
        facegrad.FacegradError: the shapes differ, or a level is outside its range
    """
    context = Context.of(x_t.device)
    count = x_t.shape[0] if x_t.dim() else 0
    levels = [torch.as_tensor(v, dtype=torch.float64).detach().cpu() for v in (t, next_t)]
    levels = [v.expand(count).contiguous() if v.dim() == 0 else v.reshape(-1) for v in levels]
    x, pred = x_t.detach(), prediction.detach()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    views = [View(*named) for named in (("x_t", x), ("prediction", pred), ("t", levels[0]), ("next_t", levels[1]), ("next", out))]
    text = None if config is None else json.dumps(dict(config)).encode()
    call("sampler_step", context._handle, *(view.pointer for view in views[:4]), text, views[4].pointer, context.stream)
    return out
