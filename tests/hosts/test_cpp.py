"""facegrad.hpp in its modes: linked, loaded, without exceptions, under sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ASSETS, SANITIZERS, Compile, counted, run

MODES = {
    "linked": [],
    "loaded": ["-DFACEGRAD_DYNAMIC"],
    "without exceptions": ["-DFACEGRAD_NO_EXCEPTIONS", "-fno-exceptions", "-fno-rtti"],
    "sanitized": ["-DFACEGRAD_DYNAMIC", *SANITIZERS],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_wrapper(mode: str, compiled: Compile, installed: Path, tmp_path: Path) -> None:
    flags = MODES[mode]
    program = compiled("wrappers.cc", *flags, link="-DFACEGRAD_DYNAMIC" not in flags, name=f"wrappers_{mode.replace(' ', '_')}")
    counted(run(program, ASSETS, installed / "lib/libfacegrad.so", cwd=tmp_path), least=25)


def test_every_function_has_a_wrapper() -> None:
    """Of the frozen header: what is newer may still be waiting for its own."""
    from conftest import ROOT
    from header import read
    from test_calls import PROMISED

    text = "".join(path.read_text() for path in (ROOT / "bindings/cpp").glob("*.hpp"))
    missing = [
        f
        for f in (name.removeprefix("facegrad_") for name in read(PROMISED).functions)
        if f"api().{f}" not in text and f"facegrad_api::{f}" not in text
    ]
    assert set(missing) <= {"abi_version", "get_api", "status_name", "debug_panic"}, missing
