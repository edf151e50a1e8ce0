"""A LoRA training loop with the face loss: diffusers, peft and accelerate, in FLUX's and in SDXL's parameterisation.

    python examples/trainers/train_lora.py flux
    accelerate launch --multi_gpu --num_processes 2 examples/trainers/train_lora.py flux --batch 2
    torchrun --nproc_per_node 2 examples/trainers/train_lora.py sdxl --accumulate 2 --precision bf16
    python examples/trainers/train_lora.py flux --rollout 0.1 --checkpointing

The models are tiny and random, so that it runs anywhere; the three marked places are all that the face loss needs in
a loop of your own, with --rollout the face loss on what the model makes of noise too. Pictures are drawn people, and
each is its own reference. Every random number follows from the index of its sample: however the samples are spread
over processes and accumulation, they are the same ones.

The first command ends with this line:

    {"step": 2, "mse": 1.433…, "face/loss": 0.108…, "face/counted": 4.0, "face/similarity": -0.080…}
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

ASSETS = Path(__file__).resolve().parents[1] / "demo_assets"
sys.path.insert(0, str(ASSETS))

import facegrad
import faces
from facegrad.trainers import FaceTerm, Rollout

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
LATENT = 8  # latent pixels of a side; pictures have 64


class Flux:
    """Flow matching on packed tokens: v = x1 − x0 at x_t = (1 − t)·x0 + t·x1."""

    loss_config = {"packing": "flux", "prediction": {"kind": "flow"}}
    channels, scaling = 16, {"scaling_factor": 0.3611, "shift_factor": 0.1159}

    def __init__(self) -> None:
        self.model = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 6, 6),
        )

    def layout(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] → what the model takes."""
        n, c, h, w = x.shape
        return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)

    def predict(self, model, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        n, side = len(x), LATENT / 2
        ids = torch.cartesian_prod(torch.zeros(1), torch.arange(side), torch.arange(side)).to(x.device)
        return model(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=x.new_ones(n, 3, 8),
            pooled_projections=x.new_ones(n, 8),
            txt_ids=x.new_zeros(3, 3),
            img_ids=ids,
            return_dict=False,
        )[0]

    def step(self, model, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor):
        """(prediction, target, x_t, noise level as the face loss wants it)"""
        t = u.sigmoid()
        x0, x1 = self.layout(latents), self.layout(noise)
        x_t = torch.lerp(x0, x1, t[:, None, None])
        return self.predict(model, x_t, t), x1 - x0, x_t, t


class Sdxl:
    """ε-prediction over DDPM's schedule, with SDXL's additional conditions."""

    loss_config = {"prediction": {"kind": "epsilon"}}
    channels, scaling = 4, {"scaling_factor": 0.13025, "shift_factor": None}

    def __init__(self) -> None:
        self.model = UNet2DConditionModel(
            sample_size=LATENT,
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=16,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        )
        self.scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def layout(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def predict(self, model, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        n = len(x)
        extra = {"text_embeds": x.new_ones(n, 16), "time_ids": x.new_full((n, 6), 64.0)}
        return model(x, t, encoder_hidden_states=x.new_ones(n, 4, 16), added_cond_kwargs=extra, return_dict=False)[0]

    def step(self, model, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor):
        k = (u.sigmoid() * 999).long()
        x_t = self.scheduler.add_noise(latents, noise, k)
        return self.predict(model, x_t, k), noise, x_t, k


def samples(index: range, channels: int) -> tuple[torch.Tensor, ...]:
    """Pictures [N, 3, 64, 64] in [0, 1], their landmarks, noise and what noise levels come from, by sample number."""
    drawn = [faces.portrait(9_500_000 + i % 6, 64, variant=i % 6, zoom=1.1) for i in index]
    random = [torch.Generator().manual_seed(i) for i in index]
    return (
        torch.stack([torch.from_numpy(d.image).permute(2, 0, 1).float() / 255 for d in drawn]),
        torch.stack([torch.from_numpy(d.landmarks) for d in drawn]),
        torch.stack([torch.randn(channels, LATENT, LATENT, generator=g) for g in random]),
        torch.cat([torch.randn(1, generator=g) for g in random]),
    )


def tiny_vae(channels: int, scaling: dict) -> AutoencoderKL:
    four = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return (
        AutoencoderKL(
            **scaling,
            latent_channels=channels,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=four[0],
            up_block_types=four[1],
            use_quant_conv=channels == 4,
            use_post_quant_conv=channels == 4,
        )
        .eval()
        .requires_grad_(False)
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", choices=["flux", "sdxl"])
    p.add_argument("--cuda", action="store_true", help="train on a GPU, every process on its own (default: on the CPU)")
    p.add_argument("--steps", type=int, default=3, help="optimiser steps (default 3)")
    p.add_argument("--batch", type=int, default=4, help="samples of one process and one accumulated batch (default 4)")
    p.add_argument("--accumulate", type=int, default=1, help="batches an optimiser step (default 1)")
    p.add_argument("--precision", choices=["no", "bf16"], default="no")
    p.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in the model")
    p.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile the model (default backend inductor)")
    p.add_argument("--rollout", type=float, default=0.0, metavar="WEIGHT", help="λ of rollouts (default 0: none)")
    p.add_argument("--every", type=int, default=4, help="optimiser steps from one rollout to the next (default 4)")
    p.add_argument("--without-face", type=int, nargs="*", default=[], help="numbers of samples that show no person")
    p.add_argument("--out", type=Path, default=Path("out/lora"), help="folder for the LoRA and its log")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    accelerator = Accelerator(cpu=not args.cuda, mixed_precision=args.precision, gradient_accumulation_steps=args.accumulate)
    torch.manual_seed(0)
    way = Flux() if args.model == "flux" else Sdxl()
    vae, model = tiny_vae(way.channels, way.scaling).to(accelerator.device), way.model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=4, init_lora_weights="gaussian", target_modules=TARGETS))
    if args.checkpointing:
        model.enable_gradient_checkpointing()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    inner = model
    if args.compile:
        model.compile(backend=args.compile)
    model, optimiser = accelerator.prepare(model, optimiser)

    # 1. Once: the loss, and the term that counts steps and keeps statistics. "batch" makes ranks and accumulated
    #    batches add up to one large batch, whatever faces each of them has.
    loss = facegrad.FaceIdentityLoss(
        {"face_loss_weight": 0.1, "face_align_mode": "kps", "landmarks": "reference", **way.loss_config},
        vae=vae,
        detector=False,
        recogniser=facegrad.Recogniser(str(ASSETS / "recogniser.safetensors"), device=accelerator.device),
    )
    face = FaceTerm(loss, average="batch")
    # The random models draw no face, so its place is told below and its score is not asked for. With a real model the
    # detector finds it, and what stands here is Rollout(loss, weight=args.rollout).
    rollout = Rollout(loss, weight=args.rollout, steps=4, every_n_steps=args.every, min_score=0.0, ramp=0)

    log, number = [], 0
    for step in range(args.steps):
        for _ in range(args.accumulate):
            first = (number * accelerator.num_processes + accelerator.process_index) * args.batch
            index, number = range(first, first + args.batch), number + 1
            pictures, landmarks, noise, u = (x.to(accelerator.device) for x in samples(index, way.channels))
            with torch.no_grad():
                latents = vae.encode(pictures * 2 - 1).latent_dist.mean
                latents = (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
            with accelerator.accumulate(model):
                prediction, target, x_t, t = way.step(model, latents, noise, u)
                mse = F.mse_loss(prediction.float(), target.float())
                # 2. Every step: one more term.
                total = mse + face(
                    prediction=prediction,
                    x_t=x_t,
                    t=t,
                    step=step,
                    references=pictures,
                    reference_landmarks=landmarks,
                    size=(LATENT, LATENT) if args.model == "flux" else None,
                    data_types=["other" if i in args.without_face else "person" for i in index],
                )
                if rollout.due(step):
                    fresh = torch.stack(
                        [torch.randn(noise.shape[1:], generator=torch.Generator().manual_seed(1_000_000 + i)) for i in index]
                    )
                    total = total + rollout(
                        lambda x, t: way.predict(model, x, t),
                        way.layout(fresh.to(accelerator.device)),
                        main=(mse, prediction),
                        step=step,
                        references=pictures,
                        reference_landmarks=landmarks,
                        landmarks=landmarks,
                        size=(LATENT, LATENT) if args.model == "flux" else None,
                    )
                accelerator.backward(total)
                if accelerator.sync_gradients:
                    gradient = {k: p.grad.clone() for k, p in inner.named_parameters() if p.grad is not None}
                optimiser.step()
                optimiser.zero_grad()
            # 3. For the log: what it did.
            log.append({"step": step, "mse": mse.item(), **face.logs(), **(rollout.logs() if rollout.due(step) else {})})
    if accelerator.is_main_process:
        args.out.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in get_peft_model_state_dict(inner).items()}, args.out / "lora.safetensors")
        save_file(gradient, args.out / "gradient.safetensors")
        (args.out / "log.json").write_text(json.dumps({"steps": log, "summary": face.summary(), "rollouts": rollout.summary()}, indent=1))
        print(json.dumps(log[-1]))


if __name__ == "__main__":
    main()
