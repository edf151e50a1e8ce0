"""A tiny random SD 1.5, or SDXL, as a diffusers folder, with the tokenizers beside it under the names that sd-scripts caches them by.

python tests/trainers/tiny_sd15.py FOLDER [sdxl]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

#: Channels of the four levels; sd-scripts' own UNet is told them by tiny_sd_scripts.py.
CHANNELS = (32, 64, 64, 64)


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}))
    return CLIPTokenizer.from_pretrained(folder)


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int = 2, **options: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        eos_token_id=len(tokenizer) - 1,
        **options,
    )


def tiny_vae(scaling_factor: float) -> AutoencoderKL:
    four = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(latent_channels=4, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=scaling_factor,
                         down_block_types=four[0], up_block_types=four[1])  # fmt: skip


def sd15(folder: Path, scheduler: DDPMScheduler) -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer(folder / "tokenizers/openai_clip-vit-large-patch14")
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=CHANNELS, layers_per_block=2, cross_attention_dim=768, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    # sd-scripts takes only 768 for SD 1.x.
    return StableDiffusionPipeline(
        vae=tiny_vae(0.18215), text_encoder=CLIPTextModel(text_config(tokenizer, 768)), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(folder: Path, scheduler: DDPMScheduler) -> StableDiffusionXLPipeline:
    tokenizers = [
        clip_tokenizer(folder / "tokenizers" / name)
        for name in ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")
    ]
    # sd-scripts takes these widths of the text alone, and the first encoder's eleventh layer; tiny_sd_scripts.py tells it its own.
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(32, 64, 128), layers_per_block=2, cross_attention_dim=2048, attention_head_dim=(1, 1, 2), use_linear_projection=True,
        transformer_layers_per_block=1, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=tiny_vae(0.13025), text_encoder=CLIPTextModel(text_config(tokenizers[0], 768, layers=12)), tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], unet=unet,
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizers[1], 1280, projection_dim=1280)), scheduler=scheduler,
    )  # fmt: skip


def main(folder: Path, make=sd15) -> None:
    torch.manual_seed(0)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    make(folder, scheduler).save_pretrained(folder / "pipeline")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sdxl if "sdxl" in sys.argv[2:] else sd15)
