#!/usr/bin/env python3
"""The linker of the core in a wheel: zig's, for glibc 2.28. cargo calls it in place of cc.

zig links against the glibc that is asked for, whatever glibc this machine has. It differs from cc in two ways:

- It refuses ``--exclude-libs``, which hides the C symbols of dependencies. They are left out of the list of exported
  symbols that rustc passes instead.
- It has no libgcc_s. Its own libunwind does the same work.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GLIBC = "2.28"


def argument(text: str) -> str | None:
    """An argument of cc as zig takes it; None for one that zig must not see."""
    if text.startswith("-Wl,--exclude-libs"):
        return None
    if text == "-lgcc_s":
        return "-lunwind"
    if text.startswith("-Wl,--version-script="):
        script = Path(text.partition("=")[2])
        exported = re.findall(r"\bfacegrad_\w+", script.read_text())
        if exported:
            script.write_text(f"{{ global: {'; '.join(exported)}; local: *; }};\n")
    return text


def main(arguments: list[str]) -> int:
    """Links, and returns zig's exit status."""
    known = [text for text in map(argument, arguments) if text is not None]
    return subprocess.run([sys.executable, "-m", "ziglang", "cc", "-target", f"x86_64-linux-gnu.{GLIBC}", *known]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
