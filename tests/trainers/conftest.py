"""Each trainer's real code, with tiny random models: two optimiser steps, with and without the face loss.

    TRAINERS_DIR=~/trainers .venv/bin/python -m pytest tests/trainers

TRAINERS_DIR holds checkouts under their own names (diffusers, sd-scripts, ai-toolkit, musubi-tuner, …). Where it also has
``venvs/NAME/bin/python``, a trainer's scripts run with that Python; it needs torch, and the trainer's requirements. A trainer
that is not there is skipped. At the end a table of what ran is printed, and written to ``report.md`` in TRAINERS_DIR.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ASSETS = ROOT / "examples/demo_assets"
TRAINERS = os.environ.get("TRAINERS_DIR")

if TRAINERS is None:
    collect_ignore_glob = ["test_*.py"]

ROWS: list[str] = []
HEAD = (
    "| trainer | case | convention, largest residual | x0 from the target, error | counted | LoRA gradient without → with | tensors moved |"
)


def pytest_report_header() -> str | None:
    return None if TRAINERS else "tests/trainers: skipped, TRAINERS_DIR is not set (a folder with checkouts of the trainers)"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # Nothing was asked for and nothing ran: that is no failure.
    if TRAINERS is None and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        table = "\n".join([HEAD, "|" + "---|" * 7, *ROWS])
        terminalreporter.write_line("\n" + table)
        assert TRAINERS is not None
        with (Path(TRAINERS) / "report.md").open("a", encoding="utf-8") as file:
            file.write(table + "\n\n")


class Trainer:
    """A checkout, and the Python that runs it."""

    def __init__(self, name: str) -> None:
        assert TRAINERS is not None
        self.name, self.folder = name, Path(TRAINERS) / name
        if not self.folder.is_dir():
            pytest.skip(f"{self.folder} is not there")
        own = Path(TRAINERS) / "venvs" / name / "bin/python"
        self.python = str(own) if own.exists() else sys.executable
        self.path: list[Path] = []
        self.cwd: Path | None = None

    def call(self, *arguments: object, timeout: int = 1800) -> str:
        """Runs this trainer's Python; its output, or a failure with the end of it."""
        paths = [*map(str, self.path), str(ROOT / "bindings/python")]
        library = os.environ.get("FACEGRAD_LIBRARY", str(ROOT / "target/release/libfacegrad.so"))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "FACEGRAD_LIBRARY": library,
               "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}  # fmt: skip
        done = subprocess.run([self.python, *map(str, arguments)], capture_output=True, text=True, env=env, cwd=self.cwd, timeout=timeout)
        if done.returncode:
            pytest.fail(f"{' '.join(map(str, arguments))}\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout + done.stderr

    def probe(self, out: Path, face: Path | None, script: Path, *arguments: object, told: bool = True, before: Path | None = None) -> dict:
        """The report of one run of a script."""
        options: list[object] = ["--face", face] if face else []
        options += ["--told"] if told and face else []
        options += ["--before", before] if before else []
        self.call(HERE / "probe.py", out, *options, script, *arguments)
        return json.loads(out.read_text())


def compare(trainer: str, case: str, plain: dict | None, with_face: dict, formula: str, bf16: bool = False, steps: int = 2) -> None:
    """What every case must show, as a row of the table."""
    calls = [call for call in with_face["calls"] if "convention" in call]
    assert len(with_face["steps"]) == steps and calls, with_face
    # In bfloat16 a batch with hardly any noise allows more than one name.
    assert all(call["convention"].startswith(formula) or bf16 and formula in call["names"] for call in calls), [
        call["convention"] for call in calls
    ]
    assert any(call["convention"].startswith(formula) for call in calls)
    error = max(call["error"] for call in calls)
    assert error < (2e-2 if bf16 else 1e-4)
    counted = sum(call["logs"].get("face/counted", 0) for call in calls)
    assert counted > 0, calls
    norms = [step["norm"] for step in with_face["steps"]]
    before = [step["norm"] for step in plain["steps"]] if plain else []
    # The same seed: only the face loss tells the two first gradients apart.
    assert not before or (norms[0] != before[0] and norms[0] > 0)
    residual = max(call["convention"].rsplit(" ", 1)[1] for call in calls)
    moved = f"{with_face['steps'][-1]['moved']} of {with_face['steps'][-1]['tensors']}"
    assert with_face["steps"][-1]["moved"] > 0
    ROWS.append(
        f"| {trainer} | {case} | {formula}, {residual} | {error:.0e} | {counted:.0f} | {f'{before[0]:.4g}' if before else '–'} → {norms[0]:.4g} | {moved} |"
    )


def with_rollouts(face: Path, folder: Path) -> Path:
    """The same section with rollouts of two predictions without a gradient."""
    path = folder / "rollouts.json"
    path.write_text(
        json.dumps(
            {
                "face_loss": json.loads(face.read_text())["face_loss"]
                | {"rollouts": {"steps": 2, "every_n_steps": 1, "levels": [0.3, 0.3], "min_score": 0.0}}
            }
        )
    )
    return path


def rolled_out(report: dict, faces: bool = True) -> None:
    """Every step that got a face loss had its rollout, and faces in them were pushed, where the decoder can draw any."""
    logs = [call["logs"] for call in report["calls"] if "convention" in call]
    assert logs and all(log["rollout/predictions_without_gradient"] == 2 for log in logs), logs
    assert not faces or sum(log["rollout/counted"] for log in logs) > 0, logs


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawn portraits of 64×64 in a folder."""
    from PIL import Image

    sys.path.insert(0, str(ASSETS))
    import faces

    folder = tmp_path_factory.mktemp("photos")
    for at in range(4):
        Image.fromarray(faces.portrait(9_500_000 + at, 64, zoom=1.1).image).save(folder / f"{at}.png")
    return folder


@pytest.fixture(scope="session")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A section that the trainer's own VAE goes with."""
    path = tmp_path_factory.mktemp("face") / "face.json"
    path.write_text(json.dumps({"face_loss": {
        "face_loss_weight": 1.0, "recogniser": str(ASSETS / "recogniser.safetensors"),
        "detector": {"path": str(ASSETS / "detector.onnx"), "det_sizes": [192]},
    }}))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def sd15(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random SD 1.5, made in the environment of the module's trainer."""
    folder = tmp_path_factory.mktemp("sd15")
    trainer.call(HERE / "tiny_sd15.py", folder)
    return folder
