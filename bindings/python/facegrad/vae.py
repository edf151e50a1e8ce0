"""The VAE decoder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch

from . import _abi
from ._compile import eager
from ._library import Context, FacegradError, Frozen, call, config_text, dtype_name, library, read_text
from ._tensor import View
from .host_decoder import DECODE, VJP, HostDecoder
from .host_vae import config_of, expected_range, is_duck, raw
from .shared_weights import Refusal, shared_weights, unwrapped

log = logging.getLogger("facegrad")

#: A file or folder, a VAE in memory, the tensors of one by name, or a function from a model's latents to images.
VaeSource: TypeAlias = (
    "str | os.PathLike[str] | torch.nn.Module | Mapping[str, torch.Tensor] | Callable[[torch.Tensor], torch.Tensor] | Vae"
)

#: Statuses by which the library says that weights are none of its decoders'.
_ANOTHER = ("unsupported", "weights do not fit the network", "wrong dtype", "wrong device")


class Vae(Frozen):
    """The frozen decoder of a VAE. Any thread may use it; calls run one after the other.

    The library has decoders of its own for AutoencoderKL (SD1.5, SDXL, SD3, FLUX.1, …), FLUX.2, Qwen-Image, Wan 2.1 and 2.2
    (one frame), HunyuanImage 2.1, Sana's DC-AE, the TAESD family, and TorchScript. All but TorchScript allow windows. A
    TorchScript file is a program: loading it runs code that is in it. It is therefore loaded only with
    ``config={"family": "torchscript", "latent_channels": …}``.

    Any other VAE in memory decodes with its own code and the host's autograd, and so does any function. The same holds for a
    VAE whose weights cannot be shared (offloaded, quantised). One line in the log says so, and why.

    Args:
        source: one of these:

            - a safetensors, ``.pth`` or TorchScript file, a single-file checkpoint, or a diffusers folder
            - a module (``pipe.vae``), which may be compiled, in ``DataParallel``, or of a class derived from a known one; or
              its tensors by name. Weights that have ``dtype`` and are on ``device`` are shared and not copied: the decoder
              keeps them alive, and they must not change while it exists
            - any object with ``decode`` and ``config``
            - a function from the model's latents ``[B,C,h,w]``, unpacked and float32, to images ``[B,3,H,W]``, RGB in [0, 1].
              For a model of pixels this is the identity or a scale
        device: ``cpu``, ``cuda`` or ``cuda:N``; default: that of a module's weights, else the CPU
        dtype: the precision of weights and activations: ``f32``, ``bf16`` or ``f16``, in which SDXL's own VAE overflows;
            default: that of a module's weights, else ``f32``
        recompute: ``none``, or ``blocks`` to keep only the blocks' inputs for the backward pass and compute the rest again
        slicing: decode one sample at a time
        config: further keys of ``facegrad_vae_new``: ``family``, ``norm_num_groups``, ``latent_channels``, …

    Attributes:
        native: whether the library decodes; False: the host does
    """

    _kind = "vae"

    def __init__(
        self,
        source: VaeSource,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        recompute: str = "none",
        slicing: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        keys: dict[str, Any] = {"recompute": recompute, "slicing": slicing, **(config or {})}
        dtype = None if dtype is None else dtype_name(dtype)
        self._host: HostDecoder | None = None
        if isinstance(source, (str, bytes, os.PathLike)):
            self._context = Context.of(device or "cpu")
            text = config_text({"path": os.fsdecode(source), "dtype": dtype or "f32", **keys})
            super().__init__(lambda out: call("vae_new", self._context._handle, text, out))
        else:
            why = self._share(source, device, dtype, keys)
            if why is not None:
                given = {"dtype": dtype, "recompute": None if recompute == "none" else recompute, **(config or {})}
                self._call_back(source, device, slicing, why, {key: value for key, value in given.items() if value is not None})
        self.native = self._host is None
        info = json.loads(read_text(library.facegrad_vae_info, self._handle))
        #: One line: family, channels, scale, dtype, device.
        self.description: str = info["description"]
        #: Channels of the latent; 0 where a function of the host does not tell.
        self.channels: int = info["channels"]
        #: Image pixels per latent pixel; 0 where a function of the host does not tell.
        self.scale_factor: int = info["scale_factor"]
        #: How the latents of the VAE's diffusion models relate to its own, as a loss's config takes it; None: not told.
        self.latent_format: str | dict[str, Any] | None = info["latent_format"]

    def _share(self, source: Any, device: Any, dtype: str | None, keys: dict[str, Any]) -> str | None:
        """Builds the library's decoder over a host's weights. Returns the reason where that is not possible."""
        if not isinstance(source, (torch.nn.Module, Mapping)):
            if is_duck(source) or callable(source):
                return "it is no module"
            hint = ""
            if callable(getattr(source, "decode", None)):
                hint = (
                    ", which has `decode` and no `config` that tells the latents' scale; give a function: lambda z: (vae.decode(z) + 1) / 2"
                )
            elif isinstance(getattr(source, "vae", None), torch.nn.Module):
                hint = "; give its `vae`"
            raise TypeError(
                "vae: expected a path, a VAE module, its tensors by name, a function from latents to images or a Vae, got "
                f"{type(source).__name__}{hint}"
            )
        try:
            tensors, about = shared_weights(source)
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
        except Refusal as refusal:
            if isinstance(source, Mapping):
                raise ValueError(f"vae: {refusal}") from None
            return str(refusal)
        except FacegradError as error:
            if isinstance(source, Mapping) or error.name not in _ANOTHER:
                raise
            return str(error)
        return None

    def _call_back(self, source: Any, device: Any, slicing: bool, why: str, given: dict[str, Any]) -> None:
        """Makes the library call the host's decoder."""
        if given:
            raise ValueError(
                f"vae: {', '.join(given)}: for the library's own decoders; {type(source).__name__} is decoded by its own code, because "
                f"{why}. Leave them out, and set up the module itself"
            )
        self._signed = duck = is_duck(source)
        self._host = HostDecoder(partial(raw, source) if duck else expected_range(source))
        if device is None:
            parameters = source.parameters() if isinstance(source, torch.nn.Module) else ()
            device = next((p.device for p in parameters if p.device.type != "meta"), "cpu")
        self._context = Context.of(device)
        channels = config_of(source, "latent_channels") or config_of(source, "z_dim") or 0
        config: dict[str, Any] = {"latent_channels": channels if isinstance(channels, int) else 0, "slicing": slicing}
        config |= {"image_range": "signed", "latent_format": _format(source)} if duck else {"image_range": "unit", "latent_format": "none"}
        text = json.dumps(config).encode()
        key = self._host.key
        super().__init__(lambda out: call("vae_new_from_functions", self._context._handle, DECODE, VJP, key, text, out))
        name = (
            type(unwrapped(source)).__name__ if isinstance(source, torch.nn.Module) else getattr(source, "__name__", type(source).__name__)
        )
        log.info("vae: %s is decoded by the host's own code and autograd, because %s; windows are not available", name, why)
        if duck and all(config_of(source, key) is None for key in ("scaling_factor", "latents_mean")):
            log.warning("vae: the config of %s names no scaling_factor, so the model's latents count as the VAE's own", name)

    @property
    def device(self) -> torch.device:
        """The device on which latents are expected."""
        return self._context.device

    def _guard(self) -> AbstractContextManager[None]:
        """Wraps a call that may decode, and raises the host decoder's own exception where it had one."""
        return self._host.reraise() if self._host is not None else nullcontext()

    @eager
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes the VAE's own latents ``[B,C,h,w]`` to ``[B,3,s·h,s·w]``, RGB, nominally in [0, 1], float32, not clamped, without
        a gradient. s is ``scale_factor``."""
        if self._host is not None:
            with torch.no_grad():
                decoded = self._host.run(latents.float())
            return decoded / 2 + 0.5 if self._signed else decoded
        size = [self.scale_factor * n for n in latents.shape[-2:]]
        out = torch.empty(latents.shape[0] if latents.dim() else 0, 3, *size, device=latents.device)
        view, image = View("latents", latents), View("images", out)
        call("vae_decode", self._handle, view.pointer, image.pointer, self._context.stream)
        return out


def _format(vae: Any) -> str | dict[str, Any]:
    """How a model's latents relate to those of a VAE, by the VAE's config."""
    numbers = {
        "scale": config_of(vae, "scaling_factor") or 1.0, "shift": config_of(vae, "shift_factor") or 0.0,
        "mean": config_of(vae, "latents_mean"), "std": config_of(vae, "latents_std"),
    }  # fmt: skip
    custom = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in numbers.items()}
    return {"custom": {key: list(value) if isinstance(value, tuple) else value for key, value in custom.items() if value is not None}}
