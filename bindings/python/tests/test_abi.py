"""ctypes' picture of the ABI is the header's: compiled from the header itself."""

from __future__ import annotations

import ctypes
import subprocess

from conftest import ROOT

from facegrad import _abi

STRUCTS = {
    "tensor": _abi.Tensor,
    "face": _abi.Face,
    "targets": _abi.Targets,
    "step": _abi.Step,
    "sample": _abi.Sample,
    "result": _abi.Result,
}


def test_layouts(tmp_path):
    lines = []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(facegrad_{name}));')
        lines += [f'printf("{name}.{field[0]} %zu\\n", offsetof(facegrad_{name}, {field[0]}));' for field in struct._fields_]
    source = tmp_path / "layout.c"
    source.write_text('#include <stdio.h>\n#include "facegrad.h"\nint main(void) {' + "\n".join(lines) + "return 0;}")
    program = tmp_path / "layout"
    subprocess.run(["cc", "-std=c11", "-I", ROOT / "include", source, "-o", program], check=True)
    printed = dict(line.split() for line in subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines())
    for name, struct in STRUCTS.items():
        assert ctypes.sizeof(struct) == int(printed[name]), name
        for field in struct._fields_:
            assert getattr(struct, field[0]).offset == int(printed[f"{name}.{field[0]}"]), (name, field[0])


def test_every_function_of_the_header_has_a_prototype():
    exported = {line.strip() for line in (ROOT / "abi/symbols.txt").read_text().splitlines() if line.strip()}
    ours = {f"facegrad_{name}" for name in _abi.PROTOTYPES}
    assert exported - ours == {"facegrad_get_api"} and ours <= exported
