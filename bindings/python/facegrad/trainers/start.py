"""Starts a trainer's own script with the face loss. No file of the trainer is edited."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .face import TrainerFace

#: The adapters that recognise their trainer by a file of its checkout. Any other script is taken for one of diffusers'.
ADAPTERS = ("sd_scripts", "musubi_tuner", "ai_toolkit", "simpletuner", "onetrainer", "diffusion_pipe")


def run(script: Path, arguments: Sequence[str], face: TrainerFace) -> None:
    """Runs ``script`` as ``python script arguments…`` does, with ``face`` in its loss.

    First the script's definitions run, then the adapter changes them, and then the code below
    ``if __name__ == "__main__":`` runs.

    Raises:
        FileNotFoundError: there is no such script
        RuntimeError, AttributeError: this version of the trainer lacks something that the adapter needs; the text names it
    """
    script = script.resolve()
    source = script.read_text(encoding="utf-8")
    adapter = adapter_of(script)
    tree = ast.parse(source, filename=str(script))
    guarded = [node for node in tree.body if _is_guard(node)]
    tree.body = [node for node in tree.body if not _is_guard(node)]
    main = ModuleType("__main__")
    main.__file__ = str(script)
    sys.modules["__main__"] = main
    sys.argv = [str(script), *arguments]
    sys.path[0:0] = [str(script.parent)]
    early = adapter.__name__.endswith(".diffusers")
    if early:
        adapter.install(face)
    exec(compile(tree, str(script), "exec"), main.__dict__)
    if not early:
        adapter.install(face, adapter.find(main.__dict__))
    exec(compile(ast.Module(guarded, []), str(script), "exec"), main.__dict__)


def adapter_of(script: Path) -> ModuleType:
    """The adapter of the trainer that a script belongs to."""
    for folder in script.resolve().parents[:4]:
        for name in ADAPTERS:
            adapter = importlib.import_module(f"{__package__}.{name}")
            if (folder / adapter.MARK).is_file():
                return adapter
    return importlib.import_module(f"{__package__}.diffusers")


def _is_guard(node: ast.stmt) -> bool:
    """Whether a statement is ``if __name__ == "__main__":``."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and isinstance(node.test.left, ast.Name)
        and node.test.left.id == "__name__"
    )
