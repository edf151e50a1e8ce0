"""Nodes that give a graph what a user's files would: tiny random networks, latents, pictures. And one that keeps values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from conftest import ASSETS, portrait
from safetensors.torch import load_file

KEPT: dict[str, Any] = {}
LATENT = 8  # side of the latents


def model(kind: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """A UNet of SD1.5's architecture with 32 channels: random, the same at every call."""
    state = torch.get_rng_state()
    torch.manual_seed(7)
    unet = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2],
        "transformer_depth": [1, 1], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1], "context_dim": 16,
        "use_spatial_transformer": True, "use_linear_in_transformer": False, "adm_in_channels": None, "num_classes": None, "legacy": False,
    }  # fmt: skip
    config = comfy.supported_models.SD15(unet)
    config.unet_config |= {"num_heads": 4, "num_head_channels": -1}
    config.set_inference_dtype(torch.float32, None)
    net = comfy.model_base.BaseModel(config, getattr(comfy.model_base.ModelType, kind), device=torch.device("cpu"))
    # ComfyUI's layers start empty, and a UNet's last layer at zero.
    for name, parameter in net.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 0
        parameter.data = torch.randn_like(parameter) * (fan**-0.5 if fan else 0.02)
        if fan == 0 and name.endswith("weight"):
            parameter.data += 1
    torch.set_rng_state(state)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(net, cpu, cpu)
    patcher.cached_patcher_init = (model, (kind,))
    return patcher


class Pictures(comfy.latent_formats.LatentFormat):
    """Latents that are pictures of half the size, RGB from -1 to 1."""

    latent_channels = 3


def as_latent(picture: torch.Tensor) -> torch.Tensor:
    """IMAGE `[B,H,W,3]` → the latent of `picture_vae`."""
    return torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 2) * 2 - 1


class Painter(torch.nn.Module):
    """A network that always paints one drawn person, plus what a linear layer adds to it: nothing before it is trained."""

    def __init__(self, device: Any = None, operations: Any = None, dtype: Any = None, **_: Any) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.picture = torch.nn.Buffer(as_latent(portrait(5_000_000))[0], persistent=False)
        self.more = operations.Linear(16, self.picture.numel(), bias=False, device=device, dtype=torch.float32)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        x0 = self.picture + self.more(torch.ones(1, 16, dtype=x.dtype)).view(self.picture.shape)
        # The velocity of flow matching; ComfyUI counts its time in thousandths.
        return (x - x0) / (timesteps.view(-1, 1, 1, 1) / 1000)


def painter(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    config = comfy.supported_models.SD15({"image_size": 32, "use_linear_in_transformer": False, "adm_in_channels": None})
    config.latent_format = Pictures()
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    net = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW, device=cpu, unet_model=Painter)
    torch.nn.init.zeros_(net.diffusion_model.more.weight)
    patcher = comfy.model_patcher.ModelPatcher(net, cpu, cpu)
    patcher.cached_patcher_init = (painter, ())
    return patcher


def picture_vae() -> Any:
    """The demo's decoder for such latents, which is exact."""
    weights = load_file(ASSETS / "vae.safetensors")
    return SimpleNamespace(first_stage_model=SimpleNamespace(state_dict=lambda: weights))


def vae() -> comfy.sd.VAE:
    """AutoencoderKL of SD's architecture with 32 channels: random."""
    state = torch.get_rng_state()
    torch.manual_seed(8)
    shape = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    weights = {}
    for name, tensor in AutoencoderKL(ddconfig=shape, embed_dim=4).state_dict().items():
        fan = tensor[0].numel() if tensor.ndim > 1 else 0
        weights[name] = torch.randn(tensor.shape) * (fan**-0.5 if fan else 0.02) + float(fan == 0 and name.endswith("weight"))
    made = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": shape, "embed_dim": 4}})
    torch.set_rng_state(state)
    return made


def node(returns: str, inputs: dict[str, Any], function: Any) -> type:
    """A node class around a function."""

    class Node:
        RETURN_TYPES = (returns,)
        FUNCTION = "run"
        CATEGORY = "tests"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": inputs}

        def run(self, **given: Any) -> tuple[Any]:
            return (function(**given),)

    return Node


