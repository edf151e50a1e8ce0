"""Finds or compiles ``libfacegrad_torch.so``, the part of the library that is made for one minor version of torch.

Imports nothing of the package, so that ``python -m facegrad build`` works where the library does not load yet.
``docs/torch.md`` explains the core and the part.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAME = "libfacegrad_torch.so"
CORE = "libfacegrad.so"
TEXT = "facegrad_torch.cc"
HERE = Path(__file__).resolve().parent


def building() -> bool:
    """Whether this process is ``python -m facegrad build`` or ``facegrad build``, which must run where the library does not load."""
    words = [Path(word).name for word in sys.orig_argv[1:]]
    return ("facegrad", "build") in zip(words, words[1:])


def cores() -> list[Path]:
    """The paths where the library itself may be, best first: ``$FACEGRAD_LIBRARY``, or in this package, or in its checkout."""
    named = os.environ.get("FACEGRAD_LIBRARY")
    if named:
        return [Path(named)]
    return [HERE / CORE, *(HERE.parents[2] / "target" / profile / CORE for profile in ("release", "debug"))]


def core() -> Path | None:
    """The path of the library itself; None where there is none."""
    return next((path for path in cores() if path.exists()), None)


def minor(version: str) -> str:
    """``2.11`` of ``2.11.0+cu130``."""
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else version


def compiled_for(part: Path) -> str:
    """The version of torch that a part was compiled for, read from the file; ``unknown`` for a file that is no part."""
    match = re.search(rb"libfacegrad_torch for torch (\d[\d.]*)", part.read_bytes())
    return match[1].decode() if match else "unknown"


def is_cut(library: Path) -> bool:
    """Whether an ELF library is shorter than its header says. Loading such a file would end the process with a signal."""
    with library.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or not head.startswith(b"\x7fELF"):
        return False
    offset, size, count = (int.from_bytes(head[start:end], "little") for start, end in ((40, 48), (58, 60), (60, 62)))
    return library.stat().st_size < offset + size * count


def user_folder() -> Path:
    """The folder for parts of ``python -m facegrad build``: ``$XDG_CACHE_HOME/facegrad``, by default ``~/.cache/facegrad``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "facegrad"


def user_part(core: Path, version: str) -> Path:
    """The part in the user's folder for this core (by its size and time) and this minor version of torch."""
    stamp = core.stat()
    return user_folder() / f"{stamp.st_size:x}-{stamp.st_mtime_ns:x}" / f"torch{minor(version)}" / NAME


def candidates(core: Path, version: str) -> list[Path]:
    """The paths where the part for torch ``version`` may be, best first. ``core`` is ``libfacegrad.so``."""
    return [core.parent / f"torch{minor(version)}" / NAME, user_part(core, version), core.parent / NAME]


def shipped(core: Path) -> list[str]:
    """The minor versions of torch that this installation brings parts for, oldest first."""
    found = [path.parent.name.removeprefix("torch") for path in core.parent.glob(f"torch*/{NAME}")]
    return sorted(found, key=lambda text: [int(number) for number in re.findall(r"\d+", text)])


def missing(core: Path, version: str, facegrad: str) -> str:
    """One sentence that says why there is no part for torch ``version``, and what to do. It never asks for another torch."""
    known = shipped(core)
    compile_it = "compile the part for this torch with `python -m facegrad build` (it needs a C++ compiler)"
    if not known and core.with_name(TEXT).exists():
        return f"facegrad {facegrad} was built from source and has no part for torch {version} yet: {compile_it}"
    if not known:
        return f"facegrad {facegrad}: {NAME} is missing beside {core}; install facegrad again, or build it with `make build`"
    numbers = [[int(n) for n in text.split(".")] for text in known]
    own = [int(n) for n in minor(version).split(".")]
    text = f"facegrad {facegrad} has parts for torch {known[0]} to {known[-1]}, and this is torch {version}"
    if own < numbers[0]:
        return f"{text}: the oldest supported torch is {known[0]}; you can {compile_it}"
    if own > numbers[-1]:
        return f"{text}: install a newer facegrad (pip install --upgrade facegrad), or {compile_it}"
    return f"{text}: {core.parent / f'torch{minor(version)}' / NAME} is missing; install facegrad again, or {compile_it}"


def compile_part(torch: Path, library: Path, text: Path, *, rpath: bool = False, old_abi: bool = False) -> None:
    """Compiles the part.

    Args:
        torch: the folder of a torch, with ``include`` and ``lib``
        library: the file to write; its folder is made, and an old file stays until the new one is whole
        text: ``facegrad_torch.cc``, which has ``exports.map`` beside it
        rpath: whether the part names the folder of its torch, for processes that have not loaded one
        old_abi: whether the torch was built with libstdc++'s old ABI (some builds of 2.6)

    Raises:
        RuntimeError: there is no compiler, or it failed; the text has its last lines
    """
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        raise RuntimeError(f"{compiler} is missing: install a C++ compiler (Debian: apt install g++), or set CXX")
    library.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=library.parent, prefix=".part-", suffix=".so")
    os.close(handle)
    command = [
        compiler, "-std=c++20", "-O2", "-fPIC", "-shared", "-w", f"-D_GLIBCXX_USE_CXX11_ABI={int(not old_abi)}",
        # Headers put their own paths into messages of errors.
        f"-ffile-prefix-map={torch}=torch", "-isystem", str(torch / "include"), "-isystem", str(torch / "include/torch/csrc/api/include"), str(text),
        "-L", str(torch / "lib"), "-Wl,--as-needed", "-ltorch_cpu", "-lc10",
        f"-Wl,-soname,{NAME}", "-Wl,-s", f"-Wl,--version-script,{text.with_name('exports.map')}",
        *([f"-Wl,-rpath,{torch / 'lib'}"] if rpath else []), "-o", scratch,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode != 0:
            tail = "\n".join(done.stdout.splitlines()[-12:])
            raise RuntimeError(f"{compiler} ended with {done.returncode}:\n{tail}")
        os.chmod(scratch, 0o755)
        os.replace(scratch, library)
    finally:
        Path(scratch).unlink(missing_ok=True)
