"""What the GPU suite runs: small networks of every family with seeded weights, the demo's recogniser and detector, and
drawn portraits. Nothing is downloaded, and nothing but Python is needed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderTiny,
)
from diffusers.utils import logging

import facegrad

logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "examples/demo_assets"
sys.path.insert(0, str(ASSETS))
from faces import portrait

#: People that the demo's networks were not trained with.
FIRST = 5_000_000
VIDEO = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}


def kl(channels: int) -> torch.nn.Module:
    return AutoencoderKL.from_config({
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3, "block_out_channels": [16, 24, 32],
        "layers_per_block": 1, "latent_channels": channels, "norm_num_groups": 8, "use_quant_conv": False, "use_post_quant_conv": False,
        "scaling_factor": 0.7, "shift_factor": 0.1,
    })  # fmt: skip


def dc() -> torch.nn.Module:
    widths, blocks = [16, 32, 32], ["ResBlock", "ResBlock", "EfficientViTBlock"]
    return AutoencoderDC.from_config({
        "latent_channels": 8, "encoder_block_types": "ResBlock", "decoder_block_types": blocks, "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths, "encoder_layers_per_block": [1] * 3, "decoder_layers_per_block": [1] * 3,
        "encoder_qkv_multiscales": [[], [], []], "decoder_qkv_multiscales": [[], [], [5]], "upsample_block_type": "pixel_shuffle",
        "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
    })  # fmt: skip


#: Per family: how it is made, channels of its latents, pixels a latent pixel.
FAMILIES = {
    "kl": (lambda: kl(4), 4, 4),
    "kl16": (lambda: kl(16), 16, 4),
    "flux2": (lambda: AutoencoderKLFlux2.from_config({"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [16, 32], "layers_per_block": 1, "latent_channels": 32, "norm_num_groups": 8}), 32, 2),
    "tiny": (lambda: AutoencoderTiny.from_config({"latent_channels": 4, "encoder_block_out_channels": [16] * 3, "decoder_block_out_channels": [16] * 3, "num_encoder_blocks": [1] * 3, "num_decoder_blocks": [1] * 3}), 4, 4),
    "qwen": (lambda: AutoencoderKLQwenImage.from_config(VIDEO), 16, 8),
    "wan21": (lambda: AutoencoderKLWan.from_config(VIDEO), 16, 8),
    "layered": (lambda: AutoencoderKLQwenImage.from_config({**VIDEO, "input_channels": 4}), 16, 8),
    "wan22": (lambda: AutoencoderKLWan.from_config({**VIDEO, "decoder_base_dim": 8, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}), 48, 16),
    "hunyuan": (lambda: AutoencoderKLHunyuanImage.from_config({"in_channels": 3, "out_channels": 3, "latent_channels": 8, "block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "spatial_compression_ratio": 8, "sample_size": 64}), 8, 8),
    "dc": (dc, 8, 4),
}  # fmt: skip
#: Every decoder family, and every packing with a family that is packed so.
CASES = {
    "kl": {"prediction": {"kind": "epsilon", "time": "alpha_bar"}},
    "kl16 in FLUX's tokens": {"packing": "flux"},
    "flux2": {"latent_format": "flux2"},
    "flux2 in patches": {"packing": "flux2"},
    "flux2 in tokens": {"packing": "flux2_tokens"},
    "tiny": {},
    "qwen in FLUX's tokens": {"packing": "flux", "latent_format": "qwen_image"},
    "wan21": {"latent_format": "wan21"},
    "layered": {"latent_format": "qwen_image"},
    "wan22": {"latent_format": "wan22"},
    "hunyuan": {"latent_format": "none"},
    "dc": {"latent_format": "none"},
}
SIDE = 96  # of the decoded pictures, pixels
#: Seeds of the inputs, where it is not 22. A gradient jumps where rounding moves an activation across the kink of a PReLU.
#: With these inputs it does not: `python tests/gpu/world.py` finds them.
SEEDS = {
    "kl": 24, "kl16 in FLUX's tokens": 26, "flux2": 24, "flux2 in patches": 28, "flux2 in tokens": 43, "hunyuan": 23, "dc": 27,
}  # fmt: skip


def module(family: str) -> torch.nn.Module:
    torch.manual_seed(21)
    made = FAMILIES[family][0]().eval().requires_grad_(False)
    if family == "flux2":
        made.bn.running_mean.normal_(0, 0.3)
        made.bn.running_var.uniform_(0.5, 2.0)
    return made


def packed(x: torch.Tensor, packing: str) -> torch.Tensor:
    """`[B,C,H,W]` as the models of a packing lay it out."""
    if packing == "none":
        return x
    b, c, h, w = x.shape
    x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
    return (x if packing == "flux2" else x.flatten(2).transpose(1, 2)).contiguous()


def pictures(people: int, size: int = 128, first: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Portraits `[N,3,size,size]` in [0, 1] with landmarks `[N,5,2]` and boxes `[N,4]`."""
    drawn = [portrait(FIRST + first + at, size=size, variant=1) for at in range(people)]
    images = torch.stack([torch.from_numpy(p.image).permute(2, 0, 1) for p in drawn]).float() / 255
    return (
        images,
        torch.stack([torch.from_numpy(p.landmarks).float() for p in drawn]),
        torch.stack([torch.from_numpy(p.box).float() for p in drawn]),
    )


