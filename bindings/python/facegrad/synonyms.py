"""Arguments by names that they have elsewhere: refused with the name that they have here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def refuse_unknown(function: Callable[..., Any], arguments: Mapping[str, Any], called: Mapping[str, str], where: str) -> None:
    """Refuses the arguments that a function has under another name, or not at all.

    Args:
        function: what takes them; its own keyword names are accepted
        arguments: by the names that the caller wrote
        called: names that they have elsewhere, with those that they have here, or with what to write where the value differs too
        where: what the error begins with

    Raises:
        TypeError: names what to write
    """
    known = [
        name for name, one in inspect.signature(function).parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    for name, value in arguments.items():
        if name in called:
            here, differs, _ = called[name].partition("=")
            raise TypeError(f"{where}: `{name}` is called `{here}` here; write {called[name] if differs else f'{here}={value!r}'}")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; it takes {', '.join(one for one in known if one != 'self')}"
            raise TypeError(f"{where}: there is no argument `{name}`{hint}")
