"""The installed tree: names, packages, and hosts that are built from it with pkg-config and CMake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ASSETS, FIXTURES, ROOT, TORCH, WARNINGS, counted, run, tool

VERSION = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
ABI = VERSION.rsplit(".", 1)[0]
MINOR = re.search(r"__version__ = '(\d+\.\d+)", (TORCH / "version.py").read_text())[1]
APT = "install it (Debian: apt install {})"


def test_the_tree(installed: Path) -> None:
    files = {str(p.relative_to(installed)) for p in installed.rglob("*") if not p.is_dir()}
    assert files == {
        "include/facegrad.h", "include/facegrad.hpp", "include/facegrad_library.hpp", "include/facegrad_torch.hpp",
        "include/facegrad_rollout.hpp",
        "lib/libfacegrad.so", f"lib/libfacegrad.so.{ABI}", f"lib/libfacegrad.so.{VERSION}", "lib/pkgconfig/facegrad.pc",
        "lib/cmake/facegrad/facegradConfig.cmake", "lib/cmake/facegrad/facegradConfigVersion.cmake", "lib/cmake/facegrad/facegradTorch.cmake",
        "lib/libfacegrad_torch.so", f"lib/facegrad/torch{MINOR}/libfacegrad_torch.so",
    }  # fmt: skip
    dynamic = run("readelf", "-d", installed / "lib/libfacegrad.so")
    assert f"[libfacegrad.so.{ABI}]" in dynamic
    exported = re.findall(r" T (\S+)$", run("nm", "-D", "--defined-only", installed / "lib/libfacegrad.so"), re.M)
    assert sorted(exported) == (ROOT / "abi/symbols.txt").read_text().split(), "abi/symbols.txt is what may be seen"
    library = (installed / "include/facegrad_library.hpp").read_text()
    assert f'"libfacegrad.so.{ABI}"' in library, "the loader's default is of another version"
    for text in (p.read_text() for p in installed.rglob("facegrad*") if p.suffix in (".cmake", ".pc")):
        assert "@" not in text.replace("@only", ""), text


@pytest.fixture(scope="session")
def linked(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host in C99, linked by pkg-config."""
    config = tool("pkg-config", APT.format("pkg-config"))
    env = {"PKG_CONFIG_PATH": str(installed / "lib/pkgconfig")}
    flags = run(config, "--cflags", "--libs", "facegrad", env=env).split()
    folder = run(config, "--variable=libdir", "facegrad", env=env).strip()
    assert run(config, "--modversion", "facegrad", env=env).strip() == VERSION
    host = tmp_path_factory.mktemp("linked") / "host"
    run("cc", "-std=c99", *WARNINGS, ROOT / "tests/c/photograph.c", *flags, f"-Wl,-rpath,{folder}", "-lm", "-o", host)
    return host


def test_a_linked_host_has_pytorchs_loss_and_gradient(linked: Path) -> None:
    counted(run(linked, FIXTURES), least=6)


def test_a_linked_host_tells_real_people_apart(linked: Path, data: Path) -> None:
    counted(run(linked, FIXTURES, data), least=11)


def test_the_c_example(installed: Path, pictures: Path, tmp_path: Path) -> None:
    run("cc", "-std=c99", *WARNINGS, f"-I{installed}/include", ROOT / "examples/c/host.c", "-ldl", "-lm", "-o", tmp_path / "host")
    text = run(tmp_path / "host", installed / "lib/libfacegrad.so", ASSETS, pictures / "0_0.ppm", pictures / "1_0.ppm")
    assert "ONNX Runtime" in text, "it lies where it was at build time"
    similarity = [float(value) for value in re.findall(r"similarity ([+-][\d.]+)", text)]
    assert similarity[-1] > similarity[0] + 0.1, text
    text = run(tmp_path / "host", "libm.so.6", ASSETS, "x", "y", status=1)
    assert "not facegrad" in text
