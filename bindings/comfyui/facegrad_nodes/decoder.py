"""The VAE that decodes for the loss, made from ComfyUI's own VAE object."""

from __future__ import annotations

from typing import Any

import torch

import facegrad

from .layout import Affine, probe
from .models import FaceModel

_TINY = "taesd_decoder."


class FaceDecoder:
    """A frozen, differentiable decoder over the weights of a ComfyUI VAE.

    ComfyUI's own `VAE.decode` cannot be walked back through: it moves devices, cuts the image to [0, 1] in place and may
    decode in tiles.

    Args:
        vae: ComfyUI's VAE. Weights of the wanted dtype on the wanted device are used where they are; others are copied.
        device: where to decode
        dtype: `auto` is that of the weights on CUDA, `f32` on the CPU; else `f32`, `bf16` or `f16`
        recompute: `blocks` keeps less for the backward pass and computes it again
        slicing: one image at a time
    """

    def __init__(self, vae: Any, device: torch.device, dtype: str = "auto", recompute: str = "none", slicing: bool = False) -> None:
        module = getattr(vae, "first_stage_model", None)
        if module is None:
            raise ValueError(
                "vae: expected ComfyUI's VAE with its weights, as VAE Loader or Load Checkpoint give it; the checkpoint may hold no VAE"
            )
        if dtype == "auto" and device.type == "cpu":
            dtype = "f32"
        names = module.state_dict()
        self.device = device
        #: The TAESD family decodes the model's latents, all others those of the VAE.
        self.tiny = any(name.startswith(_TINY) for name in names)
        #: What ComfyUI does to a latent before the TAESD family decodes it: `(x - shift) * scale`.
        self._scale, self._shift = (float(names[name]) if name in names else one for name, one in (("vae_scale", 1.0), ("vae_shift", 0.0)))
        options: dict[str, Any] = {"dtype": None if dtype == "auto" else dtype, "recompute": recompute, "slicing": slicing}

        def make() -> facegrad.Vae:
            weights = module.state_dict()
            if self.tiny:
                # What ComfyUI keeps beside the network: the model's own latents need neither.
                weights = {name.removeprefix(_TINY): tensor for name, tensor in weights.items() if name.startswith(_TINY)}
            return facegrad.Vae(weights, device=device, **options)

        self._model = FaceModel(make, device, sum(t.numel() * t.element_size() for t in names.values()))
        self.channels = self.vae.channels

    @property
    def vae(self) -> facegrad.Vae:
        """The decoder, in memory."""
        return self._model.get()

    def release(self) -> None:
        """Lets go of the decoder until its next use; the weights are ComfyUI's."""
        self._model.drop()

    def packing(self, channels: int) -> str:
        """How latents with so many channels are packed."""
        return "flux2" if (channels, self.channels) == (128, 32) else "none"

    def links(self, latent_format: str, packing: str) -> dict[str, Any]:
        """How the latents of ComfyUI's LATENT links become the decoder's: keys of the library's `unpack`.

        Args:
            latent_format: `none` where they are as ComfyUI's VAE takes them, else the name of the model's format that they are in
            packing: of `packing`
        """
        if latent_format == "none":
            if packing == "flux2" and not self.tiny:
                latent_format = "flux2"  # ComfyUI's VAE applies FLUX.2's statistics itself.
            elif (self._scale, self._shift) != (1.0, 0.0):
                to_model = Affine([self._scale] * self.channels, [-self._shift * self._scale] * self.channels)
                return {"latent_format": to_model.config()}
        return {"latent_format": "none" if self.tiny else latent_format}

    def latents(self, latent_format: Any, in_vae_space: bool = False) -> dict[str, Any]:
        """How a model's latents become the decoder's: `packing` and `latent_format` of the loss's configuration.

        Args:
            latent_format: ComfyUI's object of that name
            in_vae_space: the latents are as the VAE made them, the model's scaling was not applied

        Raises:
            ValueError: the latents cannot be this VAE's
        """
        channels = int(latent_format.latent_channels)
        if self.packing(channels) == "flux2":  # 2×2 patches as channels; the VAE holds the statistics.
            return {"packing": "flux2", "latent_format": "none" if self.tiny else "flux2"}
        if channels != self.channels:
            raise ValueError(
                f"face_vae: the model's latents ({type(latent_format).__name__}) have {channels} channels, this VAE's {self.channels}; connect the VAE that belongs to the model"
            )
        to_vae = probe(latent_format.process_out, channels, int(getattr(latent_format, "latent_dimensions", 2)))
        if self.tiny == in_vae_space:
            return {"latent_format": to_vae.inverse().config() if self.tiny else to_vae.config()}
        return {"latent_format": "none"}

    def expect_device(self, device: torch.device) -> None:
        """Raises where a training on `device` cannot use this decoder."""
        if device.type != self.device.type:
            raise ValueError(f"the training runs on {device}, the face models are on {self.device}; choose device `auto` in their loaders")
