"""What the tests of the trainers' adapters share: a section, a world of two portraits, and stand-ins that several of them use."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

ASSETS = ROOT / "examples/demo_assets"
sys.path.insert(0, str(ASSETS))
import faces

import facegrad

SECTION = {"detector": {"path": str(ASSETS / "detector.onnx"), "det_sizes": [192]}, "recogniser": str(ASSETS / "recogniser.safetensors"),
           "vae": str(ASSETS / "vae")}  # fmt: skip


@pytest.fixture(scope="module")
def world(device):
    """Two portraits as clean latents of the demo's VAE, with noise, levels, and a prediction that is near the truth."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(ASSETS / "vae").requires_grad_(False)
    drawn = [faces.portrait(9_500_000 + k, 64, zoom=1.1) for k in range(2)]
    pictures = torch.stack([torch.from_numpy(d.image).permute(2, 0, 1).float() / 255 for d in drawn])
    x0 = (vae.encode(pictures * 2 - 1).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    g = torch.Generator().manual_seed(5)
    n = torch.randn(x0.shape, generator=g)
    t = torch.tensor([0.3, 0.6])
    x_t = torch.lerp(x0, n, t.view(-1, 1, 1, 1))
    made = {"x0": x0, "n": n, "t": t, "x_t": x_t, "v": n - x0, "wrong": torch.randn(x0.shape, generator=g), "pictures": pictures}
    return SimpleNamespace(vae=vae.to(device), **{name: x.to(device) for name, x in made.items()})


def told(w, sign=1.0, **changes):
    """The arguments of a step, and the prediction."""
    prediction = (sign * (w.v + w.wrong)).requires_grad_()
    return {"prediction": prediction, "latents": w.x0, "noise": w.n, "x_t": w.x_t, "target": sign * w.v, **changes}, prediction


def gradient(face, w, sign=1.0, **changes):
    arguments, prediction = told(w, sign, **changes)
    value = face.step(**arguments)
    return value.item(), torch.autograd.grad(value, prediction)[0]


def networks(device):
    """Those of the section."""
    return {
        "vae": facegrad.Vae(SECTION["vae"], device=device),
        "detector": facegrad.Detector(SECTION["detector"]["path"], det_sizes=[192], device=device),
        "recogniser": facegrad.Recogniser(SECTION["recogniser"], device=device),
    }


def musubi_trainer(world, predict, turned=False):
    """musubi-tuner's ``NetworkTrainer``, whose flow is that of the world, turned as Z-Image's is, and whose times have one timestep more.

    Args:
        predict: gives the prediction for noisy latents with one frame and their times
    """

    class NetworkTrainer:
        def get_noisy_model_input_and_timesteps(self, args, noise, latents, timesteps, noise_scheduler, device, dtype):
            return torch.lerp(latents, noise, world.t.view(-1, 1, 1, 1, 1)), world.t * 1000 + 1

        def process_batch(
            self,
            args,
            accelerator,
            transformer,
            network,
            batch,
            latents,
            noise,
            noise_scheduler,
            dit_dtype,
            network_dtype,
            vae,
            global_step,
        ):
            x, times = self.get_noisy_model_input_and_timesteps(args, noise, latents, None, noise_scheduler, "cpu", dit_dtype)
            assert x.shape == latents.shape
            output = SimpleNamespace(pred=predict(x, times), target=-world.v if turned else world.v)
            return self.compute_loss(args, output, times, noise_scheduler, dit_dtype, network_dtype, global_step)

        def compute_loss(self, args, output, timesteps, noise_scheduler, dit_dtype, network_dtype, global_step):
            return (output.pred - output.target).square().mean(), {}

    return NetworkTrainer


def musubi_step(world, trainer):
    """One step of such a trainer on the world's pictures."""
    latents, noise = (x.unsqueeze(2) for x in (world.x0, world.n))
    return trainer.process_batch(None, None, None, None, {"face_paths": ["x/a", "x/b"]}, latents, noise, None, None, None, None, 0)


@pytest.fixture()
def hooks_end(monkeypatch):
    """What the adapter of diffusers' scripts puts into accelerate and diffusers is taken out after the test."""
    import accelerate
    import diffusers

    for owner, name in ((accelerate.Accelerator, "backward"), (accelerate.Accelerator, "prepare")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for name in [n for n in dir(diffusers) if n.startswith(("Autoencoder", "AsymmetricAutoencoder", "VQModel"))]:
        one = getattr(diffusers, name)
        if isinstance(one, type) and "from_pretrained" not in vars(one):
            monkeypatch.setattr(one, "from_pretrained", one.from_pretrained)