@dataclass
class Case:
    """A step: what a trainer of that family would hand over, on the CPU in float32."""

    name: str
    count: int = 2
    more: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        family = self.name.split()[0]
        _, channels, scale = FAMILIES[family]
        self.module, self.scale, side = module(family), scale, SIDE // scale
        self.config = {"face_align_mode": "kps", **CASES[self.name], **self.more}
        packing = self.config.get("packing", "none")
        torch.manual_seed(SEEDS.get(self.name, 22) if self.seed is None else self.seed)
        self.x_t, self.prediction = (packed(torch.randn(self.count, channels, side, side), packing) for _ in range(2))
        references, points, _ = pictures(self.count, SIDE)
        self.given = {"t": [0.3, 0.4, 0.7, 0.5][: self.count], "size": (side, side) if packing in ("flux", "flux2_tokens") else None}
        self.told = {"references": references, "landmarks": points, "reference_landmarks": points}

    def loss(
        self, device: torch.device | str, dtype: torch.dtype = torch.float32, recogniser: dict[str, Any] | None = None, **vae: Any
    ) -> facegrad.FaceIdentityLoss:
        # A copy: a module's weights are shared with the library where they are.
        state = {name: value.clone() for name, value in self.module.state_dict().items()}
        own = type(self.module).from_config(self.module.config).eval().requires_grad_(False)
        own.load_state_dict(state)
        decoder = facegrad.Vae(own.to(device, dtype), **vae)
        networks = facegrad.Recogniser(ASSETS / "recogniser.safetensors", device=device, **recogniser or {})
        return facegrad.FaceIdentityLoss(self.config, vae=decoder, detector=False, recogniser=networks)

    def step(
        self, loss: facegrad.FaceIdentityLoss, device: torch.device | str, dtype: torch.dtype = torch.float32, **more: Any
    ) -> tuple[float, torch.Tensor, facegrad.Report]:
        """The value, its gradient (float32, CPU), and the report."""
        prediction = self.prediction.to(device, dtype, copy=True).requires_grad_()
        told = {**self.told, "references": self.told["references"].to(device), **more}
        value, report = loss(prediction=prediction, x_t=self.x_t.to(device, dtype), **self.given, **told)
        value.backward()
        assert prediction.grad is not None
        return value.item(), prediction.grad.float().cpu(), report


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """The norm of the difference, relative to the norm of what was expected."""
    got, want = got.double().cpu(), want.double().cpu()
    return float((got - want).norm() / want.norm())


def cosine(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(torch.cosine_similarity(got.double().cpu().flatten(), want.double().cpu().flatten(), dim=0))


def is_smooth(case: Case) -> bool:
    """Whether the gradient on the CPU stays the same when the inputs change by what rounding changes."""
    loss = case.loss("cpu")
    _, want, _ = case.step(loss, "cpu")
    exact, random = case.x_t, torch.Generator().manual_seed(1)
    for _ in range(12):
        case.x_t = exact * (1 + 2e-6 * torch.randn(exact.shape, generator=random))
        if off(case.step(loss, "cpu")[1], want) > 1e-4:
            return False
    return True


def main() -> None:
    """Prints the first seed of every case that is smooth."""
    for name in CASES:
        print(f"    {name!r}: {next(seed for seed in range(22, 200) if is_smooth(Case(name, seed=seed)))},", flush=True)


if __name__ == "__main__":
    main()
