"""The demo's world: pictures of drawn people with captions, a VAE in the diffusers format and a FLUX transformer.

A caption says how a picture was taken (pose, expression, light), never who is on it: whatever makes one person
differ from another has to come from the transformer's weights, as in the LoRA of a person.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import faces

HERE = Path(__file__).resolve().parent
SIZE, ZOOM = 64, 1.1            # pixels of a picture's side; 1.1 lets the head fill it
POPULATION = 7_000_000          # people of the base model; neither recogniser was trained on them
CAPTION, TOKENS = 9, 2

VAE = dict(in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(12, 24, 48, 64), layers_per_block=1,
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
           norm_num_groups=2, sample_size=SIZE, use_quant_conv=False, use_post_quant_conv=False)
TRANSFORMER = dict(patch_size=1, in_channels=64, num_layers=1, num_single_layers=5, attention_head_dim=32,
                   num_attention_heads=4, joint_attention_dim=CAPTION, pooled_projection_dim=CAPTION,
                   guidance_embeds=False, axes_dims_rope=(8, 12, 12))


def caption(look: faces.Look) -> np.ndarray:
    """[9] float32, each entry about in [-1, 1]: yaw, pitch, smile, gape, blink, light from left and above,
    contrast, warmth."""
    tint = np.asarray(look.tint)
    return np.array([look.yaw / .3, look.pitch / .15, look.smile, look.gape * 2, look.blink * 2, *look.light,
                     look.contrast * 4 - 1.4, (tint[0] - tint[2]) * 8], np.float32)


def picture(person: int, variant: int, strength: float = .55, size: int = SIZE) -> tuple[faces.Portrait, np.ndarray]:
    """One picture of a person and its caption; the same arguments always give the same picture."""
    look = faces.Look.random(np.random.default_rng([person, variant, 11]), strength)
    return faces.portrait(person, size, look, variant, ZOOM), caption(look)


def captions(numbers) -> torch.Tensor:
    """Captions [N, 9] of pictures that nobody draws, one a number."""
    looks = [faces.Look.random(np.random.default_rng([n, 17]), .55) for n in numbers]
    return torch.from_numpy(np.stack([caption(look) for look in looks]))


def pictures(people, variants) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RGB uint8 [N, 3, 64, 64], landmarks [N, 5, 2] in pixels, captions [N, 9]; person by person."""
    drawn = [picture(p, v) for p in people for v in variants]
    images = torch.from_numpy(np.stack([d.image for d, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(np.stack([d.landmarks for d, _ in drawn])), torch.from_numpy(np.stack([c for _, c in drawn]))


def prompt(captions: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the transformer takes beside latents and time: the caption as pooled vector and as two tokens, the pose
    and the light."""
    pose, light = captions.clone(), captions.clone()
    pose[:, 5:], light[:, :5] = 0, 0
    h = SIZE // 16
    ids = torch.zeros(h, h, 3)
    ids[..., 1], ids[..., 2] = torch.arange(h)[:, None], torch.arange(h)[None]
    return dict(pooled_projections=captions, encoder_hidden_states=torch.stack([pose, light], 1),
                txt_ids=torch.zeros(TOKENS, 3), img_ids=ids.reshape(-1, 3))


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] → FLUX's tokens [N, H·W/4, 4·C], as diffusers' FluxPipeline packs."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    n, _, c = tokens.shape
    y = tokens.view(n, height // 2, width // 2, c // 4, 2, 2)
    return y.permute(0, 3, 1, 4, 2, 5).reshape(n, c // 4, height, width)


def load_vae(folder: Path = HERE / "vae"):
    from diffusers import AutoencoderKL
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


def load_transformer(folder: Path = HERE / "transformer"):
    from diffusers import FluxTransformer2DModel
    return FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


def encode(vae, images: torch.Tensor) -> torch.Tensor:
    """uint8 pictures → model-space latents [N, 16, 8, 8] of about unit variance (the posterior's mean)."""
    with torch.no_grad():
        mean = torch.cat([vae.encode(part / 127.5 - 1).latent_dist.mean for part in images.float().split(64)])
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae, latents: torch.Tensor) -> torch.Tensor:
    """Model-space latents → RGB in [0, 1]."""
    with torch.no_grad():
        return (vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample / 2 + .5).clamp(0, 1)


@torch.no_grad()
def sample(transformer, captions: torch.Tensor, steps: int = 20, seed: int = 0) -> torch.Tensor:
    """Euler's method from noise at t = 1 to the latents [N, 16, 8, 8] at t = 0."""
    x = torch.randn(len(captions), (SIZE // 16) ** 2, 64, generator=torch.Generator().manual_seed(seed))
    times = torch.linspace(1, 0, steps + 1)
    for t, after in zip(times, times[1:]):
        v = transformer(hidden_states=x, timestep=t.expand(len(x)), **prompt(captions), return_dict=False)[0]
        x = x + (after - t) * v
    return unpack(x, SIZE // 8, SIZE // 8)
