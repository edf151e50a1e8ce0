"""kohya-ss/sd-scripts: the face loss is added in ``process_batch`` of its ``NetworkTrainer``, for all its LoRA scripts.

``process_batch`` computes the loss of a batch, in training and in validation. Within it, sd-scripts' functions that mix noise
into latents have clean latents, noise and noisy latents, and ``get_noise_pred_and_target`` has prediction and target. The data
sets tell which pictures a batch has, and which of them are for regularisation.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from .convention import TOLERANCE
from .face import TrainerFace
from .hook import around
from .recall import Recall

#: A file of a checkout by which sd-scripts is recognised.
MARK = "library/train_util.py"

#: What a model's latents are, where sd-scripts' own VAE classes do not tell. A trainer that is neither here nor extends one
#: that is has no format that could be assumed.
FORMATS = {
    "FluxNetworkTrainer": "flux", "LuminaNetworkTrainer": "flux", "Sd3NetworkTrainer": "sd3", "SdxlNetworkTrainer": "sdxl",
    "AnimaNetworkTrainer": "qwen_image",
}  # fmt: skip

MIXERS = ("get_noise_noisy_latents_and_timesteps", "get_noisy_model_input_and_timesteps")


def install(face: TrainerFace, trainer: type) -> None:
    """Puts the face loss into ``train_network.NetworkTrainer``, the class that all LoRA trainers of sd-scripts extend."""
    seen: dict[str, Any] = {}

    def process_batch(before: Any, arguments: dict[str, Any], self: Any, *args: Any, **options: Any) -> torch.Tensor:
        _record(self, seen)
        seen.clear()
        loss: torch.Tensor = before(self, *args, **options)
        if not arguments.get("is_train", True) or not arguments.get("train_unet", True):
            return loss
        batch, settings = arguments["batch"], arguments["args"]
        missing = [name for name in ("latents", "prediction") if name not in seen]
        if missing:
            raise RuntimeError(
                f"sd-scripts: the step of {type(self).__name__} did not pass where the face loss looks for {' and '.join(missing)}"
            )
        images = batch.get("images")
        return loss + face.step(
            recall=_recall(seen, loss, arguments["noise_scheduler"]),
            prediction=seen["prediction"], target=seen["target"], latents=seen["latents"], noise=seen["noise"], x_t=seen["x_t"],
            vae=_decoder(arguments.get("vae")), pictures=None if images is None else images.float() / 2 + 0.5,
            paths=batch.get("face_paths"), captions=batch.get("captions"), skip=_skip(batch),
            tolerance=TOLERANCE + float(getattr(settings, "ip_noise_gamma", None) or 0), hints=_hints(self),
        )  # fmt: skip

    def generate_step_logs(before: Any, _: dict[str, Any], self: Any, *args: Any, **options: Any) -> dict[str, Any]:
        return {**before(self, *args, **options), **face.logs()}

    around(trainer, "process_batch", process_batch)
    around(trainer, "generate_step_logs", generate_step_logs)
    train_util = sys.modules.get("library.train_util")
    if train_util is not None:
        around(train_util.BaseDataset, "__getitem__", _with_paths)


def find(namespace: dict[str, Any]) -> type:
    """``NetworkTrainer``: the script's own class of that name, or the ancestor of its class."""
    for value in list(namespace.values()):
        if isinstance(value, type) and any(base.__name__ == "NetworkTrainer" for base in value.__mro__):
            return next(base for base in value.__mro__ if base.__name__ == "NetworkTrainer")
    raise RuntimeError("sd-scripts: the script has no NetworkTrainer: the face loss is for its LoRA scripts, such as flux_train_network.py")


def _recall(seen: dict[str, Any], loss: torch.Tensor, scheduler: Any) -> Recall:
    """How to call the step's own function again: the function that mixes noise into latents then returns the rollout's latents."""
    step = seen["step"]

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen["again"] = (x, t)
        try:
            prediction: torch.Tensor = step()[0]
        finally:
            del seen["again"]
        return prediction

    return Recall(predict, seen["times"], (loss, seen["prediction"]), alphas=getattr(scheduler, "alphas_cumprod", None))


def _record(trainer: Any, seen: dict[str, Any]) -> None:
    """Records the arguments and results of the functions that a step calls."""

    def mix(before: Any, arguments: dict[str, Any], *args: Any, **options: Any) -> Any:
        found = before(*args, **options)
        if "noise" in arguments:
            noise, (x_t, times, sigmas) = arguments["noise"], found
        else:
            (noise, x_t, times), sigmas = found, None
        if "again" in seen:
            x, t = seen["again"]
            x, t = x.to(x_t.dtype), t.to(times)
            # Every family's times are thousandths of its noise levels here.
            return (noise, x, t) if sigmas is None else (x, t, (t.float() / 1000).view(sigmas.shape).to(sigmas))
        seen.update(latents=arguments["latents"].detach(), noise=noise.detach(), x_t=x_t.detach(), times=times.detach())
        return found

    def predict(before: Any, arguments: dict[str, Any], *args: Any, **options: Any) -> Any:
        found = before(*args, **options)
        if "again" not in seen:
            seen.update(prediction=found[0], target=found[1].detach(), step=lambda: before(*args, **options))
        return found

    for name, module in list(sys.modules.items()):
        if name.startswith("library."):
            for function in MIXERS:
                if hasattr(module, function):
                    around(module, function, mix)
    around(trainer, "get_noise_pred_and_target", predict)


def _skip(batch: dict[str, Any]) -> list[str | None]:
    """Per sample why it gets no face loss: regularisation pictures, and those of differential output preservation, whose target
    is the model's own output."""
    count = len(batch["captions"])
    regularisation = batch.get("face_regularisation") or [False] * count
    attributes = batch.get("custom_attributes") or [{}] * count
    return [
        "regularisation" if of_class else "preservation" if (attribute or {}).get("diff_output_preservation") else None
        for of_class, attribute in zip(regularisation, attributes, strict=True)
    ]


def _hints(trainer: Any) -> dict[str, Any]:
    names = [base.__name__ for base in type(trainer).__mro__]
    if names[0] == "NetworkTrainer":
        return {"latent_format": "sd15"}
    return {"latent_format": next((FORMATS[name] for name in names if name in FORMATS), None)}


def _decoder(vae: Any) -> Any:
    """The trainer's VAE. HunyuanImage's is of sd-scripts' own class, with names that the library does not know: a function then."""
    if type(vae).__name__ != "HunyuanVAE2D":
        return vae

    def decode(latents: torch.Tensor) -> torch.Tensor:
        # sd-scripts moves it to the CPU once latents are cached.
        weight = next(vae.to(latents.device).parameters())
        images: torch.Tensor = vae.decode((latents / vae.scaling_factor).to(weight.dtype))
        return images / 2 + 0.5

    return decode


def _with_paths(before: Any, _: dict[str, Any], self: Any, index: int) -> dict[str, Any]:
    """Adds to a batch its pictures' paths, and which of them are for regularisation."""
    example: dict[str, Any] = before(self, index)
    if self.caching_mode is not None:
        return example
    entry = self.buckets_indices[index]
    start = entry.batch_index * entry.bucket_batch_size
    keys = self.bucket_manager.buckets[entry.bucket_index][start : start + entry.bucket_batch_size]
    infos = [self.image_data[key] for key in keys]
    example["face_paths"] = [info.absolute_path for info in infos]
    example["face_regularisation"] = [info.is_reg for info in infos]
    return example
