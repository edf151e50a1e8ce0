"""ostris/ai-toolkit: the face loss in ``calculate_loss`` of its ``SDTrainer``, as an extension.

The extension's folder ``extensions/face_loss`` holds one file with one line::

    from facegrad.trainers.ai_toolkit import AI_TOOLKIT_EXTENSIONS

and the job's YAML says ``type: face_trainer``, with the section ``face_loss`` beside ``train``.
"""

from __future__ import annotations

from typing import Any

import torch

from .face import TrainerFace, show_log
from .hook import around
from .recall import Recall

MARK = "extensions_built_in/sd_trainer/SDTrainer.py"


class FaceTrainerExtension:
    """The extension, in the form that ai-toolkit expects."""

    uid = "face_trainer"
    name = "Face Trainer"

    @classmethod
    def get_process(cls) -> type:
        """``DiffusionTrainer`` with the face loss of the job's section ``face_loss``."""
        from extensions_built_in.sd_trainer.DiffusionTrainer import DiffusionTrainer  # type: ignore[import-not-found]

        class FaceTrainer(DiffusionTrainer):  # type: ignore[misc]
            def __init__(self, process_id: int, job: Any, config: Any, **options: Any) -> None:
                super().__init__(process_id, job, config, **options)
                section = self.get_conf("face_loss", None)
                if section is None:
                    raise ValueError("face_trainer: the job has no section `face_loss`; docs/trainers.md of facegrad lists its keys")
                show_log()
                self.face = TrainerFace(section)

            def predict_noise(self, *args: Any, **options: Any) -> torch.Tensor:
                return _noted(self.face, self, super().predict_noise, *args, **options)

            def calculate_loss(self, *args: Any, **options: Any) -> torch.Tensor:
                loss: torch.Tensor = _with_face(self.face, super().calculate_loss, self, *args, **options)
                return loss

        return FaceTrainer


AI_TOOLKIT_EXTENSIONS = [FaceTrainerExtension]


def install(face: TrainerFace, trainer: type) -> None:
    """Puts the face loss into ``SDTrainer`` itself, for ``python -m facegrad train run.py``."""

    def calculate_loss(before: Any, _: dict[str, Any], self: Any, *args: Any, **options: Any) -> torch.Tensor:
        return _with_face(face, lambda *a, **o: before(self, *a, **o), self, *args, **options)

    def predict_noise(before: Any, _: dict[str, Any], self: Any, *args: Any, **options: Any) -> torch.Tensor:
        return _noted(face, self, lambda *a, **o: before(self, *a, **o), *args, **options)

    around(trainer, "calculate_loss", calculate_loss)
    around(trainer, "predict_noise", predict_noise)


def find(_: dict[str, Any]) -> type:
    """The class that ai-toolkit's trainers extend."""
    from extensions_built_in.sd_trainer.SDTrainer import SDTrainer  # type: ignore[import-not-found]

    found: type = SDTrainer
    return found


def _noted(face: TrainerFace, trainer: Any, before: Any, *args: Any, **options: Any) -> torch.Tensor:
    """Runs the trainer's own prediction, and keeps its arguments so that it can be called again."""
    prediction: torch.Tensor = before(*args, **options)
    if face.rollouts is not None and torch.is_grad_enabled() and prediction.requires_grad:
        trainer.face_call = (prediction, before, args, options)
    return prediction


def _recall(
    trainer: Any, prediction: torch.Tensor, loss: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor, channels: int
) -> Recall | None:
    """How to call the trainer's ``predict_noise`` again with the step's own captions and control channels."""
    made, before, args, options = getattr(trainer, "face_call", (None, None, (), {}))
    trainer.face_call = (None, None, (), {})
    # A trainer that predicts elsewhere, or passes on something else than it predicted.
    if before is None or made is not prediction or args:
        return None

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x.to(noisy), noisy[:, channels:]], 1)
        again: torch.Tensor = before(**{**options, "noisy_latents": x, "timesteps": t.to(timesteps)})
        return again

    scheduler = getattr(trainer.sd, "noise_scheduler", None)
    return Recall(predict, timesteps, (loss, prediction), alphas=getattr(scheduler, "alphas_cumprod", None))


def _with_face(
    face: TrainerFace,
    before: Any,
    trainer: Any,
    noise_pred: torch.Tensor,
    noise: torch.Tensor,
    noisy_latents: torch.Tensor,
    timesteps: torch.Tensor,
    batch: Any,
    *rest: Any,
    **options: Any,
) -> torch.Tensor:
    loss: torch.Tensor = before(noise_pred, noise, noisy_latents, timesteps, batch, *rest, **options)
    if not torch.is_grad_enabled() or not noise_pred.requires_grad:
        return loss
    latents = batch.latents
    if len(latents) != len(noise_pred):
        raise ValueError(
            f"ai-toolkit hands {len(noise_pred)} of {len(latents)} samples of a batch to its loss: the face loss cannot tell which; "
            "set `batch_size: 1` with `gradient_accumulation`, or leave `single_item_batching` out"
        )
    device = noise_pred.device
    latents, noise, noisy_latents = (x.detach().to(device) for x in (latents, noise, noisy_latents))
    value = face.step(
        recall=_recall(trainer, noise_pred, loss, noisy_latents, timesteps, latents.shape[1]),
        prediction=noise_pred, target=_target(trainer.sd, noise, latents, timesteps, batch), latents=latents, noise=noise, x_t=noisy_latents,
        vae=trainer.sd.vae, pictures=None if batch.tensor is None else batch.tensor.float() / 2 + 0.5,
        paths=[item.path for item in batch.file_items], captions=batch.get_caption_list(),
        skip=["regularisation" if of_class else None for of_class in batch.get_is_reg_list()],
    )  # fmt: skip
    trainer.additional_logs.update(face.logs())
    return loss + value


def _target(model: Any, noise: torch.Tensor, latents: torch.Tensor, timesteps: torch.Tensor, batch: Any) -> torch.Tensor:
    """The target of the model's prediction, which ai-toolkit gets from the model, before options such as prior prediction and
    guidance change it."""
    if getattr(model, "prediction_type", None) == "v_prediction":
        velocity: torch.Tensor = model.noise_scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    if hasattr(model, "get_loss_target"):
        target: torch.Tensor = model.get_loss_target(noise=noise, batch=batch, timesteps=timesteps).detach()
        return target.to(noise.device)
    return noise - latents if model.is_flow_matching else noise
