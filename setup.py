"""Builds the Rust library into the Python package. pyproject.toml has everything else.

``FACEGRAD_BUILT`` names a folder that holds the library and its parts already, as ``make wheel`` makes it. Without it, cargo
builds the core here, and the part is compiled where torch can be imported. pip's isolated builds cannot import it, so
``python -m facegrad build`` compiles the part after the installation.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "bindings/python/facegrad"))
import _part


def build_core(output: Path) -> None:
    """Builds libfacegrad.so and the text of the part with cargo."""
    if shutil.which("cargo") is None:
        sys.exit(
            "facegrad: cargo is missing, which builds the library: install Rust 1.92 or newer from https://rustup.rs, or install a wheel"
        )
    target = ROOT / "target/package"
    # An empty part is enough to link the core: no torch is needed.
    env = os.environ | {"FACEGRAD_CORE_ALONE": "1", "CARGO_PROFILE_RELEASE_STRIP": "symbols"}
    subprocess.run(["cargo", "build", "--release", "--locked", "--lib", "--target-dir", target], cwd=ROOT, env=env, check=True)
    for name in (_part.CORE, _part.TEXT, "exports.map"):
        shutil.copy(target / "release" / name, output / name)


def build_part(output: Path) -> None:
    """Compiles the part for the torch of this Python, where it has one."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    library = output / f"torch{_part.minor(torch.__version__)}" / _part.NAME
    _part.compile_part(Path(torch.__path__[0]), library, output / _part.TEXT, old_abi=not torch._C._GLIBCXX_USE_CXX11_ABI)


class BuildLibrary(build_py):
    """Copies the Python files, then adds the library."""

    def run(self) -> None:
        super().run()
        output = Path(self.build_lib) / "facegrad"
        built = os.environ.get("FACEGRAD_BUILT")
        if built:
            shutil.copytree(built, output, dirs_exist_ok=True)
        else:
            build_core(output)
            build_part(output)


class WithLibrary(Distribution):
    """A distribution that holds more than Python."""

    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on this platform: the library is called through ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(distclass=WithLibrary, cmdclass={"build_py": BuildLibrary, "bdist_wheel": PlatformWheel})
