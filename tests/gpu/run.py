#!/usr/bin/env python3
"""Runs all that a machine with a GPU has to prove, and closes with a list of what broke: the report to send where
something did.

    python tests/gpu/run.py [--device cuda] [pytest's arguments …]

Needs torch, facegrad and tests/gpu/requirements.txt, and no compiler: without one the host in C++ is left out, with one
line. `make gpu` does the same in a checkout.

Every file of tests has a process of its own. After an illegal access a process can no longer use its GPU, and one fault
would look like many.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BEHAVIOUR = ROOT / "bindings/python/tests"
FIXTURES = Path(os.environ.get("FACEGRAD_FIXTURES", ROOT / "target/fixtures"))
NEEDED = ("torch", "facegrad", "diffusers", "numpy", "pytest", "safetensors")
#: Seconds after which a file of tests counts as stuck. The stacks of its threads are printed a little before.
STUCK = 1200


@dataclass
class Told:
    """What became of the tests."""

    passed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add(self, other: Told) -> None:
        self.passed += other.passed
        self.failed += other.failed
        for reason, names in other.left_out.items():
            self.left_out.setdefault(reason, []).extend(names)


def run(path: Path, device: str, more: list[str]) -> tuple[Told, str]:
    """Runs a file of tests in a process of its own: what became of them, and what was printed."""
    told, running = Told(), None
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "told"
        notes.touch()
        places = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "FACEGRAD_TOLD": str(notes)}
        command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", "no:cacheprovider", "-p", "told", f"--device={device}"]
        command += ["-o", f"faulthandler_timeout={STUCK - 60}", *more]
        printed = Path(folder) / "printed"
        with printed.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                status = process.wait(STUCK)
                end = f"the process was ended by {signal.Signals(-status).name}" if status < 0 else f"pytest ended with status {status}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                status, end = process.wait(), f"was stuck for {STUCK} seconds"
        for line in notes.read_text().splitlines():
            note = json.loads(line)
            name = note["name"].rpartition("/")[2]
            match note["what"]:
                case "begun":
                    running = name
                case "ended":
                    running = None
                case "passed":
                    told.passed += 1
                case "failed":
                    told.failed.append((name, note["text"]))
                case "left out":
                    told.left_out.setdefault(note["text"], []).append(name)
        text = printed.read_text(errors="replace")
    # 5: no test was left to run.
    if status not in (0, 5) and (running or not (told.failed or told.left_out)):
        last = (text.strip().splitlines() or [""])[-1]
        told.failed.append((running or path.name, end if running else f"{end}: {last[:200]}"))
    return told, text


def fixtures() -> str | None:
    """Makes what the behaviour suite compares with, where it is missing; why it cannot be made."""
    if (FIXTURES / "step/steps.safetensors").exists():
        return None
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        return f"its fixtures are missing, and making them needs {', '.join(missing)}"
    print(f"making fixtures in {FIXTURES}: some minutes, on the CPU", flush=True)
    for script in ("make.py", "step.py"):
        command = [sys.executable, "-W", "ignore", str(ROOT / "tests/fixtures" / script), str(FIXTURES)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        if done.returncode != 0:
            return f"its fixtures could not be made: {(done.stdout.strip().splitlines() or ['no text'])[-1]}"
    return None


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
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no GPU. Check `nvidia-smi` and that this torch is a CUDA build; `--device cpu` runs what needs none."
        )
        return 2
    about = machine(options.device)
    print(about, flush=True)
    sys.path.insert(0, str(ROOT / "tests"))
    from on_device import BEHAVIOUR as MODULES

    told, files = Told(), sorted(HERE.glob("test_*.py"))
    why = fixtures()
    if why is None:
        files += [BEHAVIOUR / f"{name}.py" for name in MODULES]
    else:
        told.left_out[f"the behaviour suite: {why}"] = list(MODULES)
    for path in files:
        begun = time.monotonic()
        own, text = run(path, options.device, more)
        if own.failed:
            print(f"\n{text}", flush=True)
        print(f"{path.relative_to(ROOT)}: {own.passed} passed, {len(own.failed)} failed, {time.monotonic() - begun:.0f} s", flush=True)
        told.add(own)
    print(f"\n{about}\n{told.passed} passed, {len(told.failed)} failed")
    for reason, names in told.left_out.items():
        print(f"left out, {reason}: {len(names)} ({', '.join(names)})")
    if told.failed:
        print("what broke:")
        for name, text in told.failed:
            print(f"  {name}: {text}")
    return int(bool(told.failed) or not told.passed)


if __name__ == "__main__":
    sys.exit(main())
