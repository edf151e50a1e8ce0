"""Which part for torch is loaded, and the sentences where there is none. No torch other than the installed one is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from facegrad import _part


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """An installation with parts for torch 2.8 and 2.10, which are empty files."""
    core = tmp_path / _part.CORE
    core.write_bytes(b"")
    for minor in ("2.8", "2.10"):
        folder = tmp_path / f"torch{minor}"
        folder.mkdir()
        (folder / _part.NAME).write_bytes(b"")
    return core


@pytest.mark.parametrize(
    ("torch", "words"),
    [
        ("2.11.0+cu130", ["2.8 to 2.10", "this is torch 2.11.0+cu130", "newer facegrad", "facegrad build"]),
        ("2.7.1", ["the oldest supported torch is 2.8", "facegrad build"]),
        ("2.9.0", ["torch2.9", "is missing", "install facegrad again"]),
    ],
)
def test_a_torch_without_a_part_is_told_what_to_do_and_never_to_change(core: Path, torch: str, words: list[str]) -> None:
    text = _part.missing(core, torch, "0.2.0")
    assert all(word in text for word in words), text
    assert "install torch" not in text and "\n" not in text


def test_an_installation_from_source_is_told_to_compile_its_part(tmp_path: Path) -> None:
    core = tmp_path / _part.CORE
    for file in (core, tmp_path / _part.TEXT):
        file.write_bytes(b"")
    assert "built from source" in _part.missing(core, "2.11.0", "0.2.0") and "facegrad build" in _part.missing(core, "2.11.0", "0.2.0")


def test_parts_are_listed_by_number_and_found_by_minor_version(core: Path) -> None:
    assert _part.shipped(core) == ["2.8", "2.10"]
    assert _part.candidates(core, "2.10.1+cpu")[0] == core.parent / "torch2.10" / _part.NAME


def test_a_part_tells_its_torch_without_being_loaded(tmp_path: Path) -> None:
    built = ROOT / "target/release" / _part.NAME
    import torch

    assert _part.minor(_part.compiled_for(built)) == _part.minor(torch.__version__)
    other = tmp_path / _part.NAME
    other.write_bytes(b"no part")
    assert _part.compiled_for(other) == "unknown"


@pytest.mark.parametrize("name", [_part.CORE, _part.NAME])
def test_a_library_that_is_cut_off_is_one_sentence_and_no_signal(tmp_path: Path, name: str) -> None:
    for other in (_part.CORE, _part.NAME):
        shutil.copy(ROOT / "target/release" / other, tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    env = os.environ | {
        "FACEGRAD_LIBRARY": str(tmp_path / _part.CORE),
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT / "bindings/python"),
    }
    done = subprocess.run([sys.executable, "-c", "import facegrad"], env=env, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: facegrad: ") and f"{name} is cut off" in last, done.stderr


def test_another_torchs_part_under_the_right_name_is_one_sentence(tmp_path: Path) -> None:
    core = shutil.copy(ROOT / "target/release" / _part.CORE, tmp_path)
    part = (ROOT / "target/release" / _part.NAME).read_bytes()
    mark = b"libfacegrad_torch for torch "
    (tmp_path / _part.NAME).write_bytes(part.replace(mark + b"2.", mark + b"1."))
    env = os.environ | {"FACEGRAD_LIBRARY": str(core), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "bindings/python")}
    done = subprocess.run([sys.executable, "-c", "import facegrad"], env=env, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: facegrad: ") and "was compiled for torch 1." in last, done.stderr
