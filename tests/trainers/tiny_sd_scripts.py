"""Makes sd-scripts' own UNets of SD 1.x and SDXL as small as tiny_sd15.py's. Run before the script, with sd-scripts importable."""

from library import original_unet, sdxl_original_unet

original_unet.BLOCK_OUT_CHANNELS = (32, 64, 64, 64)
original_unet.TIMESTEP_INPUT_DIM, original_unet.TIME_EMBED_DIM = 32, 128
sdxl_original_unet.MODEL_CHANNELS, sdxl_original_unet.TIME_EMBED_DIM = 32, 128
whole = sdxl_original_unet.Transformer2DModel


class Transformer2DModel(whole):
    """One layer instead of up to ten."""

    def __init__(self, **sizes):
        super().__init__(**{**sizes, "num_transformer_layers": 1})


sdxl_original_unet.Transformer2DModel = Transformer2DModel
