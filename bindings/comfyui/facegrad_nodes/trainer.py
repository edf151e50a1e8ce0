"""The identity loss inside ComfyUI's LoRA trainer.

The trainer asks its sampler's `loss_fn(x0_pred, x0)` for every batch and divides, scales and walks back from what it
gets. So the identity loss goes exactly there, for as long as the training runs: accumulation, gradient scaling, mixed
precision and the multi-resolution and bucket modes treat it as they treat the trainer's own loss. Two wrappers do it:
`SAMPLER_SAMPLE` sees a training begin and end, `PREDICT_NOISE` sees which images and noise levels a batch has.
Sampling an image passes through both untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

import facegrad

from . import host
from .decoder import FaceDecoder
from .layout import frames, noise_levels
from .sockets import Log, Record


class References(Protocol):
    """Whom a batch is compared with."""

    def check(self, images: int) -> None:
        """Raises where they do not fit a training of so many images."""

    def register(self, loss: facegrad.FaceIdentityLoss) -> None:
        """Tells a new loss what it has to know."""

    def targets(self, indices: Sequence[int], target: torch.Tensor, latents: dict[str, Any]) -> dict[str, Any]:
        """The loss's arguments for a batch.

        Args:
            indices: of the images in the training set
            target: their clean latents `[B,C,h,w]`, in the trainer's space
            latents: how the trainer's latents become the decoder's, keys of the loss's configuration
        """


class IdentityTraining:
    """What the Face Identity Loss node puts on a model.

    Args:
        config: keys of :class:`facegrad.FaceIdentityLoss` without those about latents and prediction
        decoder: the VAE
        detector: finds the faces of references and predictions
        recogniser: the network whose embeddings are compared
        references: whom the batches are compared with
        data_types: one an image of the training set, or empty: every image counts
        log: receives every step
    """

    def __init__(
        self,
        config: dict[str, Any],
        decoder: FaceDecoder,
        detector: facegrad.Detector,
        recogniser: facegrad.Recogniser,
        references: References,
        data_types: Sequence[str],
        log: Log,
    ) -> None:
        self._config, self._decoder, self._detector, self._recogniser = config, decoder, detector, recogniser
        self.references, self.data_types, self.log = references, list(data_types), log
        self._training: Training | None = None

    def make_loss(self, latents: dict[str, Any]) -> facegrad.FaceIdentityLoss:
        """The fused step for a trainer that predicts the clean latent itself."""
        config = {**self._config, **latents, "prediction": {"kind": "sample"}}
        return facegrad.FaceIdentityLoss(config, vae=self._decoder.vae, detector=self._detector, recogniser=self._recogniser)

    def sampler_sample(
        self,
        executor: Any,
        guider: Any,
        sigmas: Any,
        extra_args: Any,
        callback: Any,
        noise: Any,
        latent_image: Any = None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """`SAMPLER_SAMPLE`: adds the loss while a trainer runs; leaves everything else alone."""
        arguments = (guider, sigmas, extra_args, callback, noise, latent_image, *rest)
        sampler = executor.class_obj
        if not hasattr(sampler, "optimizer"):
            return executor(*arguments, **more)
        if not hasattr(sampler, "loss_fn"):
            raise ValueError("Face Identity Loss: this trainer has no loss function that can be extended; use ComfyUI's Train LoRA node")
        training = Training(self, guider, sampler, latent_image)
        own = sampler.loss_fn, sampler.loss_callback
        sampler.loss_fn, sampler.loss_callback = training.loss(own[0]), training.step_done(own[1])
        self._training = training
        try:
            return executor(*arguments, **more)
        finally:
            self._training = None
            sampler.loss_fn, sampler.loss_callback = own
            training.close()

    def predict_noise(self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, *rest: Any, **more: Any) -> Any:
        """`PREDICT_NOISE`: remembers the batch of a training."""
        if self._training is not None:
            self._training.batch(timestep)
        return executor(x, timestep, *rest, **more)


class Training:
    """One run of the trainer."""

    def __init__(self, owner: IdentityTraining, guider: Any, sampler: Any, latent_image: torch.Tensor) -> None:
        conds = guider.conds["positive"]
        owner.references.check(len(conds))
        if owner.data_types and len(owner.data_types) != len(conds):
            raise ValueError(
                f"Face Identity Loss: data_types has {len(owner.data_types)} lines, the training set {len(conds)} images; give one line an image"
            )
        owner._decoder.expect_device(latent_image.device)
        self._owner, self._guider = owner, guider
        # The trainer picks a batch's conditioning by the index of its images: the same objects, so they tell the index.
        self._index = {id(cond): at for at, cond in enumerate(conds)}
        self._model = guider.inner_model
        self._latents = owner._decoder.latents(self._model.latent_format, in_vae_space(sampler, latent_image))
        self._loss = owner.make_loss(self._latents)
        owner.references.register(self._loss)
        self._step = 0
        self._parts: list[tuple[float, facegrad.Report]] = []
        self._bar = host.progress_bar(sampler.total_steps)
        owner.log.reset()

    def batch(self, sigmas: torch.Tensor) -> None:
        """Notes images and noise levels of the batch that is predicted now."""
        self._indices = [self._index[id(cond)] for cond in self._guider.conds["positive"]]
        self._levels = noise_levels(self._model.model_sampling.noise_scaling, sigmas)

    def loss(self, own: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The trainer's loss function with the identity loss added."""

        def both(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            value = own(prediction, target)
            identity, report = self.identity(prediction, target)
            self._parts.append((report.loss, report))
            return value + identity.to(value)

        return both

    def identity(self, prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, facegrad.Report]:
        """The weighted identity loss of a batch of predicted clean latents."""
        owner = self._owner
        types = [owner.data_types[at] for at in self._indices] if owner.data_types else None
        who = owner.references.targets(self._indices, frames(target).detach(), self._latents)
        value, report = self._loss(prediction=frames(prediction), t=self._levels, step=self._step, data_types=types, **who)
        return value, report

    def step_done(self, own: Callable[[float], None] | None) -> Callable[[float], None]:
        """The trainer's callback after a step, which also fills the log."""

        def done(total: float) -> None:
            if own is not None:
                own(total)
            self._record(total)
            self._step += 1
            self._bar.update_absolute(self._step)
            host.interrupt_if_cancelled()

        return done

    def _record(self, total: float) -> None:
        """A step may have been several calls: one an image in the multi-resolution mode."""
        samples = [sample for _, report in self._parts for sample in report.samples]
        counted = [sample.similarity for sample in samples if sample.outcome == facegrad.Outcome.COUNTED]
        identity = sum(loss for loss, _ in self._parts) / max(1, len(self._parts))
        similarity = sum(counted) / len(counted) if counted else float("nan")
        outcomes = [sample.outcome.name.lower() for sample in samples]
        self._owner.log.records.append(Record(self._step, total, identity, similarity, outcomes))
        self._parts.clear()

    def close(self) -> None:
        """Says so where the loss never did anything."""
        log = self._owner.log
        if log.records and not log.counted():
            reasons = ", ".join(f"{count} × {reason}" for reason, count in log.skipped().items())
            host.log.warning(
                "Face Identity Loss: in %d steps no sample counted (%s); the LoRA was trained without it", len(log.records), reasons
            )


def in_vae_space(sampler: Any, latent_image: torch.Tensor) -> bool:
    """Whether the trainer's batches are latents as the VAE made them instead of the model's.

    The multi-resolution and bucket modes of ComfyUI's trainer (seen in 0.33) take their batches from the latents that the
    node got, while the model's scaling is applied to a stand-in alone: the first latent, repeated.
    """
    batches = getattr(sampler, "real_dataset", None) or getattr(sampler, "bucket_latents", None)
    if batches is None:
        return False
    first, scaled = batches[0][:1].float().cpu(), latent_image[:1].float().cpu()
    return first.shape == scaled.shape and not torch.allclose(first, scaled, rtol=0.02, atol=1e-3)