class Anything(str):
    """A socket type that every link fits."""

    def __ne__(self, other: object) -> bool:
        return False


class Keep:
    """Catches a value under a name."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (Anything("*"), {}), "name": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")

    def run(self, value: Any, name: str) -> dict[str, Any]:
        KEPT[name] = value
        return {"result": ()}


def latents(count: int, seed: int, width: int) -> dict[str, torch.Tensor]:
    """Random ones, or all 0 for seed 0."""
    noise = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(count, 4, LATENT, width, generator=noise) * min(seed, 1)}


def conditioning(count: int) -> list[Any]:
    noise = torch.Generator().manual_seed(9)
    return [[torch.randn(1, 5, 16, generator=noise), {}] for _ in range(count)]


INT = ("INT", {"default": 1, "min": 0, "max": 1_000_000})
NODE_CLASS_MAPPINGS = {
    "Keep": Keep,
    "Model": node("MODEL", {"kind": (["EPS", "FLOW", "V_PREDICTION"],)}, model),
    "Painter": node("MODEL", {}, painter),
    "PictureVae": node("VAE", {}, picture_vae),
    "PictureLatents": node("LATENT", {"image": ("IMAGE",)}, lambda image: {"samples": as_latent(image)}),
    "Vae": node("VAE", {}, vae),
    "Latents": node("LATENT", {"count": INT, "seed": INT, "width": INT}, latents),
    "Conditioning": node("CONDITIONING", {"count": INT}, conditioning),
    "Portraits": node(
        "IMAGE", {"first": INT, "count": INT}, lambda first, count: torch.cat([portrait(5_000_000 + first + i) for i in range(count)])
    ),
    "Looks": node("IMAGE", {"person": INT}, lambda person: torch.cat([portrait(5_000_000 + person, look) for look in range(3)])),
    "Blank": node("IMAGE", {"count": INT}, lambda count: torch.full((count, 128, 128, 3), 0.5)),
}


class Watch:
    """MODEL → MODEL: notes every prediction of a training and the gradient that comes back to it; cancels after some."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "cancel_after": INT}}

    def run(self, model: Any, cancel_after: int) -> tuple[Any]:
        seen: list[dict[str, torch.Tensor]] = KEPT.setdefault("seen", [])

        def predict(executor: Any, x: torch.Tensor, sigma: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            x0 = executor(x, sigma, *rest, **more)
            note = {"x": x.detach().clone(), "sigma": sigma.detach().clone(), "x0": x0.detach().clone()}
            seen.append(note)
            if x0.requires_grad:
                x0.register_hook(lambda gradient: note.update(gradient=gradient.clone()))
            if cancel_after and len(seen) >= cancel_after:
                comfy.model_management.interrupt_current_processing()
            return x0

        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "watch", predict)
        return (clone,)


class LatentList:
    """Latents of two sizes: two links' worth, as the newer trainer takes them."""

    RETURN_TYPES = ("LATENT", "CONDITIONING")
    OUTPUT_IS_LIST = (True, True)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"each": INT}}

    def run(self, each: int) -> tuple[list[Any], list[Any]]:
        return [latents(each, 5, LATENT), latents(each, 6, LATENT + 4)], [conditioning(each), conditioning(each)]


class Mixed:
    """Three latents as a folder gives them: small, large, small."""

    RETURN_TYPES = ("LATENT", "CONDITIONING")
    OUTPUT_IS_LIST = (True, True)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[list[Any], list[Any]]:
        return [latents(1, 5, LATENT), latents(1, 6, LATENT + 4), latents(1, 7, LATENT)], [[one] for one in conditioning(3)]


class Order:
    """MODEL → MODEL: notes the order in which the loss found the samples of a training."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def run(self, model: Any) -> tuple[Any]:
        orders: list[list[int]] = KEPT.setdefault("orders", [])
        owner = model.wrappers["sampler_sample"]["facegrad"][0].__self__
        find = type(owner).order

        def order(*given: Any) -> list[int]:
            found = find(owner, *given)
            orders.append(found)
            return found

        owner.order = order
        return (model,)


NODE_CLASS_MAPPINGS |= {"Mixed": Mixed, "Order": Order, "Watch": Watch, "LatentList": LatentList}
