"""Compile the part of the library for the torch that is installed, where this facegrad brings none for it.

This needs a C++ compiler and nothing else, and takes about half a minute. The result goes to the user's cache
($XDG_CACHE_HOME/facegrad, by default ~/.cache/facegrad), where facegrad finds it from then on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import _part

EPILOG = "exit codes: 0 the part is there; 1 it cannot be compiled or written; 2 a wrong argument"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--force", action="store_true", help="compile also where a part for this torch is there")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        import torch
    except ModuleNotFoundError:
        print("FAIL  this Python has no PyTorch to compile the part for; https://pytorch.org says how to install it on this machine")
        return 1
    core = _part.core()
    if core is None:
        print(f"FAIL  {_part.CORE} is missing in {_part.HERE}; install facegrad again, or run `make build` in a checkout")
        return 1
    version = torch.__version__
    there = next((path for path in _part.candidates(core, version)[:2] if path.exists()), None)
    if there is not None and not arguments.force:
        print(f"ok    {there} is the part for torch {version}; --force compiles it again")
        return 0
    text = core.with_name(_part.TEXT)
    if not text.exists():
        print(f"FAIL  {text} is missing, which the part is compiled from; install facegrad again")
        return 1
    library = _part.user_part(core, version)
    print(f"      compiling {library} for torch {version}", flush=True)
    try:
        _part.compile_part(Path(torch.__path__[0]), library, text, old_abi=not torch._C._GLIBCXX_USE_CXX11_ABI)
    except OSError as error:
        print(f"FAIL  {error.filename or library}: {error.strerror or error}; set XDG_CACHE_HOME to a folder that you may write to")
        return 1
    except RuntimeError as error:
        print(f"FAIL  {error}")
        return 1
    print(f"ok    {library}, {os.path.getsize(library) // 1024} KB; `python -m facegrad doctor` checks that it works")
    return 0
