"""``python -m facegrad``, and the command ``facegrad``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .commands import doctor, download, inspect, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="facegrad", description="Face identity loss and score: tools around the library.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (download, inspect, doctor, train):
        name = module.__name__.rsplit(".", 1)[1]
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, epilog=module.EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
