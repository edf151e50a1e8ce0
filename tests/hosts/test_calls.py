"""Every function of the header, called by a C host: linked, loaded, under sanitizers, and built against the header that
this ABI version froze."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import header
import pytest
from conftest import ASSETS, HERE, LIBRARY, ROOT, SANITIZERS, Compile, counted, run

PROMISED = ROOT / "abi/v1/facegrad.h"


def cases(folder: Path, source: Path) -> Path:
    (folder / "cases.h").write_text(header.calls(header.read(source), (HERE / "world.h").read_text()))
    return folder


@pytest.mark.parametrize("how", ["linked", "loaded", "sanitized"])
def test_every_function_with_everything_that_can_be_wrong(how: str, compiled: Compile, installed: Path, tmp_path: Path) -> None:
    include = f"-I{cases(tmp_path, installed / 'include/facegrad.h')}"
    match how:
        case "linked":
            text = run(compiled("calls.c", include, name="calls"), ASSETS, cwd=tmp_path)
        case "loaded":
            text = run(
                compiled("calls.c", include, "-DDYNAMIC", link=False, name="calls_loaded"),
                ASSETS,
                installed / "lib/libfacegrad.so",
                cwd=tmp_path,
            )
        case _:
            text = run(compiled("calls.c", include, *SANITIZERS, name="calls_sanitized"), ASSETS, cwd=tmp_path)
    counted(text, least=len(header.read(installed / "include/facegrad.h").functions) * 5)


def test_a_program_of_the_frozen_header_runs_with_this_library(compiled: Compile, installed: Path, tmp_path: Path) -> None:
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    shutil.copy(PROMISED, frozen)
    program = compiled("calls.c", f"-I{frozen}", f"-I{cases(tmp_path, PROMISED)}", "-DDYNAMIC", link=False, name="calls_frozen")
    counted(run(program, ASSETS, installed / "lib/libfacegrad.so", cwd=tmp_path), least=200)


def test_the_header_keeps_what_was_promised() -> None:
    assert header.broken(header.read(PROMISED), header.read(ROOT / "include/facegrad.h")) == []


BREAKS = {
    "a function that is gone": ("facegrad_status facegrad_graph_new(const struct facegrad_context *context,\n                                   struct facegrad_graph **out);", "", "facegrad_graph_new"),
    "another parameter": ("void facegrad_vae_free(struct facegrad_vae *vae)", "void facegrad_vae_free(struct facegrad_vae *vae, int32_t now)", "facegrad_vae_free"),
    "another order of fields": ("  double loss;\n", "", "facegrad_result"),
    "a new field in the middle": ("  int32_t located;\n", "  int32_t more;\n  int32_t located;\n", "facegrad_sample"),
    "a struct that cannot grow": ("  uint64_t byte_offset;\n", "  uint64_t byte_offset;\n  int32_t more;\n", "facegrad_tensor"),
    "another number": ("#define FACEGRAD_ERR_SHAPE 5", "#define FACEGRAD_ERR_SHAPE 55", "FACEGRAD_ERR_SHAPE"),
    "another entry of the table": ("  void (*loss_free)(struct facegrad_loss *loss);\n", "", "facegrad_api"),
}  # fmt: skip


@pytest.mark.parametrize("change", BREAKS)
def test_what_breaks_the_promise_is_named(change: str, tmp_path: Path) -> None:
    old, new, named = BREAKS[change]
    text = PROMISED.read_text()
    assert text.count(old) == 1, "the frozen header has changed; change this test"
    (tmp_path / "new.h").write_text(text.replace(old, new))
    done = subprocess.run([sys.executable, HERE / "header.py", "compare", PROMISED, tmp_path / "new.h"], capture_output=True, text=True)
    assert done.returncode == 1 and named in done.stderr, done.stderr


def test_growing_is_allowed(tmp_path: Path) -> None:
    text = PROMISED.read_text()
    for at, more in [
        ("\n} facegrad_result;", "\n  double more;\n} facegrad_result;"),
        ("#define FACEGRAD_SAMPLE_STEP 9", "#define FACEGRAD_SAMPLE_STEP 9\n#define FACEGRAD_SAMPLE_NEW 99"),
    ]:
        assert text.count(at) == 1
        text = text.replace(at, more)
    (tmp_path / "new.h").write_text(text)
    run(sys.executable, HERE / "header.py", "compare", PROMISED, tmp_path / "new.h")


def test_a_new_function_cannot_be_forgotten(tmp_path: Path) -> None:
    """One that is not in the table of functions stops the generation; a parameter without a value, the compiler."""
    text = (ROOT / "include/facegrad.h").read_text()
    new = "/**\n * New.\n */\nvoid facegrad_new_one(int32_t unheard_of);\n\n#ifdef __cplusplus\n}  // extern"
    text = text.replace("#ifdef __cplusplus\n}  // extern", new)
    (tmp_path / "facegrad.h").write_text(text)
    with pytest.raises(AssertionError, match="facegrad_new_one"):
        cases(tmp_path, tmp_path / "facegrad.h")
    (tmp_path / "facegrad.h").write_text(text.replace("\n} facegrad_api;", "\n  void (*new_one)(int32_t unheard_of);\n} facegrad_api;"))
    cases(tmp_path, tmp_path / "facegrad.h")
    done = subprocess.run(["cc", "-std=c99", "-fsyntax-only", f"-I{tmp_path}", HERE / "calls.c"], capture_output=True, text=True)
    assert done.returncode != 0 and "ARG_unheard_of" in done.stderr, done.stderr


def test_the_library_is_the_release_build(installed: Path) -> None:
    assert (installed / "lib/libfacegrad.so").resolve().stat().st_size == LIBRARY.stat().st_size
