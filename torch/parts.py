#!/usr/bin/env python3
"""Compiles the part for every torch in versions.txt: parts.py TEXT FOLDER [VERSION …]

TEXT is facegrad_torch.cc as cargo wrote it. FOLDER receives torch2.7/libfacegrad_torch.so and so on. The wheels of torch
are downloaded, used and deleted one after another. A part that is newer than TEXT is kept, so a stopped run goes on.
Where TORCHES names a folder, what a compiler needs of each torch (500 MB) is kept there for the next run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("part", HERE.parent / "bindings/python/facegrad/_part.py")
assert spec is not None and spec.loader is not None
part = importlib.util.module_from_spec(spec)
spec.loader.exec_module(part)


def headers_and_libraries(version: str, folder: Path) -> tuple[Path, bool]:
    """The folder of one torch with what a compiler needs, downloaded into ``folder``, and whether it has libstdc++'s old ABI."""
    torch = folder / "torch"
    if not (torch / "version.py").exists():
        download(version, folder)
    # Which ABI a build has shows in the name of a constructor that takes a std::string: `Ss` is the old one.
    symbols = subprocess.run(["nm", "-D", "--defined-only", torch / "lib/libc10.so"], capture_output=True, text=True, check=True)
    return torch, "_ZN3c105ErrorC1ENS_14SourceLocationESs" in symbols.stdout.split()


def download(version: str, folder: Path) -> None:
    """Downloads one torch and unpacks its headers and the two libraries that the part is linked to."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-cache-dir",
           "--only-binary=:all:", "--python-version=3.12", "--implementation=cp", "--abi=cp312", "-d", str(folder),
           *("--platform=manylinux_2_28_x86_64 --platform=manylinux2014_x86_64 --platform=manylinux1_x86_64".split())]  # fmt: skip
    subprocess.run([*pip, f"torch=={version}"], check=True)
    (wheel,) = folder.glob("torch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("torch/include/") or name in ("torch/lib/libtorch_cpu.so", "torch/lib/libc10.so"):
                archive.extract(name, folder)
        # Last, since it says that the rest is there.
        archive.extract("torch/version.py", folder)
    wheel.unlink()


def main(text: Path, output: Path, versions: list[str]) -> None:
    """Compiles what is missing and says what each part cost."""
    listed = (HERE / "versions.txt").read_text().split()
    for version in versions or listed:
        library = output / f"torch{part.minor(version)}" / part.NAME
        if library.exists() and library.stat().st_mtime > text.stat().st_mtime:
            print(f"torch {version}: {library} is there", flush=True)
            continue
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            start = time.monotonic()
            kept = os.environ.get("TORCHES")
            torch, old_abi = headers_and_libraries(version, Path(kept, version) if kept else Path(scratch))
            downloaded = time.monotonic()
            part.compile_part(torch, library, text, old_abi=old_abi)
            print(
                f"torch {version}: {library.stat().st_size // 1024} KB, downloaded in {downloaded - start:.0f} s, compiled in "
                f"{time.monotonic() - downloaded:.0f} s{', old C++ ABI' if old_abi else ''}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
