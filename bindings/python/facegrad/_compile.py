"""Keeps torch.compile away from calls into the library."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from types import FunctionType
from typing import ParamSpec, TypeVar, cast

from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Makes torch.compile skip a function. A compiled caller breaks its graph before the call and continues after it."""
    # torch.compiler.disable would import the compiler, which takes seconds, whether somebody compiles or not.
    outside = _disable_dynamo(function)

    @functools.wraps(function)
    def enter(*args: P.args, **kwargs: P.kwargs) -> R:
        return outside(*args, **kwargs) if "torch._dynamo" in sys.modules else function(*args, **kwargs)

    # Not compiled by itself either: that would cost guards, and warnings about tensors that it only passes on. Where a
    # torch does not have the names below it is compiled, no more.
    with contextlib.suppress(ImportError, AttributeError, TypeError):
        from torch._C._dynamo import eval_frame

        skip, default = eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
        eval_frame.set_code_exec_strategy(cast(FunctionType, enter).__code__, eval_frame._FrameExecStrategy(skip, default))
    return enter
