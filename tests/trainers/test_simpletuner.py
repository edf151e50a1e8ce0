"""bghira/SimpleTuner: its train.py with a configuration of FLUX, and the steps of its model classes, called as its trainer calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import ASSETS, HERE, Trainer, compare, rolled_out, with_rollouts

#: SimpleTuner turns what Z-Image and Lumina 2 predict.
FAMILIES = ("flux", "z_image", "lumina2")


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    found = Trainer("SimpleTuner")
    found.path = [found.folder]
    return found


@pytest.mark.parametrize("options", ["", "bf16", "rollouts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_step(trainer: Trainer, family: str, options: str, face: Path, tmp_path: Path):
    section = json.loads(face.read_text())["face_loss"] | (
        {"rollouts": {"steps": 2, "every_n_steps": 1, "levels": [0.3, 0.3], "min_score": 0.0}} if options == "rollouts" else {}
    )
    (tmp_path / "face.json").write_text(json.dumps({"face_loss": section}))
    reports = []
    for given in [[], [tmp_path / "face.json"]]:
        out = tmp_path / f"{len(given)}.json"
        trainer.call(HERE / "steps_simpletuner.py", out, family, ASSETS / "vae", *given, *(["bf16"] if options == "bf16" else []))
        reports.append(json.loads(out.read_text()))
    compare(
        "SimpleTuner",
        f"{family}: model_predict to auxiliary_loss{', ' if options else ''}{options}",
        *reports,
        "x0 = x_t - t·v",
        options == "bf16",
    )
    if options == "rollouts":
        assert all(call["logs"]["rollout/predictions_without_gradient"] == 2 for call in reports[1]["calls"])


@pytest.fixture(scope="module")
def flux(trainer: Trainer, tmp_path_factory) -> Path:
    """A tiny FLUX with the demo's VAE, whose latents show faces."""
    folder = tmp_path_factory.mktemp("flux")
    trainer.call(HERE / "tiny_flux.py", folder, ASSETS / "vae")
    return folder / "pipeline"


@pytest.mark.parametrize("case", ["plain", "bf16, accumulation, checkpointing, regularisation, rollouts"])
def test_train(trainer: Trainer, case: str, flux: Path, photos: Path, face: Path, tmp_path: Path):
    """Latents and text are cached by SimpleTuner itself, which trains from nothing else."""
    bf16 = "bf16" in case
    config = tmp_path / "config"
    config.mkdir()
    sets = []
    for name, extra in [("one", {})] + [("two", {"is_regularisation_data": True})] * bf16:
        shutil.copytree(photos, tmp_path / name)
        for picture in photos.iterdir():
            (tmp_path / name / picture.with_suffix(".txt").name).write_text("a photo of a person")
        sets.append({
            "id": name, "type": "local", "instance_data_dir": str(tmp_path / name), "crop": True, "crop_aspect": "square", "crop_style": "center",
            "resolution": 64, "resolution_type": "pixel", "minimum_image_size": 0, "caption_strategy": "textfile", "repeats": 3,
            "cache_dir_vae": str(tmp_path / "cache" / name), **extra,
        })  # fmt: skip
    sets.append({"id": "text", "dataset_type": "text_embeds", "default": True, "type": "local", "cache_dir": str(tmp_path / "cache/text")})
    (config / "data.json").write_text(json.dumps(sets))
    trainer.cwd = tmp_path
    section = with_rollouts(face, tmp_path) if "rollouts" in case else face
    reports = []
    for with_face in [False, True] if case == "plain" else [True]:
        (config / "config.json").write_text(json.dumps({
            "model_type": "lora", "model_family": "flux", "pretrained_model_name_or_path": str(flux), "output_dir": str(tmp_path / f"out{with_face}"),
            "data_backend_config": str(config / "data.json"), "train_batch_size": 2, "max_train_steps": 4 if bf16 else 2, "num_train_epochs": 0,
            "gradient_accumulation_steps": 2 if bf16 else 1, "gradient_checkpointing": bf16, "learning_rate": 1e-4, "lora_rank": 4, "optimizer": "optimi-adamw",
            "mixed_precision": "bf16" if bf16 else "no", "base_model_precision": "no_change", "resolution": 64, "resolution_type": "pixel", "minimum_image_size": 0,
            "validation_disable": True, "report_to": "none", "seed": 1, "lr_scheduler": "constant", "lr_warmup_steps": 0, "disable_bucket_pruning": True,
            "checkpoint_step_interval": 100, "disable_benchmark": True, "cache_dir": str(tmp_path / "cache"),
        }))  # fmt: skip
        script = trainer.folder / "simpletuner/train.py"
        reports.append(
            trainer.probe(tmp_path / f"{with_face}.json", section if with_face else None, script, before=HERE / "without_gpu.py")
        )
    compare(
        "SimpleTuner",
        f"FLUX, {case}",
        reports[0] if len(reports) > 1 else None,
        reports[-1],
        "x0 = x_t - t·v",
        bf16,
        steps=4 if bf16 else 2,
    )
    if bf16:
        assert sum(call["logs"].get("face/skipped_regularisation", 0) for call in reports[-1]["calls"]) > 0
        rolled_out(reports[-1])
