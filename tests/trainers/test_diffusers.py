"""diffusers' DreamBooth LoRA scripts, unedited."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import HERE, Trainer, compare, rolled_out, with_rollouts

FLOW, AWAY = "x0 = x_t - t·v", "x0 = x_t + t·v"
CACHED, PRIOR, ROLLOUTS = ["--cache_latents"], "prior preservation", "rollouts"

#: case → family of tiny.py, the script's ending, its further arguments, the convention
CASES = {
    "FLUX": ("flux", "_flux", [], FLOW),
    "FLUX, cached latents": ("flux", "_flux", CACHED, FLOW),
    "FLUX, bf16, accumulation, cached latents, checkpointing": (
        "flux", "_flux", [*CACHED, "--mixed_precision", "bf16", "--gradient_accumulation_steps", "2", "--gradient_checkpointing"], FLOW),
    "FLUX, prior preservation": ("flux", "_flux", [PRIOR], FLOW),
    "FLUX Kontext": ("flux_kontext", "_flux_kontext", [], FLOW),
    "FLUX.2": ("flux2", "_flux2", [*CACHED, "--text_encoder_out_layers", "1"], FLOW),
    "FLUX.2 klein": ("flux2_klein", "_flux2_klein", [*CACHED, "--text_encoder_out_layers", "1"], FLOW),
    "SD 1.5": ("sd", "", [], "x0 = (x_t - q·eps)/p"),
    "SDXL": ("sdxl", "_sdxl", [], "x0 = (x_t - q·eps)/p"),
    "SDXL, EDM": ("sdxl", "_sdxl", ["--do_edm_style_training"], "x0 = prediction"),
    "SD3": ("sd3", "_sd3", CACHED, "x0 = prediction"),
    "SD3, flow": ("sd3", "_sd3", ["--precondition_outputs", "0"], FLOW),
    "Lumina 2": ("lumina2", "_lumina2", CACHED, AWAY),
    # The scripts of HiDream and Sana hand one prompt's embedding to a batch of any size.
    "HiDream": ("hidream", "_hidream", ["--train_batch_size", "1"], FLOW),
    "Qwen-Image": ("qwen_image", "_qwen_image", CACHED, FLOW),
    "Sana": ("sana", "_sana", ["--train_batch_size", "1"], FLOW),
    "Z-Image": ("z_image", "_z_image", CACHED, FLOW),
    "Krea 2": ("krea2", "_krea2", [], FLOW),
    "FLUX, prior preservation, rollouts": ("flux", "_flux", [PRIOR, ROLLOUTS], FLOW),
    "SDXL, rollouts": ("sdxl", "_sdxl", [ROLLOUTS], "x0 = (x_t - q·eps)/p"),
    "SD3, rollouts": ("sd3", "_sd3", [*CACHED, ROLLOUTS], "x0 = prediction"),
    "Z-Image, rollouts": ("z_image", "_z_image", [*CACHED, ROLLOUTS], FLOW),
}  # fmt: skip


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    found = Trainer("diffusers")
    found.path = [found.folder / "src"]
    return found


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


@pytest.mark.parametrize("case", CASES)
def test_script(trainer: Trainer, case: str, pipelines: Path, photos: Path, face: Path, tmp_path: Path):
    family, ending, extra, formula = CASES[case]
    pipeline = pipelines / family
    if not pipeline.is_dir():
        trainer.call(HERE / "tiny.py", trainer.folder, family, pipeline)
    script = trainer.folder / f"examples/dreambooth/train_dreambooth_lora{ending}.py"
    if family == "hidream":
        for part in ("tokenizer_4", "text_encoder_4"):
            extra = [*extra, f"--pretrained_{part}_name_or_path", pipeline / "pipeline" / part]
    bf16, prior = "bf16" in extra, PRIOR in extra
    rollouts = ROLLOUTS in extra
    extra = [x for x in extra if x not in (PRIOR, ROLLOUTS)]
    if prior:
        extra += ["--with_prior_preservation", "--class_data_dir", photos, "--class_prompt", "a person", "--num_class_images", "4"]
    arguments = [
        "--pretrained_model_name_or_path", pipeline / "pipeline", "--instance_data_dir", photos, "--instance_prompt", "a photo",
        "--resolution", "64", "--train_batch_size", "2", "--max_train_steps", "2", "--learning_rate", "1e-4", "--lr_warmup_steps", "0",
        "--seed", "1", *extra,
    ]  # fmt: skip
    plain = (
        trainer.probe(tmp_path / "0.json", None, script, *arguments, "--output_dir", tmp_path / "0") if case in ("FLUX", "SDXL") else None
    )
    section = with_rollouts(face, tmp_path) if rollouts else face
    with_face = trainer.probe(tmp_path / "1.json", section, script, *arguments, "--output_dir", tmp_path / "1")
    compare("diffusers", case, plain, with_face, formula, bf16)
    if rollouts:
        rolled_out(with_face)
    if prior:
        assert all(call["shape"][0] == 2 for call in with_face["calls"])
