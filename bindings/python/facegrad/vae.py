"""The VAE decoder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from . import _abi
from ._compile import eager
from ._library import Context, Owner, call, config_text, library, read_text
from ._tensor import View

#: A file or folder, a diffusers VAE, or the tensors of one by name.
VaeSource: TypeAlias = "str | os.PathLike[str] | torch.nn.Module | Mapping[str, torch.Tensor] | Vae"

#: What belongs to an encoder, in any dialect of names.
_ENCODER = ("encoder.", "quant_conv.", "taesd_encoder.")


class Vae(Owner):
    """The frozen decoder of a VAE: AutoencoderKL (SD1.5, SDXL, SD3, FLUX.1, …), FLUX.2, Qwen-Image and Wan 2.1 (one frame),
    the TAESD family, or TorchScript. A TorchScript file is a program: loading it runs code that is in it, so it is loaded
    only with ``config={"family": "torchscript", "latent_channels": …}``.

    Args:
        source: a safetensors, ``.pth`` or TorchScript file, a single-file checkpoint, a diffusers folder; or a diffusers
            module (``pipe.vae``), or its tensors by name. Weights in memory that have ``dtype`` and are on ``device`` are
            shared, not copied: they must not change while the decoder lives, which keeps them alive.
        device: ``cpu``, ``cuda`` or ``cuda:N``; default: that of a module's weights, else the CPU
        dtype: of weights and activations: ``f32``, ``bf16`` or ``f16`` (SDXL's own VAE overflows in it); default: that of a
            module's weights, else ``f32``
        recompute: ``none``, or ``blocks``: keep only the blocks' inputs for the backward pass and compute the rest again
        slicing: decode one sample at a time
        config: further keys of ``facegrad_vae_new``: ``family``, ``norm_num_groups``, ``latent_channels``, …
    """

    _kind = "vae"

    def __init__(
        self,
        source: VaeSource,
        *,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        recompute: str = "none",
        slicing: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        keys: dict[str, Any] = {"recompute": recompute, "slicing": slicing, **(config or {})}
        if isinstance(source, (str, bytes, os.PathLike)):
            self._context = Context.of(device or "cpu")
            text = config_text({"path": os.fsdecode(source), "dtype": dtype or "f32", **keys})
            super().__init__(lambda out: call("vae_new", self._context._handle, text, out))
        else:
            tensors, about = _weights(source)
            some = next(iter(tensors.values()))
            self._context = Context.of(device or some.device)
            names = {torch.bfloat16: "bf16", torch.float16: "f16"}
            if about:
                keys.setdefault("model_config", about)
            text = config_text({"dtype": dtype or names.get(some.dtype, "f32"), **keys})
            # Views of the weights, which live as long as the decoder uses them.
            self._views = {name: View(name, tensor) for name, tensor in tensors.items()}
            count = len(self._views)
            labels = (_abi.Text * count)(*(name.encode() for name in self._views))
            structs = (_abi.Tensor * count)(*(view.struct for view in self._views.values()))
            super().__init__(lambda out: call("vae_new_from_tensors", self._context._handle, labels, structs, count, text, out))
        info = json.loads(read_text(library.facegrad_vae_info, self._handle))
        #: One line: family, channels, scale, dtype, device.
        self.description: str = info["description"]
        #: Channels of the latent.
        self.channels: int = info["channels"]
        #: Image pixels per latent pixel.
        self.scale_factor: int = info["scale_factor"]
        #: How the latents of the VAE's diffusion models relate to its own, as a loss's config takes it; None: not told.
        self.latent_format: str | dict[str, Any] | None = info["latent_format"]

    @eager
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """``[B,C,h,w]``, as the VAE takes them → ``[B,3,s·h,s·w]`` float32, RGB in units of [0, 1], not clamped, without a gradient."""
        size = [self.scale_factor * n for n in latents.shape[-2:]]
        out = torch.empty(latents.shape[0] if latents.dim() else 0, 3, *size, device=latents.device)
        view, image = View("latents", latents), View("images", out)
        call("vae_decode", self._handle, view.pointer, image.pointer, self._context.stream)
        return out


def _weights(source: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The decoder's tensors, and what the module's config tells of them."""
    about: dict[str, Any] = {}
    if isinstance(source, torch.nn.Module):
        config = getattr(source, "config", None)
        if isinstance(config, Mapping):
            # Only what JSON can carry: the rest says nothing about weights.
            plain = (bool, int, float, str, list, tuple, type(None))
            about = {key: value for key, value in config.items() if isinstance(value, plain)}
            about["_class_name"] = type(source).__name__
        source = source.state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(f"vae: expected a path, a VAE module, its tensors by name or a Vae, got {type(source).__name__}")
    tensors = {name: tensor for name, tensor in source.items() if not name.startswith(_ENCODER)}
    if not tensors:
        raise ValueError("vae: the module has no decoder weights")
    return tensors, about
