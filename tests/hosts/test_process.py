"""Processes that do not suit the library, and processes that end in every way."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import ASSETS, HERE, TORCH, WARNINGS, Compile, counted, run

WAYS = [
    "freed", "left alive", "every order", "freed at exit", "used at exit", "exit on a thread", "exit in a callback",
    "main ends first", "dlclose first", "dlclose and again", "dlclose left alive", "fork before", "fork after", "fork, the child only frees",
    "exit while others work", "errors at exit", "errors in a key's destructor", "fork while others are inside", "fork with ONNX Runtime",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_process_ends_well(way: str, compiled: Compile, installed: Path, tmp_path: Path) -> None:
    program = compiled("lifetimes.c", "-Wno-unused-function", link=False, std="gnu99", name="lifetimes")
    run(program, installed / "lib/libfacegrad.so", ASSETS, way, cwd=tmp_path, timeout=120)


def test_every_read_write_and_allocation_fails_once(compiled: Compile, installed: Path, tmp_path: Path) -> None:
    program = compiled("faults.c", "-rdynamic", "-Wno-unused-function", link=False, std="gnu99", name="faults")
    assert counted(run(program, installed / "lib/libfacegrad.so", ASSETS, cwd=tmp_path, timeout=300)) >= 30


def fake(tmp_path: Path, installed: Path, source: str, name: str, *flags: str) -> Path:
    library = tmp_path / name
    run("cc", "-shared", "-fPIC", *WARNINGS, f"-I{installed}/include", *flags, HERE / "fakes" / source, "-o", library)
    return library


def homeless(installed: Path, tmp_path: Path) -> Path:
    """The library without a way to libtorch: the RUNPATH of its part names a folder that is not there."""
    shutil.copy(installed / "lib/libfacegrad.so", tmp_path)
    part = installed / "lib/libfacegrad_torch.so"
    runpath = re.search(r"RUNPATH.*\[(.*)\]", run("readelf", "-d", part))[1].encode()
    nowhere = b"/nowhere".ljust(len(runpath), b"_")
    (tmp_path / part.name).write_bytes(part.read_bytes().replace(runpath + b"\0", nowhere + b"\0"))
    return tmp_path / "libfacegrad.so"


@pytest.fixture
def loader(compiled: Compile) -> Path:
    return compiled("loader.cc", link=False, name="loader")


def test_another_libtorch_in_the_process(loader: Path, installed: Path, tmp_path: Path) -> None:
    other = fake(tmp_path, installed, "torch.c", "libtorch_cpu.so", "-Wl,-soname,libtorch_cpu.so")
    text = run(loader, installed / "lib/libfacegrad.so", "--before", other)
    assert text.startswith("status 201:") and "libtorch 2.10" in text and "libfacegrad_torch.so" in text, text


def test_no_libtorch(loader: Path, installed: Path, tmp_path: Path) -> None:
    lost = homeless(installed, tmp_path)
    text = run(loader, lost)
    assert text.startswith("status 201:") and "libtorch_cpu.so" in text and "compiled for" in text and len(text.splitlines()) == 1, text
    assert run(loader, lost, "--libtorch", TORCH / "lib").startswith("status 0:")
    text = run(loader, lost, "--libtorch", tmp_path)
    assert text.startswith("status 201:") and str(tmp_path) in text, text


def test_an_older_library(loader: Path, installed: Path, tmp_path: Path) -> None:
    text = run(loader, fake(tmp_path, installed, "facegrad.c", "older.so"))
    assert text.startswith("status 3:") and "update the library" in text, text
    text = run(loader, fake(tmp_path, installed, "facegrad.c", "other.so", "-DOTHER_ABI"))
    assert text.startswith("status 3:") and "ABI version 1" in text, text


def test_an_onnxruntime_that_is_too_old(compiled: Compile, installed: Path, tmp_path: Path) -> None:
    old = fake(tmp_path, installed, "onnxruntime.c", "libonnxruntime.so")
    text = run(compiled("runtimes.cc", link=True, name="runtimes"), ASSETS, old)
    assert "old: status 202" in text and "1.10.0" in text, text
    assert "found: status 0" in text and "ONNX Runtime" in text, "after the failure the good one is still found"


def test_cuda_in_a_program_that_never_linked_it(compiled: Compile, installed: Path) -> None:
    """libtorch's CUDA half is found and loaded; whether there is a device is the machine's matter."""
    text = run(compiled("runtimes.cc", link=True, name="runtimes"), ASSETS)
    cuda = (TORCH / "lib/libtorch_cuda.so").exists()
    expected = r"cuda: status (0|7: device cuda: torch sees \d+ CUDA device)" if cuda else "cuda: status 7: .*cannot be loaded"
    assert re.search(expected, text), text
