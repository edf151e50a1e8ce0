"""What the wheel in dist/ holds and what it needs. `make wheel` runs this after it has made the wheel."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ["torch" + text.rsplit(".", 1)[0] for text in (ROOT / "torch/versions.txt").read_text().split()]
CORE = "facegrad/libfacegrad.so"
PART = "libfacegrad_torch.so"
#: The newest versions of symbols in manylinux_2_28.
LIMITS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
#: Libraries that the platform or torch has.
NEEDED = r"libfacegrad_torch\.so|libtorch_cpu\.so|libc10\.so|lib(c|m|dl|pthread|gcc_s|stdc\+\+)\.so\.\d|ld-linux-x86-64\.so\.2"


@pytest.fixture(scope="module")
def wheel() -> Path:
    (wheel,) = (ROOT / "dist").glob("facegrad-*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.so*"))


def symbols(library: Path, kind: str) -> set[str]:
    text = subprocess.check_output(["nm", "-D", kind, library], text=True)
    return {line.split()[-1].partition("@")[0] for line in text.splitlines()}


def test_the_name_says_any_python_3_on_glibc_2_28(wheel: Path) -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)
    assert version is not None
    assert wheel.name == f"facegrad-{version[1]}-py3-none-manylinux_2_28_x86_64.whl"
    assert wheel.stat().st_size < 4 << 20


def test_it_holds_the_core_a_part_for_every_torch_and_the_licences(unpacked: Path) -> None:
    found = {str(path.relative_to(unpacked)) for path in libraries(unpacked)}
    assert found == {CORE, *(f"facegrad/{version}/{PART}" for version in VERSIONS)}
    for name in ("py.typed", "facegrad_torch.cc", "exports.map", "trainers/__init__.py", "commands/build.py"):
        assert (unpacked / "facegrad" / name).exists(), name
    (information,) = unpacked.glob("*.dist-info")
    assert {path.name for path in (information / "licenses").iterdir()} == {"LICENSE-APACHE", "LICENSE-MIT"}
    third_party = (unpacked / "facegrad/THIRD-PARTY-LICENSES.txt").read_text()
    assert re.search(r"^torch-sys 0\.24\.0, MIT/Apache-2\.0, ", third_party, re.M) and "Permission is hereby granted" in third_party


def test_the_metadata_sets_no_bounds_on_torch(unpacked: Path) -> None:
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    required = re.findall(r"^Requires-Dist: (.*)", metadata.read_text(), re.M)
    assert "torch" in required and not [text for text in required if text.startswith(("torch>", "torch<", "torch=", "torch~", "torch "))]


def test_every_library_runs_on_glibc_2_28_and_needs_nothing_that_is_not_there(unpacked: Path) -> None:
    for library in libraries(unpacked):
        dynamic = subprocess.check_output(["objdump", "-p", library], text=True)
        for name, version in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)$", dynamic, re.M):
            assert tuple(map(int, version.split("."))) <= LIMITS[name], f"{library}: {name}_{version}"
        for needed in re.findall(r"NEEDED +(\S+)", dynamic):
            assert re.fullmatch(NEEDED, needed), f"{library}: {needed}"
        # The core finds a part beside it. A part takes the libtorch that the process has.
        assert re.findall(r"R(?:UN)?PATH +(\S+)", dynamic) == (["$ORIGIN"] if library.name == "libfacegrad.so" else [])


def test_every_part_has_what_the_core_calls(unpacked: Path) -> None:
    called = {name for name in symbols(unpacked / CORE, "-u") if re.match(r"at[cgims]?_|facegrad_torch_|get_and_reset", name)}
    assert len(called) > 100
    for version in VERSIONS:
        part = unpacked / "facegrad" / version / PART
        assert called <= symbols(part, "--defined-only"), version
        assert f"libfacegrad_torch for torch {version.removeprefix('torch')}.".encode() in part.read_bytes()


def test_the_core_exports_the_c_abi_and_nothing_else(unpacked: Path) -> None:
    listed = {line.split()[-1] for line in (ROOT / "abi/symbols.txt").read_text().splitlines() if line and not line.startswith("#")}
    assert symbols(unpacked / CORE, "--defined-only") == listed


def test_no_path_of_the_machine_that_built_it_is_in_a_library(unpacked: Path) -> None:
    homes = [str(ROOT), str(Path.home())]
    for library in libraries(unpacked):
        content = library.read_bytes()
        assert not [home for home in homes if f"{home}/".encode() in content], library
        assert not re.search(rb"/[\w./-]+/torch/include/|/[\w./-]+/registry/src/", content), library


def test_the_libraries_are_stripped(unpacked: Path) -> None:
    for library in libraries(unpacked):
        sections = subprocess.check_output(["readelf", "-S", "-W", library], text=True)
        assert ".symtab" not in sections and ".debug_info" not in sections, library


def test_the_sdist_holds_what_cargo_needs_and_no_built_library() -> None:
    (sdist,) = (ROOT / "dist").glob("facegrad-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
        "src/lib.rs",
        "torch/part.cc",
        "torch/functions.txt",
        "torch/exports.map",
        "setup.py",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".onnx", ".pth", ".safetensors"))]
