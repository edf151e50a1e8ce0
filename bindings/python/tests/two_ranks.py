"""Steps with rollouts on two processes, of which one has no picture to push: run by test_trainer_rollouts.py.

    torchrun --nproc_per_node 2 two_ranks.py OUT

The model is wrapped by DDP and has a buffer, which every call sends to all processes: a process that calls it less often than the
other leaves that one waiting. OUT/RANK.json gets, by case, how often the model was called, what was counted, and the gradient.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import ROOT
from diffusers import AutoencoderKL

sys.path.insert(0, str(ROOT / "examples/demo_assets"))
import faces

from facegrad.trainers import TrainerFace
from facegrad.trainers.recall import Recall


class Model(torch.nn.Module):
    def __init__(self, x0: torch.Tensor) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.3))
        self.register_buffer("counted", torch.zeros(()))
        self.x0, self.calls = x0, 0

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (x - self.x0) / level.view(-1, 1, 1, 1) + self.w * 0.1


CASES = ("no face", "regularisation", "times not clear", "ended")
ASSETS = ROOT / "examples/demo_assets"


def run(case: str, rank: int, vae: AutoencoderKL) -> dict[str, float]:
    """Four steps, two of them with a rollout. The second process is the one that has nothing to push."""
    drawn = torch.stack(
        [torch.from_numpy(faces.portrait(9_500_000 + k, 64, zoom=1.1).image).permute(2, 0, 1).float() / 127.5 - 1 for k in range(2)]
    )
    if case == "no face" and rank:
        drawn = torch.zeros_like(drawn)
    with torch.no_grad():
        x0 = (vae.encode(drawn).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    model = Model(x0)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    face = TrainerFace({
        "detector": {"path": str(ASSETS / "detector.onnx"), "det_sizes": [192]}, "recogniser": str(ASSETS / "recogniser.safetensors"),
        "rollouts": {"steps": 4, "levels": [0.3, 0.6], "ramp": 0, "min_score": 0.0, "every_n_steps": 2},
    })  # fmt: skip
    if case == "ended" and rank:
        assert face.rollouts is not None
        face.rollouts.rollout._strength = 0.0
    g = torch.Generator().manual_seed(rank)
    logs = []
    for step in range(4):
        # At 0.5 it is open whether the times count from the noise or from the picture: the second process learns it later.
        level = 0.5 if case == "times not clear" and rank and step < 3 else 0.3
        n, t = torch.randn(x0.shape, generator=g), torch.full((len(x0),), level)
        x_t = torch.lerp(x0, n, t.view(-1, 1, 1, 1))
        prediction = wrapped(x_t, t)
        loss = (prediction - (n - x0)).square().mean()
        loss = loss + face.step(
            prediction=prediction, latents=x0, noise=n, x_t=x_t, target=n - x0, vae=vae, recall=Recall(lambda x, t: wrapped(x.to(x0), t), t, (loss, prediction)),
            skip=["regularisation"] * len(x0) if case == "regularisation" and rank else None,
        )  # fmt: skip
        loss.backward()
        logs.append(face.logs())
    return {"calls": model.calls, "rollouts": sum(log.get("rollout/counted", 0) for log in logs), "gradient": model.w.grad.item()}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    rank, vae = dist.get_rank(), AutoencoderKL.from_pretrained(ASSETS / "vae")
    (out / f"{rank}.json").write_text(json.dumps({case: run(case, rank, vae) for case in CASES}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
