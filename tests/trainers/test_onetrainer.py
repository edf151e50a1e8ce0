"""Nerogar/OneTrainer: its command line with a configuration of SD 1.5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Trainer, compare, rolled_out, with_rollouts

CASES = {
    "plain": {},
    "cached latents, bf16, accumulation, prior prediction": {
        "latent_caching": True, "train_dtype": "BFLOAT_16", "fallback_train_dtype": "BFLOAT_16", "gradient_accumulation_steps": 2},
    "rollouts": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    found = Trainer("OneTrainer")
    found.cwd = found.folder
    return found


@pytest.mark.parametrize("case", CASES)
def test_train(trainer: Trainer, case: str, sd15: Path, photos: Path, face: Path, tmp_path: Path):
    bf16, prior = "bf16" in case, "prior" in case
    section = with_rollouts(face, tmp_path) if "rollouts" in case else face
    concepts = []
    for name, kind in [("one", "STANDARD")] + [("two", "PRIOR_PREDICTION")] * prior:
        shutil.copytree(photos, tmp_path / name)
        for picture in photos.iterdir():
            (tmp_path / name / picture.with_suffix(".txt").name).write_text("a photo of a person")
        concepts.append({"name": name, "path": str(tmp_path / name), "type": kind, "seed": 1, "image": {"enable_crop_jitter": False}})
    reports = []
    for with_face in [False, True] if case == "plain" else [True]:
        work = tmp_path / f"work{with_face}"
        work.mkdir()
        config = {
            "__version": 11, "model_type": "STABLE_DIFFUSION_15", "training_method": "LORA", "base_model_name": str(sd15 / "pipeline"),
            "concepts": concepts, "samples": [], "output_model_format": "KOHYA_LORA",
            "workspace_dir": str(work), "cache_dir": str(work / "cache"), "output_model_destination": str(work / "lora.safetensors"),
            "train_device": "cpu", "temp_device": "cpu", "train_dtype": "FLOAT_32", "fallback_train_dtype": "FLOAT_32", "resolution": "64",
            "aspect_ratio_bucketing": False, "latent_caching": False, "batch_size": 2, "epochs": 1, "learning_rate": 1e-4, "lora_rank": 4, "lora_alpha": 4.0,
            "dataloader_threads": 1, "tensorboard": False, "seed": 1, "text_encoder": {"train": False}, "unet": {"gradient_checkpointing": False},
            # OneTrainer's own step of AdamW calls a method that torch 2.11 has renamed.
            "optimizer": {"optimizer": "SGD", "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0},
            "backup_before_save": False, "offline_mode": True, **CASES[case],
        }  # fmt: skip
        (work / "config.json").write_text(json.dumps(config))
        out = tmp_path / f"{with_face}.json"
        reports.append(
            trainer.probe(out, section if with_face else None, trainer.folder / "scripts/train.py", "--config-path", work / "config.json")
        )
    compare("OneTrainer", f"SD 1.5, {case}", reports[0] if len(reports) > 1 else None, reports[-1], "x0 = (x_t - q·eps)/p", bf16)
    logs = [call["logs"] for call in reports[-1]["calls"]]
    if prior:
        assert sum(log.get("face/skipped_prior_prediction", 0) for log in logs) > 0
    if "rollouts" in case:
        rolled_out(reports[-1])
