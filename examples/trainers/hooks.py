"""Checks that the trainers still have the hooks that facegrad.trainers overrides.

    python examples/trainers/hooks.py sd-scripts=~/sd-scripts ai-toolkit=~/ai-toolkit …

Each argument is a trainer and the folder of a checkout. The sources are parsed, not imported, so that nothing of the
trainer has to be installed. Exit status 1 where a hook is missing or lacks a parameter.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

# trainer → (file, class, method, parameters that the adapter names); class None: a function of the module
HOOKS = {
    "diffusers": [],
    "sd-scripts": [
        ("train_network.py", "NetworkTrainer", "process_batch", ["batch", "vae", "args", "is_train", "train_unet"]),
        ("train_network.py", "NetworkTrainer", "get_noise_pred_and_target", ["batch"]),
        ("train_network.py", "NetworkTrainer", "generate_step_logs", ["args"]),
        ("library/train_util.py", None, "get_noise_noisy_latents_and_timesteps", ["latents"]),
        ("library/train_util.py", "BaseDataset", "__getitem__", ["index"]),
        ("library/flux_train_utils.py", None, "get_noisy_model_input_and_timesteps", ["latents", "noise"]),
        ("library/sd3_train_utils.py", None, "get_noisy_model_input_and_timesteps", ["latents", "noise"]),
        ("library/lumina_train_util.py", None, "get_noisy_model_input_and_timesteps", ["latents", "noise"]),
    ],
    "ai-toolkit": [
        ("extensions_built_in/sd_trainer/SDTrainer.py", "SDTrainer", "calculate_loss", ["noise_pred", "noise", "noisy_latents", "timesteps", "batch"]),
        ("extensions_built_in/sd_trainer/SDTrainer.py", "SDTrainer", "predict_noise", ["noisy_latents", "timesteps"]),
        ("extensions_built_in/sd_trainer/DiffusionTrainer.py", "DiffusionTrainer", "__init__", ["process_id", "job", "config"]),
        ("toolkit/data_transfer_object/data_loader.py", "DataLoaderBatchDTO", "get_is_reg_list", []),
        ("toolkit/data_transfer_object/data_loader.py", "DataLoaderBatchDTO", "get_caption_list", []),
        ("toolkit/extension.py", "Extension", "get_process", []),
    ],
    "SimpleTuner": [
        ("simpletuner/helpers/models/common.py", "ModelFoundation", "auxiliary_loss", ["model_output", "prepared_batch", "loss"]),
        ("simpletuner/helpers/models/common.py", "ModelFoundation", "get_prediction_target", ["prepared_batch"]),
        ("simpletuner/helpers/models/common.py", "ModelFoundation", "model_predict", ["prepared_batch"]),
        ("simpletuner/helpers/models/common.py", "ModelFoundation", "unload_vae", []),
    ],
    "OneTrainer": [
        ("modules/util/create.py", None, "create_model_setup", ["model_type"]),
        ("modules/modelSetup/BaseFluxSetup.py", "BaseFluxSetup", "predict", ["model", "batch", "config", "train_progress"]),
        ("modules/modelSetup/BaseFluxSetup.py", "BaseFluxSetup", "calculate_loss", ["model", "batch", "data", "config"]),
        ("modules/modelSetup/mixin/ModelSetupNoiseMixin.py", "ModelSetupNoiseMixin", "_get_timestep_discrete", ["num_train_timesteps"]),
        ("modules/modelSetup/mixin/ModelSetupFlowMatchingMixin.py", "ModelSetupFlowMatchingMixin", "_add_noise_discrete", ["scaled_latent_image", "latent_noise"]),
        ("modules/modelSetup/mixin/ModelSetupDiffusionMixin.py", "ModelSetupDiffusionMixin", "_add_noise_discrete", ["scaled_latent_image", "latent_noise"]),
    ],
    "musubi-tuner": [
        ("src/musubi_tuner/training/trainer_base.py", "NetworkTrainer", "process_batch", ["batch", "latents", "noise"]),
        ("src/musubi_tuner/training/trainer_base.py", "NetworkTrainer", "get_noisy_model_input_and_timesteps", ["noise", "latents"]),
        ("src/musubi_tuner/training/trainer_base.py", "NetworkTrainer", "compute_loss", ["output"]),
        ("src/musubi_tuner/dataset/bucket.py", "BucketBatchManager", "__getitem__", ["idx"]),
    ],
    "diffusion-pipe": [
        ("models/base.py", "BasePipeline", "get_loss_fn", []),
        ("models/base.py", "ComfyPipeline", "get_loss_fn", []),
        ("models/flux.py", "FluxPipeline", "prepare_inputs", ["inputs"]),
    ],
}  # fmt: skip

#: What diffusers' scripts must name in the function that calls accelerator.backward.
VARIABLES = {"model_input", "noise", "noisy_model_input", "model_pred", "target"}


def parameters(source: Path, owner: str | None, name: str) -> list[str] | None:
    """The names a function or method takes, without self; None where there is none."""
    body: list[ast.stmt] = ast.parse(source.read_text(encoding="utf-8")).body
    if owner is not None:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == owner), [])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
    return None


def variables(script: Path) -> set[str]:
    """The names that the function with ``accelerator.backward`` assigns."""
    for function in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef) and any(isinstance(n, ast.Attribute) and n.attr == "backward" for n in ast.walk(function)):
            return {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return set()


def check(trainer: str, checkout: Path) -> bool:
    fine = True
    if trainer == "diffusers":
        for script in sorted((checkout / "examples/dreambooth").glob("train_dreambooth_lora*.py")):
            missing = sorted(VARIABLES - variables(script))
            print(f"diffusers: {script.name} {'has no variable ' + ', '.join(missing) if missing else 'ok'}")
            fine &= not missing
        return fine
    for file, owner, name, wanted in HOOKS[trainer]:
        path = checkout / file
        found = parameters(path, owner, name) if path.is_file() else None
        place = f"{file}: {owner + '.' if owner else ''}{name}"
        if found is None:
            print(f"{trainer}: {place} is gone")
        elif missing := [p for p in wanted if p not in found]:
            print(f"{trainer}: {place} has no parameter {', '.join(missing)}; it takes {', '.join(found)}")
        else:
            print(f"{trainer}: {place} ok")
            continue
        fine = False
    return fine


def main() -> None:
    pairs = [argument.partition("=") for argument in sys.argv[1:]]
    if not pairs or any(name not in HOOKS or not folder for name, _, folder in pairs):
        sys.exit(f"{__doc__}\nTrainers: {', '.join(HOOKS)}")
    if not all([check(name, Path(folder).expanduser()) for name, _, folder in pairs]):
        sys.exit(1)


if __name__ == "__main__":
    main()
