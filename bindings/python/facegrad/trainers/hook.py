"""Shared by the adapters: wraps a trainer's own method, with its arguments by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def around(owner: Any, name: str, call: Callable[..., Any]) -> None:
    """Replaces ``owner.name``, which is a method of a class or an object, or a function of a module. From now on it runs
    ``call(before, arguments, *args, **options)``, where ``before`` is the original, and ``arguments`` are the arguments of
    the call by name.

    Raises:
        AttributeError: the trainer has no such method in this version; the text says what was looked for
    """
    before = getattr(owner, name, None)
    if before is None:
        where = getattr(owner, "__name__", type(owner).__name__)
        raise AttributeError(
            f"{where} has no `{name}` in this version of the trainer; examples/trainers/hooks.py lists what the face loss needs"
        )
    if getattr(before, "_facegrad", False):
        return
    signature = inspect.signature(before)

    @functools.wraps(before)
    def replaced(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        named = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(named.pop(parameter.name))
        return call(before, named, *args, **options)

    replaced._facegrad = True  # type: ignore[attr-defined]
    setattr(owner, name, replaced)
