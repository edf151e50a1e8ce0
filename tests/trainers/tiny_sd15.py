"""A tiny random SD 1.5 as a diffusers folder, with the tokenizer beside it under the name that sd-scripts caches it by.

python tests/trainers/tiny_sd15.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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


def main(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "tokenizers/openai_clip-vit-large-patch14")
    # sd-scripts takes only 768 for SD 1.x.
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, eos_token_id=len(tokenizer) - 1)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=CHANNELS, layers_per_block=2, cross_attention_dim=768, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    four = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215,
                        down_block_types=four[0], up_block_types=four[1])  # fmt: skip
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "pipeline")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
