"""ostris/ai-toolkit: its run.py with the documented extension and a job's YAML, nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import HERE, Trainer, compare, rolled_out, with_rollouts


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer("ai-toolkit")


@pytest.fixture(scope="module")
def model(trainer: Trainer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd15")
    trainer.call(HERE / "tiny_sd15.py", folder)
    return folder


@pytest.fixture(scope="module")
def toolkit(trainer: Trainer, tmp_path_factory):
    """A copy of the checkout, with the extension's folder in it, as a user puts it there."""
    copy = tmp_path_factory.mktemp("toolkit") / "ai-toolkit"
    shutil.copytree(trainer.folder, copy, ignore=shutil.ignore_patterns(".git", "ui", "assets", "docker", "notebooks", "*.ipynb"))
    (copy / "extensions/face_loss").mkdir()
    (copy / "extensions/face_loss/__init__.py").write_text("from facegrad.trainers.ai_toolkit import AI_TOOLKIT_EXTENSIONS\n")
    trainer.cwd = copy
    return copy


@pytest.mark.parametrize("case", ["plain", "cached latents, regularisation", "bf16, accumulation, checkpointing, rollouts"])
def test_run(trainer: Trainer, toolkit: Path, case: str, model: Path, photos: Path, face: Path, tmp_path: Path):
    def data(**options):
        return {"folder_path": str(photos), "caption_ext": "txt", "resolution": [64], "buckets": False, **options}

    cached, bf16 = "cached" in case, "bf16" in case
    # Regularisation pictures come in even steps, but not in the first one; accumulated steps are counted one by one.
    steps = 3 if cached else 4 if bf16 else 2
    for folder in ("one", "two"):
        shutil.copytree(photos, tmp_path / folder)
        for picture in photos.iterdir():
            (tmp_path / folder / picture.with_suffix(".txt").name).write_text("a photo of a person")
    datasets = [data(folder_path=str(tmp_path / "one"), cache_latents_to_disk=cached)]
    if cached:
        datasets.append(data(folder_path=str(tmp_path / "two"), is_reg=True, cache_latents_to_disk=True))
    section = json.loads((with_rollouts(face, tmp_path) if "rollouts" in case else face).read_text())["face_loss"]
    reports = {}
    # Without a weight the extension changes nothing: the two gradients differ by the face loss alone.
    for name, with_face in {"without": None, "light": section | {"face_loss_weight": 1e-9}, "with": section}.items():
        if name != "with" and case != "plain":
            continue
        process = {
            "type": "face_trainer" if with_face else "sd_trainer", "training_folder": str(tmp_path / name), "device": "cpu",
            "network": {"type": "lora", "linear": 4, "linear_alpha": 4}, "save": {"save_every": 100, "dtype": "float32"}, "datasets": datasets,
            "train": {"batch_size": 2, "steps": steps, "gradient_accumulation_steps": 2 if bf16 else 1, "gradient_checkpointing": bf16,
                      "train_unet": True, "train_text_encoder": False, "noise_scheduler": "ddpm", "optimizer": "adamw", "lr": 1e-4,
                      "dtype": "bf16" if bf16 else "float32", "disable_sampling": True, "skip_first_sample": True},
            "model": {"name_or_path": str(model / "pipeline")}, "sample": {"sampler": "ddpm", "sample_every": 100, "prompts": []},
            "logging": {"log_every": 1}, "training_seed": 1,
            **({"face_loss": with_face} if with_face else {}),
        }  # fmt: skip
        job = {"job": "extension", "config": {"name": "tiny", "process": [process]}, "meta": {"name": "[name]", "version": "1.0"}}
        path = tmp_path / f"job {name}.json"
        path.write_text(json.dumps(job))
        out = tmp_path / f"{name}.json"
        told = ["--watch", "--told"] if with_face else []
        trainer.call(HERE / "probe.py", out, *told, "--before", HERE / "without_triton.py", toolkit / "run.py", path)
        reports[name] = json.loads(out.read_text())
    compare("ai-toolkit", f"SD 1.5, {case}", reports.get("without"), reports["with"], "x0 = (x_t - q·eps)/p", bf16,
            steps=2 if bf16 else steps)  # fmt: skip
    if case == "plain":
        assert reports["light"]["steps"][0]["norm"] == pytest.approx(reports["without"]["steps"][0]["norm"], rel=1e-4)
    if cached:
        assert sum(call["logs"].get("face/skipped_regularisation", 0) for call in reports["with"]["calls"]) > 0
    if "rollouts" in case:
        rolled_out(reports["with"])
