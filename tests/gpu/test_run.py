"""The script that runs the suite: what it says of tests that fail, kill their process, never end or cannot be read; and of
the numeric suite's program."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import run

FILES = {
    "test_mixed.py": """
        import os, pytest
        def test_fine(): pass
        def test_elsewhere(): pytest.skip("needs a GPU")
        def test_wrong(): assert False, "one is not two"
        def test_deadly(): os.abort()
        def test_never_begun(): pass
    """,
    "test_endless.py": """
        import time
        def test_fine(): pass
        def test_waits(): time.sleep(1000)
    """,
    "test_needs.py": "import nothing_of_this_name",
    "test_unreadable.py": "def test_fine() pass",
}


def test_what_breaks_is_named_and_the_rest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STUCK", 30)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device')")
    told = run.Told()
    for name, text in FILES.items():
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        (tmp_path / name).write_text("\n".join(line[indent:] for line in lines))
        told.add(run.run(tmp_path / name, "cpu", [])[0])
    assert told.passed == 2
    assert told.left_out == {"needs a GPU": ["test_mixed.py::test_elsewhere"], "nothing_of_this_name is not installed": ["test_needs.py"]}
    failed = dict(told.failed)
    assert list(failed) == [
        "test_mixed.py::test_wrong (call)",
        "test_mixed.py::test_deadly",
        "test_endless.py::test_waits",
        "test_unreadable.py",
    ]
    assert "one is not two" in failed["test_mixed.py::test_wrong (call)"] and "SIGABRT" in failed["test_mixed.py::test_deadly"]
    assert "stuck for 30 seconds" in failed["test_endless.py::test_waits"] and "SyntaxError" in failed["test_unreadable.py"]


#: What Rust's test programs print, by a program that dies where it was given two tests.
PROGRAM = f"""#!{sys.executable}
import os, sys
assert (os.environ["FACEGRAD_TEST_DEVICE"], os.environ["NVIDIA_TF32_OVERRIDE"]) == ("cpu", "0")
print("W: a warning of a library", file=sys.stderr)
print('''
running 4 tests
test loss::fine ... ok
test loss::skipped ... ok
test loss::wrong ... FAILED

successes:

---- loss::skipped stdout ----
skipped: photographs are missing: set FACEGRAD_TEST_DATA


successes:
    loss::fine
    loss::skipped

failures:

---- loss::wrong stdout ----
flow: 1e-6

thread 'loss::wrong' (7) panicked at tests/suite/loss.rs:80:5:
gradient off by 1.0
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace


failures:
    loss::wrong
''')
if len(sys.argv) > 5:
    print("test loss::deadly ... ", end="", flush=True)
    os.abort()
sys.exit(101)
"""


@pytest.mark.parametrize("names", [["loss::fine"], ["loss::fine", "loss::deadly"]])
def test_what_breaks_in_the_numeric_suite_is_named(tmp_path: Path, names: list[str]) -> None:
    program = tmp_path / "suite-1"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    told, text = run.run_numeric(str(program), names, "cpu")
    assert told.passed == 1 and "a warning of a library" in text
    assert told.left_out == {"photographs are missing: set FACEGRAD_TEST_DATA": ["loss::skipped"]}
    deadly = [("loss::deadly", "the process was ended by SIGABRT")] if len(names) > 1 else []
    assert told.failed == [("loss::wrong", "gradient off by 1.0"), *deadly]
