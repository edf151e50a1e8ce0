"""musubi-tuner's models, made small; and what their training needs on disk.

    python tests/trainers/tiny_musubi.py FAMILY FOLDER PHOTOS VAE

FOLDER gets random weights, a data set's TOML, and the data set's caches as musubi-tuner's own functions write them: latents, and
random text. Z-Image's latents are by the VAE given. Wan and Qwen-Image get a random VAE of musubi-tuner's own class, which
FOLDER/vae.safetensors keeps. Without arguments, only the sizes are changed: run it before the training script.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from musubi_tuner.qwen_image import qwen_image_model
from musubi_tuner.wan.configs import WAN_CONFIGS
from musubi_tuner.zimage import zimage_config, zimage_model

if not torch.cuda.is_available():
    # A default argument of its T5 encoder, which nothing here makes, asks for the GPU at import.
    torch.cuda.current_device = lambda: 0

from musubi_tuner.wan.modules.model import WanLayerNorm, WanModel

#: The width of the random VAEs, which are 96 wide.
VAE_DIM = 8
TASK = "t2v-1.3B"

zimage_config.DEFAULT_TRANSFORMER_DIM = 64
zimage_config.DEFAULT_TRANSFORMER_N_LAYERS = zimage_config.DEFAULT_TRANSFORMER_N_REFINER_LAYERS = 1
zimage_config.DEFAULT_TRANSFORMER_N_HEADS = zimage_config.DEFAULT_TRANSFORMER_N_KV_HEADS = 2
zimage_config.DEFAULT_TRANSFORMER_CAP_FEAT_DIM = 24
zimage_config.ROPE_AXES_DIMS = [8, 12, 12]
WAN_CONFIGS[TASK].update(dim=64, ffn_dim=64, freq_dim=32, num_heads=2, num_layers=1)
_qwen_image = qwen_image_model.QwenImageTransformer2DModel
qwen_image_model.QwenImageTransformer2DModel = lambda **sizes: _qwen_image(
    **{**sizes, "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6)}
)


def in_float32(module: torch.nn.Module, _: object) -> None:
    """What autocast to float32 does around a layer on a GPU, and does not do on a CPU."""
    module.float()


def init(self: WanModel, **sizes: Any) -> None:
    _init(self, **sizes)
    if not torch.cuda.is_available():
        norms = [module for module in self.modules() if isinstance(module, WanLayerNorm)]
        for part in (self.time_embedding, self.time_projection, self.head, *norms):
            part.register_forward_pre_hook(in_float32)


_init, WanModel.__init__ = WanModel.__init__, init


def z_image(folder: Path, vae_folder: str) -> tuple[torch.nn.Module, str, Callable[[list], None]]:
    from diffusers import AutoencoderKL
    from musubi_tuner.dataset.cache_io import save_text_encoder_output_cache_z_image
    from musubi_tuner.dataset.image_video_dataset import ARCHITECTURE_Z_IMAGE, save_latent_cache_z_image
    from musubi_tuner.zimage_cache_latents import preprocess_contents_zimage

    vae = AutoencoderKL.from_pretrained(vae_folder)

    def encode(batch: list) -> None:
        with torch.no_grad():
            latents = vae.encode(preprocess_contents_zimage(batch)).latent_dist.mean
        for item, latent in zip(batch, latents, strict=True):
            save_latent_cache_z_image(item, latent)
            save_text_encoder_output_cache_z_image(item, torch.randn(12, 24))

    return zimage_model.create_model("torch", False, torch.float32), ARCHITECTURE_Z_IMAGE, encode


def wan(folder: Path, _: str) -> tuple[torch.nn.Module, str, Callable[[list], None]]:
    from musubi_tuner.dataset.cache_io import save_text_encoder_output_cache_wan
    from musubi_tuner.dataset.image_video_dataset import ARCHITECTURE_WAN
    from musubi_tuner.wan.modules import vae as vaes
    from musubi_tuner.wan_cache_latents import encode_and_save_batch

    whole = vaes.WanVAE_
    vaes.WanVAE_ = lambda **sizes: whole(**{**sizes, "dim": VAE_DIM})
    own = whole(dim=VAE_DIM, z_dim=16, temperal_downsample=[False, True, True])
    save(own, folder / "vae.safetensors")
    vae = vaes.WanVAE(vae_path=str(folder / "vae.safetensors"), device=torch.device("cpu"), dtype=torch.bfloat16)

    def encode(batch: list) -> None:
        encode_and_save_batch(vae, None, False, batch)
        for item in batch:
            save_text_encoder_output_cache_wan(item, torch.randn(12, 4096))

    config = WAN_CONFIGS[TASK]
    names = ("dim", "eps", "ffn_dim", "freq_dim", "in_dim", "num_heads", "num_layers", "out_dim", "text_len")
    return WanModel(model_type="t2v", attn_mode="torch", **{name: config[name] for name in names}), ARCHITECTURE_WAN, encode


def qwen_image(folder: Path, _: str) -> tuple[torch.nn.Module, str, Callable[[list], None]]:
    from musubi_tuner.dataset.cache_io import save_text_encoder_output_cache_qwen_image
    from musubi_tuner.dataset.image_video_dataset import ARCHITECTURE_QWEN_IMAGE
    from musubi_tuner.qwen_image.qwen_image_autoencoder_kl import AutoencoderKLQwenImage
    from musubi_tuner.qwen_image_cache_latents import encode_and_save_batch

    vae = AutoencoderKLQwenImage(base_dim=VAE_DIM)
    save(vae, folder / "vae.safetensors")
    vae.eval()

    def encode(batch: list) -> None:
        encode_and_save_batch(vae, batch, False)
        for item in batch:
            save_text_encoder_output_cache_qwen_image(item, torch.randn(12, 24))

    return qwen_image_model.create_model("torch", False, False, False, False, torch.float32), ARCHITECTURE_QWEN_IMAGE, encode


FAMILIES = {"z_image": z_image, "wan": wan, "qwen_image": qwen_image}


def save(model: torch.nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().to(dtype).contiguous() for name, value in model.state_dict().items()}, path)


def main(family: str, folder: Path, photos: Path, vae_folder: str) -> None:
    from musubi_tuner import cache_latents
    from musubi_tuner.dataset import config_utils

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    made: Any = FAMILIES[family](folder, vae_folder)
    model, architecture, encode = made
    if any(parameter.is_meta for parameter in model.parameters()):
        model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    # Wan and Qwen-Image are trained in bfloat16, and Wan takes the dtype of the file.
    save(model, folder / "dit.safetensors", torch.float32 if family == "z_image" else torch.bfloat16)
    for at, photo in enumerate(sorted(photos.glob("*.png"))):
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / photo.name).write_bytes(photo.read_bytes())
        (folder / "images" / f"{photo.stem}.txt").write_text(f"a photo of person {at}")
    (folder / "data.toml").write_text(
        f'[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\nbatch_size = 2\n[[datasets]]\nimage_directory = "{folder}/images"\n'
        f'cache_directory = "{folder}/cache"\n'
    )
    generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
    blueprint = generator.generate(
        config_utils.load_user_config(str(folder / "data.toml")), Namespace(debug_dataset=False), architecture=architecture
    )
    datasets = config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group).datasets
    cache_latents.encode_datasets(datasets, encode, Namespace(num_workers=1, skip_existing=False, batch_size=None, keep_cache=False))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
