"""The LoRA training of the demo: diffusers' FLUX transformer, peft's adapter, and the face loss as one more term."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

import world

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_mlp", "proj_out"]


@dataclass(frozen=True)
class Settings:
    """What a run depends on: with the same settings it gives the same numbers. `reference`: what a face is compared with:
    the person's `centroid`, the `best` of the person's pictures, or, in a pair, the `own` picture. `guard`: options of
    facegrad.trainers.Rollout in place of its defaults."""

    person: int
    seed: int
    face_weight: float
    rollout_weight: float = 0.0
    decode: str = "full"
    reference: str = "centroid"
    time_weight: str = "constant"
    guard: tuple[tuple[str, float | None], ...] = ()
    pictures: int = 5
    steps: int = 100
    batch: int = 4
    rank: int = 16
    rate: float = 3e-3


@dataclass
class History:
    """Per step: mse, face loss as added, similarity of the counted samples, skipped samples, seconds by stage.
    Now and then: the judge's opinion, as pairs of step and mean cosine."""

    mse: list[float] = field(default_factory=list)
    face: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"model": 0.0, "face loss": 0.0, "rollouts": 0.0, "backward": 0.0, "optimiser": 0.0})
    judged: list[tuple[int, float]] = field(default_factory=list)


class LoraRun:
    """One LoRA from one person's pictures. `face_loss` is None or a facegrad.trainers.FaceTerm whose weight is
    already in it, `rollout` None or a facegrad.trainers.Rollout; both know the person as "person". The state is written to
    `path` now and then, and a new object goes on from there."""

    def __init__(self, settings: Settings, vae, face_loss, rollout, path: Path) -> None:
        self.settings, self.face_loss, self.rollout, self.path = settings, face_loss, rollout, path
        images, self.landmarks, self.captions = world.pictures([settings.person], range(settings.pictures))
        self.images = images.float() / 255
        self.latents = world.pack(world.encode(vae, images))
        self.transformer = world.load_transformer()
        torch.manual_seed(settings.seed)
        self.transformer.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=TARGETS))
        self.parameters = [p for p in self.transformer.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=settings.rate)
        self.step, self.history = 0, History()
        self._resume()

    def _resume(self) -> None:
        if not self.path.exists():
            return
        state = torch.load(self.path)
        if state["settings"] != asdict(self.settings):
            return
        set_peft_model_state_dict(self.transformer, state["lora"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history = state["step"], History(**state["history"])
        if self.face_loss is not None:
            self.face_loss.load_state_dict(state["face loss"])
        if self.rollout is not None:
            self.rollout.load_state_dict(state["rollout"])

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half_written = self.path.with_suffix(".part")
        torch.save({"settings": asdict(self.settings), "lora": get_peft_model_state_dict(self.transformer),
                    "optimiser": self.optimiser.state_dict(), "step": self.step, "history": asdict(self.history),
                    "face loss": self.face_loss.state_dict() if self.face_loss is not None else None,
                    "rollout": self.rollout.state_dict() if self.rollout is not None else None}, half_written)
        half_written.replace(self.path)

    def predict(self, x: torch.Tensor, t: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        return self.transformer(hidden_states=x, timestep=t, **world.prompt(captions), return_dict=False)[0]

    @property
    def finished(self) -> bool:
        return self.step >= self.settings.steps

    def advance(self) -> dict[str, float]:
        """One optimiser step. Its random numbers follow from seed and step alone, so that a run that was stopped
        goes on as if it had not been, and two runs with one seed differ by the face loss only."""
        s, clock = self.settings, _Clock(self.history.seconds)
        g = torch.Generator().manual_seed(s.seed * 100_003 + self.step)
        index = torch.randint(len(self.latents), (s.batch,), generator=g)
        x0, noise = self.latents[index], torch.randn(s.batch, *self.latents.shape[1:], generator=g)
        t = torch.randn(s.batch, generator=g).sigmoid()
        x_t = torch.lerp(x0, noise, t[:, None, None])
        v = self.predict(x_t, t, self.captions[index])
        loss = mse = F.mse_loss(v, noise - x0)
        clock("model")
        face, similarity, skipped = 0.0, float("nan"), 0
        if self.face_loss is not None:
            own = dict(references=self.images[index], reference_landmarks=self.landmarks[index])
            loss = mse + self.face_loss(x_t=x_t, prediction=v, t=t, size=(8, 8), landmarks=self.landmarks[index], step=self.step,
                                        **(own if s.reference == "own" else dict(reference_ids=["person"] * s.batch)))
            report = self.face_loss.report
            face, similarity, skipped = report.loss, report.similarity, s.batch - report.counted
            clock("face loss")
        if self.rollout is not None and self.rollout.due(self.step):
            captions = world.captions(torch.randint(10_000, (s.batch,), generator=g).tolist())
            fresh = torch.randn(s.batch, *self.latents.shape[1:], generator=g)
            loss = loss + self.rollout(lambda x, t: self.predict(x, t, captions), fresh, main=(mse, v), step=self.step,
                                       reference_ids=["person"] * s.batch, size=(8, 8))
            clock("rollouts")
        self.optimiser.zero_grad()
        loss.backward()
        clock("backward")
        torch.nn.utils.clip_grad_norm_(self.parameters, 1)
        self.optimiser.step()
        clock("optimiser")
        self.step += 1
        h = self.history
        for kept, value in ((h.mse, mse.item()), (h.face, face), (h.similarity, similarity), (h.skipped, skipped)):
            kept.append(value)
        return dict(mse=h.mse[-1], face=face, similarity=similarity, skipped=sum(h.skipped))


class _Clock:
    """Adds the seconds since the last call to the named stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now
