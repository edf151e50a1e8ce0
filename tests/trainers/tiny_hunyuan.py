"""sd-scripts' HunyuanImage, made small: its transformer, its VAE, and its two text encoders.

    python tests/trainers/tiny_hunyuan.py CHECKOUT FOLDER

FOLDER gets the files of random weights that the training script loads. Without arguments, only the sizes are changed, and the
tokenizers, which the script asks the hub for, are made here: run it before the script, with sd-scripts importable.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

#: Of the transformer, and of the text encoder's states. The width of byT5's states stands in the script.
WIDTH, HEADS, TEXT, BYT5 = 48, 2, 32, 1472


def narrow(made: Any, *_: Any, **options: Any) -> torch.nn.Module:
    return made(WIDTH, HEADS, **options)


def in_float32(module: torch.nn.Module, _: object) -> None:
    """What autocast does with the weights of a layer norm on a GPU, and does not do on a CPU."""
    module.float()


def shrink_transformer(text: int = TEXT, byt5: int = BYT5, autocast: bool = False) -> None:
    """One block of each kind, of a small width. The sizes stand in the constructor: 20 and 40 blocks of width 3584.

    Args:
        autocast: layer norms take other dtypes than their own, as they do under autocast on a GPU
    """
    from library import hunyuan_image_models as models

    for name in ("MMDoubleStreamBlock", "MMSingleStreamBlock"):
        setattr(models, name, partial(narrow, getattr(models, name)))
    whole = {name: getattr(models, name) for name in ("ByT5Mapper", "PatchEmbed2D", "SingleTokenRefiner", "TimestepEmbedder", "FinalLayer")}
    models.ByT5Mapper = lambda **_: whole["ByT5Mapper"](in_dim=byt5, out_dim=24, hidden_dim=24, out_dim1=WIDTH, use_residual=False)
    models.PatchEmbed2D = lambda patch, channels, _: whole["PatchEmbed2D"](patch, channels, WIDTH)
    models.SingleTokenRefiner = lambda *_, depth: whole["SingleTokenRefiner"](text, WIDTH, HEADS, depth=1)
    models.TimestepEmbedder = lambda _, *rest: whole["TimestepEmbedder"](WIDTH, *rest)
    models.FinalLayer = lambda _, *rest: whole["FinalLayer"](WIDTH, *rest)
    models.range = lambda count: range(1)
    made = models.HYImageDiffusionTransformer
    before = made.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        before(self, *args, **options)
        self.hidden_size, self.heads_num, self.rope_dim_list = WIDTH, HEADS, [12, 12]
        for module in self.modules():
            if autocast and isinstance(module, torch.nn.LayerNorm):
                module.register_forward_pre_hook(in_float32)

    made.__init__ = init


def shrink_vae() -> None:
    """32 to 128 channels instead of 128 to 1024."""
    from library import hunyuan_image_vae

    for name, channels in (("Encoder", (32, 32, 32, 32, 64, 128)), ("Decoder", (128, 64, 32, 32, 32, 32))):
        made = getattr(hunyuan_image_vae, name)
        setattr(hunyuan_image_vae, name, lambda made=made, channels=channels, **sizes: made(**{**sizes, "block_out_channels": channels}))


def shrink_text() -> None:
    """Few narrow layers, and tokenizers of bytes."""
    from library import hunyuan_image_text_encoder as encoders
    from library import strategy_hunyuan_image as strategy
    from tiny import byte_tokenizer
    from transformers import AutoTokenizer, ByT5Tokenizer

    small = {"hidden_size": TEXT, "intermediate_size": TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 4, "vocab_size": 512,
             "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}}  # fmt: skip
    sight = {"depth": 1, "fullatt_block_indexes": [0], "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": TEXT}
    qwen, t5 = encoders.Qwen2_5_VLConfig, encoders.T5Config

    def qwen_config(**given: Any) -> Any:
        words = {**given["text_config"], **small, "layer_types": ["full_attention"] * small["num_hidden_layers"]}
        return qwen(**{**given, **small, "text_config": words, "vision_config": {**given["vision_config"], **sight}})

    encoders.Qwen2_5_VLConfig = qwen_config
    encoders.T5Config = lambda **given: t5(**{**given, "d_ff": 32, "d_kv": 16, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1})
    bytes_of = byte_tokenizer(Path(tempfile.mkdtemp()), "<|im_start|>", "<|im_end|>", "<|endoftext|>")
    strategy.Qwen2Tokenizer.from_pretrained = classmethod(lambda cls, *_, **__: bytes_of)
    AutoTokenizer.from_pretrained = classmethod(lambda cls, *_, **__: ByT5Tokenizer(extra_ids=125))


def small() -> None:
    shrink_transformer(autocast=not torch.cuda.is_available())
    shrink_vae()
    shrink_text()


def main(folder: Path) -> None:
    from library import hunyuan_image_models, hunyuan_image_vae
    from library import hunyuan_image_text_encoder as encoders
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
        save_file({key: value.detach().to(dtype).contiguous() for key, value in weights.items()}, folder / f"{name}.safetensors")

    # What the loaders read of their configurations, with weights that are there.
    kept: list[torch.nn.Module] = []

    def keep(made: Any, config: Any) -> Any:
        kept.append(made(config))
        raise StopIteration

    for kind, load in (
        ("Qwen2_5_VLForConditionalGeneration", encoders.load_qwen2_5_vl),
        ("T5ForConditionalGeneration", encoders.load_byt5),
    ):
        made = getattr(encoders, kind)
        made._from_config = partial(keep, made)
        encoders.init_empty_weights = torch.no_grad
        try:
            load("", None, "cpu")
        except StopIteration:
            pass
    qwen, byt5 = kept[0], kept[1].get_encoder()
    encoders.add_special_token(AutoTokenizer.from_pretrained(""), byt5)
    published = {
        key.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1): value
        for key, value in qwen.state_dict().items()
    }
    save("qwen", published, torch.bfloat16)
    words = byt5.state_dict()
    words["shared.weight"] = words.pop("embed_tokens.weight")
    save("byt5", {key if key == "shared.weight" else f"encoder.{key}": value for key, value in words.items()}, torch.float16)
    save("vae", hunyuan_image_vae.HunyuanVAE2D().state_dict(), torch.float16)
    model = hunyuan_image_models.HYImageDiffusionTransformer()
    for parameter in model.parameters():  # such models start with zeros at their end
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    save("dit", model.state_dict(), torch.float32)


if __name__ == "__main__":
    sys.path[:0] = sys.argv[1:2]
    small()
    main(Path(sys.argv[2]))
elif __name__ == "<run_path>":
    small()
