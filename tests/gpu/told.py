"""A plugin of pytest: writes what happens to every test to the file that `FACEGRAD_TOLD` names, one JSON object a line. A
process that dies has told which test it was in."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest


def tell(**what: Any) -> None:
    with open(os.environ["FACEGRAD_TOLD"], "a") as file:
        file.write(json.dumps(what) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    tell(what="begun", name=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr)
        tell(what="failed", name=f"{report.nodeid} ({report.when})", text=(text.strip().splitlines() or ["no text"])[0][:300])
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        tell(what="left out", name=report.nodeid, text=reason.removeprefix("Skipped: "))
    elif report.when == "call":
        tell(what="passed", name=report.nodeid)
    if report.when == "teardown":
        tell(what="ended", name=report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        text = str(report.longrepr)
        missing = re.search(r"ModuleNotFoundError: No module named '([^']+)'", text)
        if missing:
            tell(what="left out", name=report.nodeid, text=f"{missing[1]} is not installed")
        else:
            tell(what="failed", name=report.nodeid, text=(text.strip().splitlines() or ["no text"])[-1][:300])


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("host")
        if mark is not None:
            tell(what="left out", name=item.nodeid, text="has nothing to do with the device")
