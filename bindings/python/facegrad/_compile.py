"""Where torch.compile ends its graph: calls into the library run as they are."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Keeps torch.compile out of a function: a compiled caller breaks its graph there and goes on behind it."""
    # torch.compiler.disable would import the compiler, which takes seconds, whether somebody compiles or not.
    outside = torch._disable_dynamo(function)

    @functools.wraps(function)
    def enter(*args: P.args, **kwargs: P.kwargs) -> R:
        return outside(*args, **kwargs) if "torch._dynamo" in sys.modules else function(*args, **kwargs)

    # Not compiled by itself either: that would cost guards, and warnings about tensors that it only passes on.
    with contextlib.suppress(ImportError):
        from torch._C._dynamo.eval_frame import skip_code

        skip_code(enter.__code__)
    return enter
