#!/usr/bin/env python3
"""Runs all that a machine with a GPU has to prove, and closes with a list of what broke: the report to send where
something did.

    python tests/gpu/run.py [--device cuda] [--numeric] [pytest's arguments …]

Needs torch, facegrad and tests/gpu/requirements.txt, and no compiler: without one the host in C++ is left out, with one
line. `make gpu` does the same in a checkout, and runs the numeric suite in Rust too (`--numeric`, which needs cargo).

Every file of tests has a process of its own. After an illegal access a process can no longer use its GPU, and one fault
would look like many.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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


def watch(command: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """Runs a program that may crash or wait for ever: its status, how it ended, and what it printed; errors come last."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=errors, start_new_session=True)
        try:
            status = process.wait(STUCK)
            end = f"the process was ended by {signal.Signals(-status).name}" if status < 0 else f"the process ended with status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status, end = process.wait(), f"was stuck for {STUCK} seconds"
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return status, end, "".join(texts)


def run(path: Path, device: str, more: list[str]) -> tuple[Told, str]:
    """Runs a file of tests in a process of its own: what became of them, and what was printed."""
    told, running = Told(), None
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "told"
        notes.touch()
        places = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "FACEGRAD_TOLD": str(notes)}
        command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", "no:cacheprovider", "-p", "told", f"--device={device}"]
        # pyproject.toml would put the checkout's own facegrad before the one that is installed.
        command += ["-o", f"faulthandler_timeout={STUCK - 60}", "-o", "pythonpath=", "-m", "not host", *more]
        status, end, text = watch(command, environment)
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
    # 5: no test was left to run.
    if status not in (0, 5) and (running or not (told.failed or told.left_out)):
        last = (text.strip().splitlines() or [""])[-1]
        told.failed.append((running or path.name, end if running else f"{end}: {last[:200]}"))
    return told, text


def numeric() -> tuple[dict[str, list[str]], str]:
    """Compiles the numeric suite: its tests by module, and the program. Or nothing, and why."""
    if shutil.which("cargo") is None:
        return {}, "cargo is not installed"
    command = ["cargo", "test", "--test", "suite", "--no-run", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    made = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    programs = [one["executable"] for one in made if one.get("executable") and one["target"]["name"] == "suite"]
    if done.returncode != 0 or not programs:
        return {}, "it could not be compiled"
    listed = subprocess.run([programs[0], "--list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    modules: dict[str, list[str]] = {}
    for name in re.findall(r"^(\S+): test$", listed, re.M):
        modules.setdefault(name.partition("::")[0] if "::" in name else "main", []).append(name)
    return modules, programs[0]


def run_numeric(program: str, names: list[str], device: str) -> tuple[Told, str]:
    """Runs tests of the numeric suite, one after the other, in a process of their own."""
    # By default torch lets cuDNN compute in TF32, and from Rust that cannot be told otherwise.
    environment = {**os.environ, "FACEGRAD_TEST_DEVICE": device, "NVIDIA_TF32_OVERRIDE": "0", "RUST_BACKTRACE": "0"}
    status, end, text = watch([program, "--exact", "--test-threads=1", "--show-output", *names], environment)
    told, begun = Told(), re.findall(r"^test (\S+) \.\.\. ?(\w*)", text, re.M)
    said = dict(re.findall(r"^---- (\S+) stdout ----\n(.*?)(?=^---- |^(?:failures|successes):|\Z)", text, re.M | re.S))
    for name, what in begun:
        lines = said.get(name, "").strip().splitlines()
        skipped = next((line.removeprefix("skipped: ") for line in lines if line.startswith("skipped: ")), None)
        if what == "ok" and skipped is None:
            told.passed += 1
        elif what == "ok":
            told.left_out.setdefault(str(skipped), []).append(name)
        elif what == "FAILED":
            at = next((at for at, line in enumerate(lines) if " panicked at " in line), -1)
            told.failed.append((name, " ".join(lines[at + 1 : at + 2])[:300] or "no text"))
        else:
            told.failed.append((name, end))
    if status != 0 and not told.failed:
        told.failed.append((Path(program).name, end))
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
    parser.add_argument("--numeric", action="store_true", help="also run the numeric suite in Rust, which needs cargo")
    options, more = parser.parse_known_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; run: {sys.executable} -m pip install -r {HERE / 'requirements.txt'} (and facegrad)")
        return 2
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        why = (
            f"is for CUDA {torch.version.cuda} and sees no GPU. Either the driver sees none (`nvidia-smi` says so), or it is older than that CUDA"
            if torch.version.cuda
            else "is not a CUDA build. Install one"
        )
        print(f"torch {torch.__version__} {why}. `--device cpu` runs what needs no GPU.")
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
    runs: dict[str, Callable[[], tuple[Told, str]]] = {
        str(path.relative_to(ROOT)): partial(run, path, options.device, more) for path in files
    }
    if options.numeric:
        modules, program = numeric()
        runs |= {f"tests/suite, {name}": partial(run_numeric, program, names, options.device) for name, names in modules.items()}
        if not modules:
            told.failed.append(("the numeric suite", program))
    for name, one in runs.items():
        begun = time.monotonic()
        own, text = one()
        if own.failed:
            print(f"\n{text}", flush=True)
        print(f"{name}: {own.passed} passed, {len(own.failed)} failed, {time.monotonic() - begun:.0f} s", flush=True)
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
