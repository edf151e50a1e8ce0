"""Builds and runs hosts outside Python: an installation, compilers, programs that say `N passed, N failed`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ASSETS = ROOT / "examples/demo_assets"
FIXTURES = ROOT / "target/fixtures"
DATA = Path(os.environ.get("FACEGRAD_TEST_DATA", ROOT / "../shared/data")).resolve()
LIBRARY = ROOT / "target/release/libfacegrad.so"
TORCH = (ROOT / ".venv/torch").resolve()
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-O1"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

#: The hosts find everything by themselves; one thread each, since several run side by side.
CLEAN = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "LD_PRELOAD", "ORT_DYLIB_PATH")} | {
    "OMP_NUM_THREADS": "1",
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
    "LSAN_OPTIONS": f"suppressions={HERE / 'leaks.txt'}:print_suppressions=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None, status: int = 0, timeout: int = 600) -> str:
    """Runs a program, which must end with `status`; returns what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=CLEAN | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    assert done.returncode == status, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


def counted(text: str, least: int = 1) -> int:
    """The number of checks that a suite passed; none may have failed."""
    match = re.search(r"(\d+) passed, (\d+) failed", text)
    assert match and match[2] == "0" and int(match[1]) >= least, text[-4000:]
    return int(match[1])


def tool(name: str, how: str) -> str:
    """A program of the system. Without it the test skips, with one line that says how to get it; under CI it fails."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        text = f"{name} is missing: {how}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return found


@pytest.fixture(scope="session")
def data() -> Path:
    """Real models and photographs."""
    if not DATA.is_dir():
        assert not os.environ.get("CI"), f"{DATA} is missing: set FACEGRAD_TEST_DATA"
        pytest.skip(f"{DATA} is missing: set FACEGRAD_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make install` into a staging folder, moved afterwards to another place, as packages are."""
    stage = tmp_path_factory.mktemp("stage")
    run("make", "-s", "install", f"DESTDIR={stage}", "PREFIX=/opt/facegrad", cwd=ROOT)
    moved = tmp_path_factory.mktemp("moved") / "anywhere"
    shutil.move(stage / "opt/facegrad", moved)
    return moved


Compile = Callable[..., Path]


@pytest.fixture(scope="session")
def compiled(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles one host against the installation: `compiled("calls.c", "-DDYNAMIC", link=False)`; a name stands for one
    way to compile, and is compiled once."""
    folder = tmp_path_factory.mktemp("programs")

    def build(source: str, *flags: object, link: bool = True, name: str = "", std: str = "") -> Path:
        path = HERE / source
        cpp = path.suffix == ".cc"
        program = folder / (name or path.stem + "_" + "_".join(re.sub(r"\W", "", str(flag))[:24] for flag in flags))
        if program.exists():
            return program
        library = [f"-L{installed}/lib", "-lfacegrad", f"-Wl,-rpath,{installed}/lib"] if link else []
        standard = std or ("c++17" if cpp else "c99")
        run(
            "c++" if cpp else "cc",
            f"-std={standard}",
            *WARNINGS,
            f"-I{installed}/include",
            *flags,
            path,
            *library,
            "-ldl",
            "-lm",
            "-pthread",
            "-o",
            program,
        )
        return program

    return build


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Portraits `<person>_<n>.ppm` of drawn people."""
    folder = tmp_path_factory.mktemp("pictures")
    run(sys.executable, ASSETS / "pictures.py", folder, 4, 3)
    return folder
