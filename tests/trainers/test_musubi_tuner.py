"""kohya-ss/musubi-tuner: its scripts, from latents and text that its own functions cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ASSETS, HERE, Trainer, compare, rolled_out, with_rollouts

BF16 = ["--mixed_precision", "bf16", "--gradient_accumulation_steps", "2", "--gradient_checkpointing"]

#: family → its script and LoRA, its further arguments, the convention
FAMILIES = {
    "z_image": ("zimage", ["--use_32bit_attention"], "x0 = x_t + t·v"),
    "wan": ("wan", ["--task", "t2v-1.3B"], "x0 = x_t - t·v"),
    "qwen_image": ("qwen_image", [], "x0 = x_t - t·v"),
}

#: case → family, further arguments; Wan's and Qwen-Image's weights and latents are bfloat16 in every case
CASES = {
    "Z-Image, plain": ("z_image", []),
    "Z-Image, bf16, accumulation, checkpointing": ("z_image", BF16),
    "Z-Image, rollouts, two persons": ("z_image", []),
    "Wan 2.1, bf16, plain": ("wan", BF16[:2]),
    "Wan 2.1, bf16, accumulation, checkpointing": ("wan", BF16),
    "Wan 2.1, bf16, rollouts": ("wan", BF16[:2]),
    "Qwen-Image, bf16, plain": ("qwen_image", BF16[:2]),
    "Qwen-Image, bf16, accumulation, checkpointing": ("qwen_image", BF16),
    "Qwen-Image, bf16, rollouts": ("qwen_image", BF16[:2]),
}


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    found = Trainer("musubi-tuner")
    found.path, found.cwd = [found.folder / "src"], found.folder
    return found


@pytest.fixture(scope="module")
def data(trainer: Trainer, photos: Path, tmp_path_factory):
    """A function that gives the folder of a family's model and data."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            trainer.call(HERE / "tiny_musubi.py", family, made[family], photos, ASSETS / "vae")
        return made[family]

    return of


@pytest.mark.parametrize("case", CASES)
def test_script(trainer: Trainer, case: str, data, photos: Path, face: Path, tmp_path: Path):
    family, options = CASES[case]
    name, extra, formula = FAMILIES[family]
    folder, small = data(family), HERE / "tiny_musubi.py"
    vae = ASSETS / "vae" if family == "z_image" else folder / "vae.safetensors"
    section = json.loads((with_rollouts(face, tmp_path) if "rollouts" in case else face).read_text())["face_loss"] | {"vae": str(vae)}
    if "persons" in case:
        # Captions are not in the batch, the pictures' names are.
        section["persons"] = {one: {"pictures": [str(photos / f"{one}.png")], "match": f"/{one}"} for one in "0123"}
    (tmp_path / "face.json").write_text(json.dumps({"face_loss": section}))
    arguments = [
        "--dataset_config", folder / "data.toml", "--dit", folder / "dit.safetensors", "--vae", "unused", "--sdpa", "--network_module", f"networks.lora_{name}",
        "--network_dim", "4", "--optimizer_type", "adamw", "--learning_rate", "1e-4", "--max_train_steps", "2", "--seed", "1", "--timestep_sampling", "shift",
        "--discrete_flow_shift", "1", "--max_data_loader_n_workers", "0", "--output_name", "lora", *extra, *options,
    ]  # fmt: skip
    script = trainer.folder / f"{name}_train_network.py"
    # A random VAE draws no faces.
    told = "rollouts" in case or family != "z_image"
    plain = (
        trainer.probe(tmp_path / "0.json", None, script, *arguments, "--output_dir", tmp_path / "0", before=small)
        if "plain" in case
        else None
    )
    with_face = trainer.probe(
        tmp_path / "1.json", tmp_path / "face.json", script, *arguments, "--output_dir", tmp_path / "1", before=small, told=told
    )
    compare("musubi-tuner", case, plain, with_face, formula, "bf16" in case)
    if "rollouts" in case:
        rolled_out(with_face, faces=family == "z_image")
