"""Makes sd-scripts' own UNet of SD 1.x as small as tiny_sd15.py's. Run before the script, with sd-scripts importable."""

from library import original_unet

original_unet.BLOCK_OUT_CHANNELS = (32, 64, 64, 64)
original_unet.TIMESTEP_INPUT_DIM, original_unet.TIME_EMBED_DIM = 32, 128
