"""The identity loss inside ComfyUI's LoRA trainer.

The trainer asks its sampler's `loss_fn(x0_pred, x0)` for every batch and divides, scales and walks back from what it
gets. So the identity loss goes exactly there, for as long as the training runs: accumulation, gradient scaling, mixed
precision and the multi-resolution and bucket modes treat it as they treat the trainer's own loss. Two wrappers do it:
`SAMPLER_SAMPLE` sees a training begin and end, `PREDICT_NOISE` sees which images and noise levels a batch has.
Sampling an image passes through both untouched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

import facegrad
from facegrad.trainers import Rollout

from . import host, matching, models, rollouts
from .decoder import FaceDecoder
from .draw import curves
from .layout import frames, noise_levels
from .samples import Sampling
from .sockets import Log, Record

#: The node that trains shows its curves this often.
SHOW_SECONDS = 1.0


class References(Protocol):
    """Whom a batch is compared with.

    Attributes:
        count: how many images of the training set it has pictures for; None: it fits every training
    """

    count: int | None

    def begin(self) -> None:
        """A training begins."""

    def register(self, loss: facegrad.FaceIdentityLoss) -> None:
        """Tells a new loss what it has to know."""

    def targets(self, indices: Sequence[int], target: torch.Tensor, latents: dict[str, Any]) -> dict[str, Any]:
        """The loss's arguments for a batch.

        Args:
            indices: of the images, in the user's order
            target: their clean latents `[B,C,h,w]`, in the trainer's space
            latents: how the trainer's latents become the decoder's, keys of the loss's configuration
        """


@dataclass(frozen=True)
class Rollouts:
    """The loss on what the model makes of noise.

    Attributes:
        weight: λ; 0: none
        every_n_steps: only every n-th step has one
    """

    weight: float = 0.0
    every_n_steps: int = 4


class IdentityTraining:
    """What the Face Identity Loss node puts on a model.

    Args:
        config: keys of :class:`facegrad.FaceIdentityLoss` without those about latents and prediction
        decoder: the VAE
        detector, recogniser: what came along their links
        references: whom the batches are compared with
        data_types: one an image of the training set, or empty: every image counts
        connected: the training set's latents `[C,h,w]` in the user's order, or empty: the trainer's order is the user's
        rollouts: whether and how often there are rollouts
        sample_every: after every so many steps the model makes a picture; 0: none
        log: receives every step
    """

    def __init__(
        self,
        config: dict[str, Any],
        decoder: FaceDecoder,
        detector: Any,
        recogniser: Any,
        references: References,
        data_types: Sequence[str],
        connected: Sequence[torch.Tensor],
        rollouts: Rollouts,
        sample_every: int,
        log: Log,
    ) -> None:
        self._config, self.decoder, self._detector, self._recogniser = config, decoder, detector, recogniser
        self.references, self.data_types, self.connected = references, list(data_types), list(connected)
        self.rollouts, self.sample_every, self.log = rollouts, sample_every, log
        self._training: Training | None = None

    def make_loss(self, latents: dict[str, Any], kind: str = "sample", without: Collection[str] = ()) -> facegrad.FaceIdentityLoss:
        """The fused step for a trainer that predicts the clean latent itself, or for a model that predicts another kind.

        Args:
            latents: how the trainer's latents become the decoder's
            without: keys that are left at the library's defaults
        """
        own = {key: value for key, value in self._config.items() if key not in without}
        config = {**own, **latents, "prediction": {"kind": kind}}
        detector, recogniser = models.detector(self._detector), models.recogniser(self._recogniser)
        loss = facegrad.FaceIdentityLoss(config, vae=self.decoder.vae, detector=detector, recogniser=recogniser)
        self.references.register(loss)
        return loss

    def release(self) -> None:
        """Drops the face models: a training loads them beside ComfyUI's list of what is on the card."""
        models.release(self._detector, "detection")
        models.release(self._recogniser, "recognition")
        self.decoder.release()

    @property
    def target_similarity(self) -> float:
        """Beyond which there is no push."""
        return float(self._config.get("target_similarity", 1.0))

    def order(self, sampler: Any, latent_image: torch.Tensor, images: int, scaled: Callable[[torch.Tensor], torch.Tensor]) -> list[int]:
        """For every sample of the trainer its number in the user's order.

        Raises:
            ValueError: what is connected does not fit the training set, or its order cannot be known
        """
        own = len(self.connected) or images
        count = self.references.count
        if count not in (None, 1, own):
            raise ValueError(
                f"Face Identity Loss: {count} reference images for a training set of {own}; give one an image in the same order, or one for all"
            )
        if count == 1 and own > 1 and self._config["landmarks"] != "detect":
            raise ValueError(
                f"Face Identity Loss: landmarks `{self._config['landmarks']}` takes a face's place from the reference image, but one reference "
                f"image cannot show all {own} training images; choose landmarks `detect`, or connect one reference image for each"
            )
        if self.data_types and len(self.data_types) != own:
            raise ValueError(
                f"Face Identity Loss: data_types has {len(self.data_types)} lines, the training set {own} images; give one line an image"
            )
        if self.connected:
            return matching.match(self.connected, matching.samples(sampler, latent_image), scaled)
        if matching.regrouped(sampler) and (self.data_types or (count or 1) > 1):
            raise ValueError(
                "Face Identity Loss: the training set has pictures of several sizes, and Resolution Bucket changes their order; connect "
                "`latents` as they are before Resolution Bucket, so that every reference image and data type finds its picture"
            )
        return list(range(images))

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
        training = Training(self, guider, sampler, latent_image, extra_args or {})
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

    def __init__(self, owner: IdentityTraining, guider: Any, sampler: Any, latent_image: torch.Tensor, extra: dict[str, Any]) -> None:
        conds = guider.conds["positive"]
        owner.decoder.expect_device(latent_image.device)
        self._owner, self._guider = owner, guider
        # The trainer picks a batch's conditioning by the index of its images: the same objects, so they tell the index.
        self._index = {id(cond): at for at, cond in enumerate(conds)}
        self._model = guider.inner_model
        self._order = owner.order(sampler, latent_image, len(conds), self._scaled)
        self._latents = owner.decoder.latents(self._model.latent_format, in_vae_space(sampler, latent_image))
        owner.references.begin()
        self._loss = owner.make_loss(self._latents)
        self._step = 0
        self._parts: list[tuple[float, facegrad.Report]] = []
        self._steps, self._seed = sampler.total_steps, getattr(sampler, "seed", 0)
        self._bar = host.progress_bar(self._steps)
        self._node, self._shown = host.running_node(), 0.0
        self._extra = extra
        self._rollout: Rollout | None = None
        #: While the model is asked for more than the trainer's batch.
        self._apart = False
        self._first = conds[0]
        self._dtype, self._dimensions = getattr(sampler, "training_dtype", torch.float32), latent_image.ndim
        self._clean = matching.samples(sampler, latent_image)[0][None].to(latent_image)
        if owner.rollouts.weight > 0:
            self._rollout = rollouts.make(
                lambda: owner.make_loss(self._latents, "flow"),
                owner.rollouts.weight,
                owner.rollouts.every_n_steps,
                owner.target_similarity,
                self._seed,
            )
        owner.log.reset()

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[N,C,h,w]` as the VAE made them, with the model's own scaling."""
        video = getattr(self._model.latent_format, "latent_dimensions", 2) == 3
        return frames(self._model.process_latent_in(latents.unsqueeze(2) if video else latents))

    def batch(self, sigmas: torch.Tensor) -> None:
        """Notes images and noise levels of the batch that is predicted now."""
        if self._apart:
            return
        self._indices = [self._order[self._index[id(cond)]] for cond in self._guider.conds["positive"]]
        self._levels = noise_levels(self._model.model_sampling.noise_scaling, sigmas)

    def loss(self, own: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The trainer's loss function with the identity loss added."""

        def both(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            value = own(prediction, target)
            who = self._who(target)
            identity, report = self._loss(prediction=frames(prediction), t=self._levels, step=self._step, sample_ids=self._samples, **who)
            self._parts.append((report.loss, report))
            total = value + identity.to(value)
            return total + self._rolled(value, prediction, target, who).to(value) if self._rollout is not None else total

        return both

    @property
    def _samples(self) -> list[str]:
        """Names of the batch's images: by them the library remembers what does not change."""
        return [str(at) for at in self._indices]

    def _who(self, target: torch.Tensor) -> dict[str, Any]:
        """References and data types of the batch."""
        owner = self._owner
        types = [owner.data_types[at] for at in self._indices] if owner.data_types else None
        return {"data_types": types, **owner.references.targets(self._indices, frames(target).detach(), self._latents)}

    def _rolled(self, value: torch.Tensor, prediction: torch.Tensor, target: torch.Tensor, who: dict[str, Any]) -> torch.Tensor:
        """The weighted loss of a rollout with the batch's captions; 0 where none is due."""
        assert self._rollout is not None
        if not self._rollout.due(self._step):
            return value.new_zeros(())
        noise = rollouts.noise_like(frames(target), self._rollout.seed + self._step)
        self._apart = True
        try:
            rolled: torch.Tensor = self._rollout(self._flow, noise, main=(value, prediction), step=self._step, **who)
        finally:
            self._apart = False
        return rolled

    @property
    def _flow(self) -> rollouts.ModelAsFlow:
        """The model that is trained, for whatever conditioning the guider has now."""
        return rollouts.ModelAsFlow(self._guider, self._model.model_sampling, self._extra, self._dimensions)

    def _sample(self) -> None:
        """A picture with the first training image's caption and size, where one is due."""
        every = self._owner.sample_every
        if not every or self._step % every:
            return
        who = self._owner.references.targets([self._order[0]], self._clean, self._latents)
        sampling = Sampling(self._loss, self._latents, rollouts.noise_like(self._clean, self._seed), who)
        batch, self._guider.conds["positive"] = self._guider.conds["positive"], [self._first]
        self._apart = True
        try:
            with torch.autocast(self._clean.device.type, dtype=self._dtype):
                self._owner.log.samples.append(sampling(self._flow, self._step))
        finally:
            self._apart = False
            self._guider.conds["positive"] = batch

    def step_done(self, own: Callable[[float], None] | None) -> Callable[[float], None]:
        """The trainer's callback after a step, which also fills the log."""

        def done(total: float) -> None:
            if own is not None:
                own(total)
            self._record(total)
            self._step += 1
            self._sample()
            self._show()
            host.interrupt_if_cancelled()

        return done

    def _show(self) -> None:
        """The progress, and every second the curves and the similarity on the trainer's node."""
        now, last = time.monotonic(), self._step == self._steps
        if not last and now - self._shown < SHOW_SECONDS:
            self._bar.update_absolute(self._step)
            return
        self._shown = now
        log = self._owner.log
        picture = curves(log, 640)
        self._bar.update_absolute(self._step, preview=("JPEG", picture, max(picture.size)))
        host.show_text(f"Face Identity Loss: {log.summary()}", self._node)

    def _record(self, total: float) -> None:
        """A step may have been several calls: one an image in the multi-resolution mode."""
        samples = [sample for _, report in self._parts for sample in report.samples]
        counted = [sample.similarity for sample in samples if sample.outcome == facegrad.Outcome.COUNTED]
        identity = sum(loss for loss, _ in self._parts) / max(1, len(self._parts))
        similarity = sum(counted) / len(counted) if counted else float("nan")
        outcomes = [sample.outcome.name.lower() for sample in samples]
        rolled = self._rollout.logs() if self._rollout is not None and self._rollout.due(self._step) else {}
        self._owner.log.records.append(Record(self._step, total, identity, similarity, outcomes, rolled))
        self._parts.clear()

    def close(self) -> None:
        """Says so where the loss never did anything, and lets go of the face models."""
        self._owner.release()
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
