"""examples/trainers/train_lora.py as people start it: alone, with accelerate and with torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from compare import relative
from conftest import ROOT
from safetensors.torch import load_file

sys.path[:0] = [str(ROOT / "examples/trainers")]
import train_lora

SCRIPT = str(ROOT / "examples/trainers/train_lora.py")
ALONE: list[str] = []
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the script, in this process or started by a launcher; the same command line runs once. Returns the LoRA, the
    last gradient, and the log."""
    results = {}

    def start(launcher, *arguments):
        key = (*launcher, *arguments)
        if key not in results:
            folder = tmp_path_factory.mktemp("lora")
            if launcher:
                environment = os.environ | {"PYTHONPATH": str(ROOT / "bindings/python"), "OMP_NUM_THREADS": "1"}
                done = subprocess.run(
                    [*launcher, SCRIPT, *arguments, "--out", str(folder)],
                    env=environment,
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=600,
                )
                assert done.returncode == 0, done.stderr[-3000:]
            else:
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
                train_lora.main([*arguments, "--out", str(folder)])
            results[key] = read(folder)
        return results[key]

    return start


def read(folder: Path):
    return load_file(folder / "lora.safetensors"), load_file(folder / "gradient.safetensors"), json.loads((folder / "log.json").read_text())


@pytest.mark.parametrize("model", ["flux", "sdxl"])
def test_a_lora_is_trained_with_the_face_loss(run, model):
    lora, gradient, log = run(ALONE, model, "--steps", "2")
    assert all(step["face/counted"] == 4 and step["face/loss"] > 0 for step in log["steps"])
    assert log["summary"]["counted"] == 8
    _, plain, without = run(ALONE, model, "--steps", "2", "--without-face", *map(str, range(8)))
    assert all(step["face/counted"] == 0 and step["face/skipped_data_type"] == 4 for step in without["steps"])
    assert relative(gradient, plain) > 1e-4, "the face loss moves nothing"


# One of the second process's samples shows no person, so that the two count differently.
UNEQUAL = ["--steps", "2", "--without-face", "2", "6"]


@pytest.mark.parametrize(("launcher", "model"), [(TORCHRUN, "sdxl"), (ACCELERATE, "flux")], ids=["torchrun", "accelerate"])
def test_two_processes_are_one_with_twice_the_batch(run, launcher, model):
    lora, gradient, _ = run(launcher, model, "--batch", "2", *UNEQUAL)
    one, whole, _ = run(ALONE, model, "--batch", "4", *UNEQUAL)
    assert relative(gradient, whole) < 1e-4 and relative(lora, one) < 1e-5


def test_accumulation_is_one_large_batch(run):
    lora, _, _ = run(ALONE, "flux", "--batch", "2", "--accumulate", "2", *UNEQUAL)
    one, _, _ = run(ALONE, "flux", "--batch", "4", *UNEQUAL)
    assert relative(lora, one) < 1e-5


def test_gradient_checkpointing_changes_nothing(run):
    lora, gradient, _ = run(ALONE, "flux", "--batch", "4", *UNEQUAL, "--checkpointing")
    one, whole, _ = run(ALONE, "flux", "--batch", "4", *UNEQUAL)
    assert relative(gradient, whole) < 1e-5 and relative(lora, one) < 1e-6


def test_mixed_precision_stays_near(run):
    _, _, log = run(ALONE, "flux", "--steps", "2", "--precision", "bf16")
    _, _, exact = run(ALONE, "flux", "--steps", "2")
    for a, b in zip(log["steps"], exact["steps"]):
        assert a["face/counted"] == b["face/counted"] and a["face/loss"] == pytest.approx(b["face/loss"], rel=0.05)


def test_a_compiled_model_trains_the_same(run):
    """The graph is captured and differentiated as with any backend; inductor's C++ would take a minute more."""
    lora, gradient, _ = run(ALONE, "flux", "--batch", "4", *UNEQUAL, "--compile", "aot_eager")
    one, whole, _ = run(ALONE, "flux", "--batch", "4", *UNEQUAL)
    assert relative(gradient, whole) < 1e-3 and relative(lora, one) < 1e-4


ROLLOUT = ["--rollout", "2", "--every", "1", "--batch", "2", "--steps", "2"]


@pytest.mark.parametrize(("model", "options"), [("flux", ["--accumulate", "2", "--checkpointing"]), ("sdxl", [])])
def test_rollouts_move_the_lora(run, model, options):
    """Two of the four steps' predictions without a gradient lie between noise and a level of at most a half."""
    _, gradient, log = run(ALONE, model, *ROLLOUT, *options)
    count = 4 if options else 2
    assert len(log["steps"]) == count and all(step["rollout/counted"] == 2 and step["rollout/loss"] > 0 for step in log["steps"])
    assert log["rollouts"]["predictions_with_gradient"] == log["rollouts"]["rollouts"] == count
    assert 2 * count <= log["rollouts"]["predictions_without_gradient"] <= 4 * count
    _, without, _ = run(ALONE, model, "--batch", "2", "--steps", "2", *options)
    assert relative(gradient, without) > 1e-4, "the rollouts move nothing"


def test_checkpointing_changes_no_rollout(run):
    plain, _, _ = run(ALONE, "flux", *ROLLOUT)
    checkpointed, _, _ = run(ALONE, "flux", *ROLLOUT, "--checkpointing")
    assert relative(checkpointed, plain) < 1e-5


def test_two_processes_go_down_to_the_same_level(run):
    lora, gradient, log = run(TORCHRUN, "flux", *ROLLOUT, "--every", "2")
    assert ["rollout/level" in step for step in log["steps"]] == [True, False]
    _, _, one = run(ALONE, "flux", *ROLLOUT, "--every", "2")
    assert log["steps"][0]["rollout/level"] == one["steps"][0]["rollout/level"]
    assert all(v.isfinite().all() for v in (*lora.values(), *gradient.values()))
