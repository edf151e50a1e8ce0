"""The script that runs the suite: what it says of tests that fail, kill their process, never end or cannot be read."""

from __future__ import annotations

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
