"""kohya-ss/musubi-tuner: the face loss is added in ``process_batch`` of its ``NetworkTrainer``, for all its LoRA scripts on
single pictures.

musubi-tuner trains from cached latents and has no VAE in memory, so the section must name one (``vae: ae.safetensors``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from .face import TrainerFace
from .hook import around
from .recall import Recall

MARK = "src/musubi_tuner/training/trainer_base.py"

FORMATS = {
    "FluxKontextNetworkTrainer": "flux", "ZImageNetworkTrainer": "flux", "Flux2NetworkTrainer": "flux2", "QwenImageNetworkTrainer": "qwen_image",
    "WanNetworkTrainer": "wan21",
}  # fmt: skip


def install(face: TrainerFace, trainer: type) -> None:
    """Puts the face loss into ``musubi_tuner.training.trainer_base.NetworkTrainer``."""
    seen: dict[str, Any] = {}

    def noisy(before: Any, _: dict[str, Any], *args: Any, **options: Any) -> Any:
        found = before(*args, **options)
        if "again" in seen:
            x, t = seen["again"]
            return x.to(found[0].dtype), t.to(found[1])
        seen.update(x_t=found[0].detach(), times=found[1].detach())
        return found

    def loss_of(before: Any, arguments: dict[str, Any], *args: Any, **options: Any) -> Any:
        seen["output"] = arguments["output"]
        # A rollout needs the prediction only.
        return (torch.zeros(()), {}) if "again" in seen else before(*args, **options)

    def process_batch(
        before: Any, arguments: dict[str, Any], self: Any, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, dict[str, float]]:
        if face.rollouts is not None and getattr(self, "high_low_training", False):
            raise ValueError(
                "rollouts: Wan 2.2 has one model for high and one for low noise, and musubi-tuner has one of them in place at a time, while a rollout "
                "needs both; take `rollouts` out of the section, or train one model alone (without --dit_high_noise)"
            )
        around(self, "get_noisy_model_input_and_timesteps", noisy)
        around(self, "compute_loss", loss_of)
        seen.clear()
        loss, metrics = before(self, *args, **options)
        if "x_t" not in seen or "output" not in seen:
            raise RuntimeError(
                f"musubi-tuner: {type(self).__name__} computes its loss elsewhere than where the face loss looks for prediction and target"
            )
        output, batch = seen["output"], arguments["batch"]
        device = output.pred.device

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            seen["again"] = (x, t)
            try:
                before(self, *args, **options)
            finally:
                del seen["again"]
            prediction: torch.Tensor = seen["output"].pred
            return prediction

        value = face.step(
            recall=Recall(predict, seen["times"], (loss, output.pred)),
            prediction=output.pred, target=output.target.detach(), latents=arguments["latents"].to(device), noise=arguments["noise"].to(device),
            x_t=seen["x_t"].to(device), paths=batch.get("face_paths"), hints=_hints(self),
        )  # fmt: skip
        return loss + value, {**metrics, **face.logs()}

    around(trainer, "process_batch", process_batch)
    bucket = sys.modules.get("musubi_tuner.dataset.bucket")
    if bucket is not None:
        around(bucket.BucketBatchManager, "__getitem__", _with_paths)


def find(_: dict[str, Any]) -> type:
    """The class that all LoRA trainers extend."""
    import importlib

    importlib.import_module("musubi_tuner.dataset.bucket")
    found: type = importlib.import_module("musubi_tuner.training.trainer_base").NetworkTrainer
    return found


def _hints(trainer: Any) -> dict[str, Any]:
    names = [base.__name__ for base in type(trainer).__mro__]
    return {"latent_format": next((FORMATS[name] for name in names if name in FORMATS), None)}


def _with_paths(before: Any, _: dict[str, Any], self: Any, idx: int) -> dict[str, Any]:
    """Adds to a batch the names of its pictures, with the folder of their cached latents."""
    found: dict[str, Any] = before(self, idx)
    resolution, batch = self.bucket_batch_indices[idx]
    items = self.buckets[resolution][batch * self.batch_size : (batch + 1) * self.batch_size]
    found["face_paths"] = [str(Path(item.latent_cache_path).parent / item.item_key) for item in items]
    return found
