"""kohya-ss/musubi-tuner: its Z-Image script, from latents and text that its own functions cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ASSETS, HERE, Trainer, compare, rolled_out, with_rollouts

CASES = {
    "plain": [],
    "bf16, accumulation, checkpointing": ["--mixed_precision", "bf16", "--gradient_accumulation_steps", "2", "--gradient_checkpointing"],
    "rollouts, two persons": [],
}


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    found = Trainer("musubi-tuner")
    found.path, found.cwd = [found.folder / "src"], found.folder
    return found


@pytest.fixture(scope="module")
def data(trainer: Trainer, photos: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zimage")
    trainer.call(HERE / "tiny_musubi.py", folder, ASSETS / "vae", photos)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_z_image(trainer: Trainer, case: str, data: Path, photos: Path, face: Path, tmp_path: Path):
    section = json.loads((with_rollouts(face, tmp_path) if "rollouts" in case else face).read_text())["face_loss"] | {"vae": str(ASSETS / "vae")}
    if "rollouts" in case:
        # Captions are not in the batch, the pictures' names are.
        section["persons"] = {name: {"pictures": [str(photos / f"{name}.png")], "match": f"/{name}"} for name in "0123"}
    (tmp_path / "face.json").write_text(json.dumps({"face_loss": section}))
    arguments = [
        "--dataset_config", data / "data.toml", "--dit", data / "dit.safetensors", "--vae", "unused", "--sdpa", "--network_module", "networks.lora_zimage",
        "--network_dim", "4", "--optimizer_type", "adamw", "--learning_rate", "1e-4", "--max_train_steps", "2", "--seed", "1", "--timestep_sampling", "shift",
        "--discrete_flow_shift", "1", "--max_data_loader_n_workers", "0", "--output_name", "lora", "--use_32bit_attention", *CASES[case],
    ]  # fmt: skip
    script, small = trainer.folder / "zimage_train_network.py", HERE / "tiny_musubi.py"
    plain = trainer.probe(tmp_path / "0.json", None, script, *arguments, "--output_dir", tmp_path / "0", before=small) if case == "plain" else None
    with_face = trainer.probe(tmp_path / "1.json", tmp_path / "face.json", script, *arguments, "--output_dir", tmp_path / "1", before=small, told="rollouts" in case)
    compare("musubi-tuner", f"Z-Image, {case}", plain, with_face, "x0 = x_t + t·v", "bf16" in case)
    if "rollouts" in case:
        rolled_out(with_face)
