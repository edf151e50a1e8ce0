"""Prepares a module's weights for the library to share: removes what a trainer wraps around them, or says why they cannot be
shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .host_vae import class_names

#: Prefixes of an encoder's tensors, in all dialects of names.
_ENCODER = ("encoder.", "quant_conv.", "taesd_encoder.")

#: Parts of names that torch's own wrappers insert: torch.compile, DataParallel and DDP, FSDP, activation checkpointing.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

#: diffusers' classes whose decoders the library has.
KNOWN = (
    "AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "AutoencoderKLWan", "AutoencoderKLHunyuanImage", "AutoencoderDC",
    "AutoencoderTiny",
)  # fmt: skip

#: What of a VAE's class decodes.
_DECODING = ("decode", "_decode")

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Refusal(Exception):
    """Weights cannot be shared. The text is the reason, written as the end of a sentence with `because`."""


def unwrapped(module: Any) -> Any:
    """The module inside the wrappers of torch.compile, DataParallel and DDP."""
    for _ in range(8):
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
            inner = module.module
        if inner is None:
            return module
        module = inner
    return module


def shared_weights(source: torch.nn.Module | Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The decoder's tensors under the names of the module itself, and the entries of its config.

    Raises:
        Refusal: the weights are elsewhere (offloaded, on ``meta``), are quantised, or are not those of a decoder
    """
    about: dict[str, Any] = {}
    if isinstance(source, torch.nn.Module):
        module = unwrapped(source)
        config = getattr(module, "config", None)
        if isinstance(config, Mapping):
            # Only entries that JSON can represent. The others do not describe weights.
            plain = (bool, int, float, str, list, tuple, type(None))
            about = {key: value for key, value in config.items() if isinstance(value, plain)}
            known = next((name for name in class_names(module) if name in KNOWN), None)
            if known is None:
                raise Refusal(f"its class {type(module).__name__} is none that the library has a decoder for")
            changed = _changed(module, known)
            if changed is not None:
                raise Refusal(f"{changed}, so it may decode otherwise than a {known}")
            about["_class_name"] = known
        state: Mapping[str, Any] = module.state_dict()
    else:
        state = source
    named = {_bare(name): tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    tensors = {name: tensor for name, tensor in named.items() if not name.startswith(_ENCODER)}
    if not tensors:
        below = [f"{name} (a {type(value).__name__})" for name, value in state.items()]
        listed = ", ".join((list(named) or below)[:6]) or "nothing"
        raise Refusal(f"it has no decoder weights: it holds {listed}")
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise Refusal(f"its weights are offloaded ({name} is on the meta device)")
        plain_tensor = type(tensor) in (torch.Tensor, torch.nn.Parameter)
        if not plain_tensor or not (tensor.dtype in _FLOATS or tensor.dim() == 0):
            kind = tensor.dtype if plain_tensor else type(tensor).__name__
            raise Refusal(f"its weights are quantised ({name} is {kind}; float32, bfloat16 and float16 can be shared)")
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype in _FLOATS}, about


def _changed(module: torch.nn.Module, known: str) -> str | None:
    """What makes a module decode otherwise than its known class does; None: nothing. torch.compile and offloading change
    nothing."""
    for one in type(module).__mro__:
        if one.__name__ == known:
            break
        for name in _DECODING:
            if name in vars(one):
                return f"its class {one.__name__} has a {name} of its own"
    for name in _DECODING:
        own = vars(module).get(name)
        original = getattr(own, "_torchdynamo_orig_callable", own)
        if own is not None and getattr(original, "__func__", None) is not getattr(type(module), name, None):
            return f"its {name} was replaced"
    for name, part in module.named_modules():
        if name.startswith(_ENCODER) or name in ("encoder", "quant_conv"):
            continue
        if (part._forward_hooks or part._forward_pre_hooks) and part is not module:
            return f"{name} has forward hooks"
        own = vars(part).get("forward")
        if own is not None and not hasattr(own, "_torchdynamo_orig_callable") and not hasattr(part, "_hf_hook"):
            return f"the forward of {name} was replaced"
    return None


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
