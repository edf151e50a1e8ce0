"""A tiny random FLUX as a diffusers folder, with the VAE given.

python tests/trainers/tiny_flux.py FOLDER VAE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny import letter_tokenizer
from tiny_sd15 import clip_tokenizer, text_config
from transformers import CLIPTextModel, T5Config, T5EncoderModel


def main(folder: Path, vae_folder: str) -> None:
    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(folder / "clip"), letter_tokenizer(folder / "t5")
    transformer = FluxTransformer2DModel(in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
                                         pooled_projection_dim=32, axes_dims_rope=(4, 6, 6), guidance_embeds=True)  # fmt: skip
    text = T5Config(vocab_size=len(t5), d_model=32, d_ff=37, d_kv=8, num_layers=1, num_heads=4)
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=AutoencoderKL.from_pretrained(vae_folder), text_encoder=CLIPTextModel(text_config(clip, 32)),
        tokenizer=clip, text_encoder_2=T5EncoderModel(text), tokenizer_2=t5, transformer=transformer,
    ).save_pretrained(folder / "pipeline")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
