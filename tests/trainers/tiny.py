"""Tiny random pipelines of diffusers' own tests, saved as a DreamBooth script loads them.

    python tests/trainers/tiny.py CHECKOUT_OF_DIFFUSERS FAMILY FOLDER

The components are what the checkout's tests call ``get_dummy_components``; the tokenizers those load from the hub are made
here instead: bytes and a handful of special tokens.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import torch

#: family → module of the checkout's tests, and the pipeline that has the components
FAMILIES = {
    "sd": ("stable_diffusion.test_stable_diffusion", "StableDiffusionPipeline"),
    "sdxl": ("stable_diffusion_xl.test_stable_diffusion_xl", "StableDiffusionXLPipeline"),
    "sd3": ("stable_diffusion_3.test_pipeline_stable_diffusion_3", "StableDiffusion3Pipeline"),
    "flux": ("flux.test_pipeline_flux", "FluxPipeline"),
    "flux_kontext": ("flux.test_pipeline_flux_kontext", "FluxKontextPipeline"),
    "flux2": ("flux2.test_pipeline_flux2", "Flux2Pipeline"),
    "flux2_klein": ("flux2.test_pipeline_flux2_klein", "Flux2KleinPipeline"),
    "hidream": ("hidream_image.test_pipeline_hidream", "HiDreamImagePipeline"),
    "lumina2": ("lumina2.test_pipeline_lumina2", "Lumina2Pipeline"),
    "qwen_image": ("qwenimage.test_qwenimage", "QwenImagePipeline"),
    "sana": ("sana.test_sana", "SanaPipeline"),
    "z_image": ("z_image.test_z_image", "ZImagePipeline"),
    "krea2": ("krea2.test_krea2", "Krea2Pipeline"),
    "ideogram4": ("ideogram4.test_ideogram4", "Ideogram4Pipeline"),
}

#: What is too small in a family's components for its script: class → arguments.
_QWEN_VAE = {"z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
LARGER = {
    "qwen_image": {"QwenImageTransformer2DModel": {"in_channels": 64, "out_channels": 16}, "AutoencoderKLQwenImage": _QWEN_VAE},
    "krea2": {"Krea2Transformer2DModel": {"in_channels": 64}, "AutoencoderKLQwenImage": _QWEN_VAE},
    "hidream": {"HiDreamImageTransformer2DModel": {"in_channels": 16, "out_channels": 16}, "AutoencoderKL": {"latent_channels": 16}},
    "sana": {"Gemma2Config": {"vocab_size": 512}},
}

SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<bos>",
    "<eos>",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
]
CHAT = "{% for m in messages %}<|im_start|>{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}<|im_end|>{% endfor %}"


def byte_tokenizer(folder: Path, start: str, end: str, pad: str) -> Any:
    """A tokenizer of bytes, saved to a folder and loaded from there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: at for at, token in enumerate(SPECIAL + letters)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocab[start]), (end, vocab[end])]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=start, eos_token=end, pad_token=pad, unk_token="<unk>", model_max_length=77
    )
    made.chat_template = CHAT
    made.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def letter_tokenizer(folder: Path) -> Any:
    """A T5 tokenizer of letters, as sentencepiece's unigram model has them."""
    from transformers import T5TokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    made = T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)], extra_ids=0
    )
    made.save_pretrained(folder)
    return made


def offline(folder: Path) -> None:
    """What the tests ask the hub for is made here."""
    import transformers

    clip = byte_tokenizer(folder / "clip", "<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
    t5, llama_tokens = letter_tokenizer(folder / "t5"), byte_tokenizer(folder / "llama", "<s>", "</s>", "<pad>")
    qwen = byte_tokenizer(folder / "qwen", "<|im_start|>", "<|endoftext|>", "<|endoftext|>")
    mistral = byte_tokenizer(folder / "mistral", "<s>", "</s>", "<pad>")
    kinds = {"clip": clip, "t5": t5, "gemma": llama_tokens, "Llama": llama_tokens, "Qwen": qwen}

    def load(cls: Any, name: Any, *args: Any, _before: Any, **options: Any) -> Any:
        for part, made in kinds.items():
            if str(name).startswith("hf-internal-testing") and part in str(name):
                return made
        return _before.__func__(cls, name, *args, **options)

    for name in (
        "CLIPTokenizer",
        "AutoTokenizer",
        "Qwen2Tokenizer",
        "Qwen2TokenizerFast",
        "GemmaTokenizer",
        "GemmaTokenizerFast",
        "T5TokenizerFast",
    ):
        one = getattr(transformers, name, None)
        if one is not None:
            one.from_pretrained = classmethod(functools.partial(load, _before=one.from_pretrained))
    pixtral = transformers.PixtralProcessor(image_processor=transformers.PixtralImageProcessor(), tokenizer=mistral, chat_template=CHAT)
    transformers.AutoProcessor.from_pretrained = classmethod(lambda cls, *a, **o: pixtral)
    t5_config = transformers.T5Config(vocab_size=1103, d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0)
    transformers.AutoConfig.from_pretrained = classmethod(lambda cls, *a, **o: t5_config)
    llama = transformers.LlamaConfig(vocab_size=1000, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    transformers.LlamaForCausalLM.from_pretrained = classmethod(lambda cls, *a, **o: transformers.LlamaForCausalLM(llama))


def _larger(made: Any, arguments: dict[str, Any], **given: Any) -> Any:
    return made(**{**given, **arguments})


def build(checkout: Path, family: str, folder: Path) -> None:
    """Saves a family's tiny pipeline."""
    import diffusers

    sys.path.insert(0, str(checkout))
    module_name, pipeline = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    offline(folder / "tokenizers")
    torch.manual_seed(0)
    module = importlib.import_module(f"tests.pipelines.{module_name}")
    for name, arguments in LARGER.get(family, {}).items():
        setattr(module, name, functools.partial(_larger, getattr(module, name), arguments))
    makers = [
        one
        for _, one in inspect.getmembers(module, inspect.isclass)
        if one.__module__ == module.__name__ and hasattr(one, "get_dummy_components")
    ]
    components = makers[0]().get_dummy_components()
    getattr(diffusers, pipeline)(**components).save_pretrained(folder / "pipeline")


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
