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
    "sd-scripts": [
        ("train_network.py", "NetworkTrainer", "call_unet", ["args", "accelerator", "unet", "noisy_latents"]),
        ("train_network.py", "NetworkTrainer", "get_noise_pred_and_target", ["args", "accelerator", "noise_scheduler", "latents", "batch", "is_train"]),
        ("train_network.py", "NetworkTrainer", "post_process_loss", ["loss", "args", "timesteps", "noise_scheduler"]),
        ("train_network.py", "NetworkTrainer", "generate_step_logs", ["args"]),
        ("flux_train_network.py", "FluxNetworkTrainer", "get_noise_pred_and_target", ["args", "accelerator", "noise_scheduler", "latents", "batch", "is_train"]),
        ("flux_train_network.py", "FluxNetworkTrainer", "post_process_loss", ["loss", "args", "timesteps", "noise_scheduler"]),
        ("flux_train_network.py", None, "setup_parser", []),
        ("sdxl_train_network.py", "SdxlNetworkTrainer", "call_unet", ["args", "accelerator", "unet", "noisy_latents"]),
        ("sdxl_train_network.py", None, "setup_parser", []),
    ],
    "ai-toolkit": [
        ("extensions_built_in/sd_trainer/SDTrainer.py", "SDTrainer", "calculate_loss", ["noise_pred", "noise", "noisy_latents", "timesteps", "batch"]),
        ("extensions_built_in/sd_trainer/DiffusionTrainer.py", "DiffusionTrainer", "__init__", ["process_id", "job", "config"]),
        ("toolkit/extension.py", "Extension", "get_process", []),
    ],
    "SimpleTuner": [
        ("simpletuner/helpers/models/common.py", "ImageModelFoundation", "auxiliary_loss", ["model_output", "prepared_batch", "loss"]),
        ("simpletuner/helpers/models/registry.py", "ModelRegistry", "register", ["family", "model_class"]),
    ],
    "OneTrainer": [
        ("modules/modelSetup/BaseFluxSetup.py", "BaseFluxSetup", "predict", ["model", "batch", "config", "train_progress"]),
        ("modules/modelSetup/BaseFluxSetup.py", "BaseFluxSetup", "calculate_loss", ["model", "batch", "data", "config"]),
        ("modules/util/factory.py", None, "get", ["base_cls"]),
    ],
    "musubi-tuner": [
        ("src/musubi_tuner/training/trainer_base.py", "NetworkTrainer", "process_batch", ["args", "accelerator", "transformer", "network", "batch", "latents", "noise"]),
        ("src/musubi_tuner/training/trainer_base.py", "NetworkTrainer", "get_noisy_model_input_and_timesteps", ["args", "noise", "latents"]),
        ("src/musubi_tuner/training/trainer_base.py", "NetworkTrainer", "compute_loss", ["args", "output"]),
    ],
}


def parameters(source: Path, owner: str | None, name: str) -> list[str] | None:
    """The names a function or method takes, without self; None where there is none."""
    body: list[ast.stmt] = ast.parse(source.read_text(encoding="utf-8")).body
    if owner is not None:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == owner), [])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
    return None


def check(trainer: str, checkout: Path) -> bool:
    fine = True
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
