#!/usr/bin/env python3
"""Runs the wheel in dist/ beside other versions of torch: matrix.py DATA REFERENCE [VERSION …]

REFERENCE is a Python that has the torch of requirements.txt; the wheel runs there first. Each VERSION, by default all in
torch/versions.txt, is installed into a new virtual environment with the wheel and nothing else, runs smoke.py, and is deleted
again. The table says how far every number is from the reference, and fails above 1e-5 (gradients: of their norm).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
BOUND = 1e-5


def smoke(python: Path, data: Path, folder: Path, path: Path | None) -> dict[str, Any]:
    """What smoke.py writes, run outside the repository. ``path`` is a folder of packages in place of installed ones."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    output = folder / "smoke.pt"
    done = subprocess.run([python, ROOT / "packaging/smoke.py", data, output], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}")
    found: dict[str, Any] = torch.load(output)
    return found


def compare(found: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float]:
    """The largest relative distance of the values and of the gradients."""
    worst = {True: 0.0, False: 0.0}
    for name, tensor in reference["tensors"].items():
        distance = (found["tensors"][name] - tensor).norm() / tensor.norm()
        gradient = "gradient" in name
        worst[gradient] = max(worst[gradient], distance.item())
    return worst[False], worst[True]


def installed(wheel: Path, version: str, folder: Path) -> Path:
    """A new virtual environment with one torch and the wheel: its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-compile"]
    if subprocess.run([*pip, f"torch=={version}", wheel]).returncode != 0:
        sys.exit(
            f"torch {version} and the wheel cannot be installed side by side; pip says why above. It takes up to 10 GB of {folder.parent}"
        )
    return python


def main(data: Path, reference_python: Path, versions: list[str]) -> None:
    """Prints the table of Markdown that docs/torch.md has."""
    # What is installed counts, and not this checkout.
    for name in ("PYTHONPATH", "FACEGRAD_LIBRARY"):
        os.environ.pop(name, None)
    wheels = list((ROOT / "dist").glob("facegrad-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"expected one wheel in {ROOT / 'dist'}, found {len(wheels)}: run `make wheel` first")
    if not (data / "golden").is_dir():
        sys.exit(f"{data} is not the folder of test data: set FACEGRAD_TEST_DATA")
    wheel = wheels[0]
    listed = (ROOT / "torch/versions.txt").read_text().split()
    bad = []
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "wheel"
        zipfile.ZipFile(wheel).extractall(unpacked)
        reference = smoke(reference_python, data, Path(scratch), unpacked)
        print(
            "| torch | loss | largest difference of a value | of a gradient | set-up, s | run, s |\n|---|---|---|---|---|---|", flush=True
        )
        for version in versions or listed:
            begun = time.monotonic()
            venv = Path(scratch) / "venv"
            python = installed(wheel, version, venv)
            setup = time.monotonic() - begun
            found = smoke(python, data, Path(scratch), None)
            assert str(venv) in found["info"]["package"], found["info"]
            value, gradient = compare(found, reference)
            if max(value, gradient) > BOUND:
                bad.append(version)
            print(
                f"| {found['info']['torch']} | {found['tensors']['step'].item():.8f} | {value:.1e} | {gradient:.1e} | {setup:.0f} | "
                f"{found['info']['seconds']:.1f} |", flush=True,
            )  # fmt: skip
            shutil.rmtree(venv)
    print(f"Against torch {reference['info']['torch']}.")
    if bad:
        sys.exit(f"further than {BOUND:g} from the reference: {', '.join(bad)}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).absolute(), sys.argv[3:])
