"""Download a model pack into InsightFace's folder, checked and unpacked."""

from __future__ import annotations

import argparse
import sys

from ..download import DownloadError, download_pack
from ..packs import HOME, PACKS

EPILOG = "exit codes: 0 the pack is there; 2 a wrong argument; 3 the download failed (what came is kept, run it again)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("pack", choices=list(PACKS), help="the pack; auraface is the permissive alternative")
    parser.add_argument("--root", default=HOME, help="InsightFace's folder; the pack goes to ROOT/models/PACK (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    print(f"Licence: {PACKS[arguments.pack].licence}.")
    try:
        files = download_pack(arguments.pack, arguments.root, progress=not arguments.quiet)
    except (DownloadError, ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return 3
    print(f"{arguments.pack} is in {files.detector.parent}: {files.detector.name}, {files.recogniser.name}")
    return 0
