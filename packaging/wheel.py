#!/usr/bin/env python3
"""Makes the wheel and the sdist in dist/: wheel.py [VERSION …], where a VERSION of torch limits the parts to those.

The wheel holds the core, linked for glibc 2.28, and a part for every torch in torch/versions.txt. The work is kept in
target/wheel, so that a stopped run goes on. docs/torch.md explains the core and the parts.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import licences

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "torch"))
import parts

WORK = ROOT / "target/wheel"
BUILT = WORK / "facegrad"
DIST = ROOT / "dist"
TARGET = "x86_64-unknown-linux-gnu"
PLATFORM = "manylinux_2_28_x86_64"


def build_core() -> None:
    """Builds the core without a torch. No path of this machine stays in it."""
    cargo_home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    variable = f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}"
    env = os.environ | {
        "FACEGRAD_CORE_ALONE": "1",
        "CARGO_PROFILE_RELEASE_STRIP": "symbols",
        f"{variable}_LINKER": str(ROOT / "packaging/zigcc.py"),
        f"{variable}_RUSTFLAGS": f"--remap-path-prefix={cargo_home / 'registry/src'}=crates --remap-path-prefix={ROOT}=facegrad",
        # zigcc.py runs in the Python that has zig.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    run("cargo", "build", "--release", "--locked", "--lib", "--target", TARGET, "--target-dir", WORK / "cargo", env=env)
    made = WORK / "cargo" / TARGET / "release"
    for name in (parts.part.CORE, parts.part.TEXT, "exports.map"):
        # A text that did not change keeps its time, so that its parts need not be compiled again.
        if not (BUILT / name).exists() or not filecmp.cmp(made / name, BUILT / name, shallow=False):
            shutil.copy(made / name, BUILT / name)


def run(*command: object, env: dict[str, str] | None = None) -> None:
    """Runs a program in the repository, and ends with its status where it fails."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=env)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command[:3]))} … ended with {done.returncode}")


def main(versions: list[str]) -> None:
    """Makes both and checks the wheel."""
    BUILT.mkdir(parents=True, exist_ok=True)
    # One wheel and one sdist, those of this version.
    shutil.rmtree(DIST, ignore_errors=True)
    build_core()
    parts.main(BUILT / parts.part.TEXT, BUILT, versions)
    (BUILT / "THIRD-PARTY-LICENSES.txt").write_text(licences.text(ROOT, TARGET))
    shutil.rmtree(WORK / "raw", ignore_errors=True)
    # setuptools would add what an earlier build left there.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    hooks = "from setuptools import build_meta as b; import sys; "
    run(sys.executable, "-c", hooks + "b.build_wheel(sys.argv[1])", WORK / "raw", env=os.environ | {"FACEGRAD_BUILT": str(BUILT)})
    run(sys.executable, "-c", hooks + "b.build_sdist(sys.argv[1])", DIST)
    for left in (ROOT / "build", ROOT / "bindings/python/facegrad.egg-info"):
        shutil.rmtree(left, ignore_errors=True)
    (raw,) = (WORK / "raw").glob("*.whl")
    # torch brings its libraries, and the part is found by the loader in facegrad.
    excluded = [word for name in ("libtorch*", "libc10*", parts.part.NAME) for word in ("--exclude", name)]
    run(sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "--only-plat", *excluded, "-w", DIST, raw)


if __name__ == "__main__":
    main(sys.argv[1:])
