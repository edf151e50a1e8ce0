#!/usr/bin/env python3
"""Runs the GPU suite and closes with a list of what broke: the report to send where something did.

    python tests/gpu/run.py [--device cuda] [pytest's arguments …]

Needs torch, facegrad and tests/gpu/requirements.txt, and no compiler: without one the host in C++ is left out, with one
line. `make gpu` does the same in a checkout.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDED = ("torch", "facegrad", "diffusers", "numpy", "pytest", "safetensors")


class Broken:
    """Keeps what failed and what was left out."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, str]] = []
        self.left_out: dict[str, list[str]] = {}
        self.passed = 0

    def pytest_runtest_logreport(self, report) -> None:
        name = report.nodeid.rpartition("/")[2]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash else str(report.longrepr)
            self.failed.append((f"{name} ({report.when})", (text.strip().splitlines() or ["no text"])[0][:300]))
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.left_out.setdefault(reason.removeprefix("Skipped: "), []).append(name)
        elif report.when == "call":
            self.passed += 1

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.failed.append((report.nodeid, (str(report.longrepr).strip().splitlines() or ["no text"])[-1][:300]))


def machine(device: str) -> str:
    import torch

    import facegrad

    lines = [
        f"{facegrad.version}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, {platform.platform()}"
    ]
    if device.startswith("cuda"):
        for at in range(torch.cuda.device_count()):
            one = torch.cuda.get_device_properties(at)
            lines.append(f"cuda:{at}: {one.name}, {one.total_memory >> 20} MiB, compute capability {one.major}.{one.minor}")
        try:
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            lines.append("driver " + subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0])
        except OSError:
            lines.append("nvidia-smi is not installed")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    options, more = parser.parse_known_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; run: {sys.executable} -m pip install -r {HERE / 'requirements.txt'} (and facegrad)")
        return 2
    import pytest
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no GPU. Check `nvidia-smi` and that this torch is a CUDA build; `--device cpu` runs what needs none."
        )
        return 2
    about = machine(options.device)
    print(about, flush=True)
    broken = Broken()
    status = pytest.main([str(HERE), "-q", "-p", "no:cacheprovider", f"--device={options.device}", *more], plugins=[broken])
    print(f"\n{about}\n{broken.passed} passed, {len(broken.failed)} failed")
    for reason, names in broken.left_out.items():
        print(f"left out, {reason}: {len(names)} ({', '.join(names)})")
    if broken.failed:
        print("what broke:")
        for name, text in broken.failed:
            print(f"  {name}: {text}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
