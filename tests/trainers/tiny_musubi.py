"""musubi-tuner's Z-Image, made small; and what its training needs on disk.

    python tests/trainers/tiny_musubi.py FOLDER VAE PHOTOS

FOLDER gets random weights, a data set's TOML, and the data set's caches as musubi-tuner's own functions write them: latents by the
VAE given, and random text. Without arguments, only the sizes are changed: run it before the training script.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import torch
from musubi_tuner.zimage import zimage_config, zimage_model

zimage_config.DEFAULT_TRANSFORMER_DIM = 64
zimage_config.DEFAULT_TRANSFORMER_N_LAYERS = zimage_config.DEFAULT_TRANSFORMER_N_REFINER_LAYERS = 1
zimage_config.DEFAULT_TRANSFORMER_N_HEADS = zimage_config.DEFAULT_TRANSFORMER_N_KV_HEADS = 2
zimage_config.DEFAULT_TRANSFORMER_CAP_FEAT_DIM = 24
zimage_config.ROPE_AXES_DIMS = [8, 12, 12]


def main(folder: Path, vae_folder: str, photos: Path) -> None:
    from diffusers import AutoencoderKL
    from musubi_tuner import cache_latents
    from musubi_tuner.dataset import config_utils
    from musubi_tuner.dataset.cache_io import save_text_encoder_output_cache_z_image
    from musubi_tuner.dataset.image_video_dataset import ARCHITECTURE_Z_IMAGE, save_latent_cache_z_image
    from musubi_tuner.zimage_cache_latents import preprocess_contents_zimage
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = zimage_model.create_model("torch", False, torch.float32).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_file(model.state_dict(), folder / "dit.safetensors")
    for at, photo in enumerate(sorted(photos.glob("*.png"))):
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / photo.name).write_bytes(photo.read_bytes())
        (folder / "images" / f"{photo.stem}.txt").write_text(f"a photo of person {at}")
    (folder / "data.toml").write_text(
        f'[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\nbatch_size = 2\n[[datasets]]\nimage_directory = "{folder}/images"\n'
        f'cache_directory = "{folder}/cache"\n'
    )
    generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
    blueprint = generator.generate(config_utils.load_user_config(str(folder / "data.toml")), Namespace(debug_dataset=False), architecture=ARCHITECTURE_Z_IMAGE)
    datasets = config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group).datasets
    vae = AutoencoderKL.from_pretrained(vae_folder)

    def encode(batch) -> None:
        with torch.no_grad():
            latents = vae.encode(preprocess_contents_zimage(batch)).latent_dist.mean
        for item, latent in zip(batch, latents, strict=True):
            save_latent_cache_z_image(item, latent)
            save_text_encoder_output_cache_z_image(item, torch.randn(12, 24))

    cache_latents.encode_datasets(datasets, encode, Namespace(num_workers=1, skip_existing=False, batch_size=None, keep_cache=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
