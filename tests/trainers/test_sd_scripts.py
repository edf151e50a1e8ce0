"""kohya-ss/sd-scripts: its SD 1.5, SDXL and HunyuanImage scripts as a whole, and the steps of its other families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ASSETS, HERE, Trainer, compare, rolled_out, with_rollouts

EPSILON = "x0 = (x_t - q·eps)/p"
STEPS = {"flux": "x0 = x_t - t·v", "flux-sigma_scaled": "x0 = x_t - t·v", "sd3": "x0 = prediction", "lumina": "x0 = x_t + t·v", "anima": "x0 = x_t - t·v",
         "hunyuan_image": "x0 = x_t - t·v"}  # fmt: skip


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    found = Trainer("sd-scripts")
    found.cwd = found.folder
    return found


@pytest.fixture(scope="module")
def sdxl(trainer: Trainer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    trainer.call(HERE / "tiny_sd15.py", folder, "sdxl")
    return folder


COMMON = [
    "--output_name", "lora", "--network_module", "networks.lora", "--network_dim", "4", "--resolution", "64,64", "--max_train_steps", "2", "--learning_rate", "1e-4",
    "--seed", "1", "--max_data_loader_n_workers", "0", "--network_train_unet_only", "--save_model_as", "safetensors", "--lr_scheduler", "constant",
]  # fmt: skip


def copied(photos: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in photos.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("case", ["plain", "bf16, cached latents, regularisation, preservation"])
def test_sdxl_train_network(trainer: Trainer, case: str, sdxl: Path, photos: Path, face: Path, tmp_path: Path):
    """The second case has three kinds of pictures in one batch: of the person, of a class, and with differential output preservation."""
    subsets = [("person", "")]
    if case != "plain":
        subsets += [("class", "is_reg = true"), ("kept", "custom_attributes = {diff_output_preservation = true}")]
    toml = "[[datasets]]\nresolution = 64\nbatch_size = 6\n"
    for name, extra in subsets:
        toml += f'[[datasets.subsets]]\nimage_dir = "{copied(photos, tmp_path / name)}"\nclass_tokens = "a {name}"\nnum_repeats = {1 if extra else 2}\n{extra}\n'
    (tmp_path / "data.toml").write_text(toml)
    arguments = [
        "--pretrained_model_name_or_path",
        sdxl / "pipeline",
        "--tokenizer_cache_dir",
        sdxl / "tokenizers",
        "--dataset_config",
        tmp_path / "data.toml",
        *COMMON,
    ]
    if case != "plain":
        arguments += ["--mixed_precision", "bf16", "--cache_latents", "--cache_text_encoder_outputs"]
    script, small = trainer.folder / "sdxl_train_network.py", HERE / "tiny_sd_scripts.py"
    plain = (
        trainer.probe(tmp_path / "0.json", None, script, *arguments, "--output_dir", tmp_path / "0", before=small)
        if case == "plain"
        else None
    )
    with_face = trainer.probe(tmp_path / "1.json", face, script, *arguments, "--output_dir", tmp_path / "1", before=small, told=True)
    compare("sd-scripts", f"SDXL, {case}", plain, with_face, EPSILON, "bf16" in case)
    if case != "plain":
        for reason in ("regularisation", "preservation"):
            assert sum(call["logs"].get(f"face/skipped_{reason}", 0) for call in with_face["calls"]) > 0, reason


@pytest.fixture(scope="module")
def hunyuan(trainer: Trainer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hunyuan")
    trainer.call(HERE / "tiny_hunyuan.py", trainer.folder, folder)
    return folder


@pytest.mark.parametrize("case", ["bf16, plain", "bf16, cached latents and text, accumulation, checkpointing, rollouts"])
def test_hunyuan_image_train_network(trainer: Trainer, case: str, hunyuan: Path, photos: Path, face: Path, tmp_path: Path):
    """The script loads its VAE and its text encoders in half precision, and needs mixed precision for them. A picture is at least 128 wide. Text that is
    cached in memory alone stops this version of sd-scripts."""
    from PIL import Image

    for file in copied(photos, tmp_path / "data/1_a person").iterdir():
        Image.open(file).resize((128, 128)).save(file)
    arguments = [
        "--pretrained_model_name_or_path", hunyuan / "dit.safetensors", "--text_encoder", hunyuan / "qwen.safetensors", "--byt5", hunyuan / "byt5.safetensors",
        "--vae", hunyuan / "vae.safetensors", "--train_data_dir", tmp_path / "data", "--train_batch_size", "2", *COMMON,
        "--network_module", "networks.lora_hunyuan_image", "--resolution", "128,128", "--timestep_sampling", "sigmoid",
        "--mixed_precision", "bf16",
    ]  # fmt: skip
    if "plain" not in case:
        arguments += ["--cache_latents", "--cache_text_encoder_outputs_to_disk"]
        arguments += ["--gradient_accumulation_steps", "2", "--gradient_checkpointing"]
    script, small = trainer.folder / "hunyuan_image_train_network.py", HERE / "tiny_hunyuan.py"
    section = face if "plain" in case else with_rollouts(face, tmp_path)
    plain = (
        trainer.probe(tmp_path / "0.json", None, script, *arguments, "--output_dir", tmp_path / "0", before=small)
        if "plain" in case
        else None
    )
    # A random VAE draws no faces.
    with_face = trainer.probe(tmp_path / "1.json", section, script, *arguments, "--output_dir", tmp_path / "1", before=small, told=True)
    compare("sd-scripts", f"HunyuanImage, {case}", plain, with_face, STEPS["hunyuan_image"], True)
    if "plain" not in case:
        rolled_out(with_face, faces=False)


@pytest.mark.parametrize("case", ["plain", "rollouts", "cached latents, regularisation", "full_bf16, accumulation, checkpointing, min-SNR"])
def test_train_network(trainer: Trainer, case: str, sd15: Path, photos: Path, face: Path, tmp_path: Path):
    copied(photos, tmp_path / "data/1_a person")
    extra = []
    if "cached" in case:
        copied(photos, tmp_path / "reg/1_person")
        extra += ["--cache_latents", "--reg_data_dir", tmp_path / "reg"]
    if "bf16" in case:
        extra += [
            "--mixed_precision",
            "bf16",
            "--full_bf16",
            "--gradient_accumulation_steps",
            "2",
            "--gradient_checkpointing",
            "--min_snr_gamma",
            "5",
        ]
    arguments = [
        "--pretrained_model_name_or_path", sd15 / "pipeline", "--tokenizer_cache_dir", sd15 / "tokenizers", "--train_data_dir", tmp_path / "data",
        "--train_batch_size", "2", *COMMON, *extra,
    ]  # fmt: skip
    script, small = trainer.folder / "train_network.py", HERE / "tiny_sd_scripts.py"
    plain = (
        trainer.probe(tmp_path / "0.json", None, script, *arguments, "--output_dir", tmp_path / "0", before=small)
        if case == "plain"
        else None
    )
    section = with_rollouts(face, tmp_path) if case == "rollouts" else face
    with_face = trainer.probe(tmp_path / "1.json", section, script, *arguments, "--output_dir", tmp_path / "1", before=small)
    compare("sd-scripts", f"SD 1.5, {case}", plain, with_face, EPSILON, "bf16" in case)
    if case == "rollouts":
        rolled_out(with_face)
    if plain:
        # Without a weight the adapter changes nothing: the two gradients above differ by the face loss alone.
        light = tmp_path / "light.json"
        light.write_text(json.dumps({"face_loss": json.loads(face.read_text())["face_loss"] | {"face_loss_weight": 1e-9}}))
        without = trainer.probe(tmp_path / "2.json", light, script, *arguments, "--output_dir", tmp_path / "2", before=small)
        assert without["steps"][0]["norm"] == pytest.approx(plain["steps"][0]["norm"], rel=1e-4)
    if "cached" in case:
        logs = [call["logs"] for call in with_face["calls"]]
        assert sum(log.get("face/skipped_regularisation", 0) for log in logs) > 0


@pytest.mark.parametrize("bf16", [False, True], ids=["f32", "bf16"])
@pytest.mark.parametrize("family", STEPS)
def test_step(trainer: Trainer, family: str, bf16: bool, face: Path, tmp_path: Path):
    reports = []
    for options in ([], [face]):
        out = tmp_path / f"{len(options)}.json"
        trainer.call(HERE / "steps_sd_scripts.py", out, trainer.folder, family, ASSETS / "vae", *options, *(["bf16"] if bf16 else []))
        reports.append(json.loads(out.read_text()))
    compare("sd-scripts", f"{family}{', bf16' if bf16 else ''}: process_batch", *reports, STEPS[family], bf16)
    for call in reports[1]["calls"]:
        assert call["logs"]["face/skipped_regularisation"] == 1 and call["shape"][0] == (3 if family in ("anima", "hunyuan_image") else 2)
