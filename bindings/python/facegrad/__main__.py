"""``python -m facegrad``, and the command ``facegrad``."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from . import _part

COMMANDS = ["download", "inspect", "doctor", "train", "build"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="facegrad", description="Face identity loss and score: tools around the library.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # `build` works where the library does not load, and the others do not.
    for name in ["build"] if _part.building() else COMMANDS:
        module = importlib.import_module(f".commands.{name}", __package__)
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, epilog=module.EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # File names may be no text.
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
