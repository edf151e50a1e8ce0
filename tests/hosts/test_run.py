"""tests/run counts what its suites print; what ends without a summary is a failure."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader

import pytest
from conftest import ROOT

loader = SourceFileLoader("suites", str(ROOT / "tests/run"))
suites = importlib.util.module_from_spec(importlib.util.spec_from_loader("suites", loader))
sys.modules["suites"] = suites
loader.exec_module(suites)

GOOD = "     Running tests/a.rs (target/a)\n\ntest result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1s\n"
BAD = (
    "     Running tests/b.rs (target/b)\n\ntest result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s\n"
)
CRASHED = "     Running tests/c.rs (target/c)\n\nrunning 4 tests\ntest one ... ok\nerror: test failed, to rerun pass `--test c`\n\nCaused by: (signal: 11)\n"


@pytest.mark.parametrize(
    ("text", "status", "want"),
    [
        (GOOD + GOOD, 0, (10, 0)),
        (GOOD + BAD, 101, (8, 2)),
        (GOOD + CRASHED + BAD, 101, (8, 3)),
        (GOOD, 97, (5, 1)),
        ("error: could not compile `facegrad`\n", 101, (0, 1)),
        ("....s\n4 passed, 1 skipped in 3.21s\n", 0, (4, 0)),
        ("=== FAILURES ===\nE  34 passed, 1 failed\n==== 2 failed, 430 passed, 3 errors in 61.20s (0:01:01) ====\n", 1, (430, 5)),
        ("Fatal Python error: Segmentation fault\n", -11, (0, 1)),
        ("no tests ran in 0.01s\n", 5, (0, 1)),
        ("Success: no issues found in 27 source files\n", 0, (0, 0)),
        ("a.py:1: error: bad\nFound 1 error in 1 file\n", 1, (0, 1)),
    ],
)  # fmt: skip
def test_every_end_is_counted(text: str, status: int, want: tuple[int, int]) -> None:
    assert suites.counts(text, status) == want
