"""The method's classes: an identity loss on images, and one on latents."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .loss import FaceLoss
from .models import Detector, Recogniser
from .packs import find_detector, find_recogniser
from .report import Report
from .vae import Vae, VaeSource


class DifferentiableFaceLoss(torch.nn.Module):
    """``mean(1 − cos)`` between reference and generated faces, differentiable in the generated images.

    Args:
        model_name: ``r50``, ``r100``, … of the recogniser; checked against the weights. None: not checked
        pretrained_path: the recogniser: arcface_torch weights or an ONNX file. None: the one of the pack in ``root``
        device: ``cpu``, ``cuda`` or ``cuda:N``
        det_size: side, ``(side, side)``, or a list of sides to merge
        root: the folder of InsightFace packs, or of one pack; default ``~/.insightface``
        align_mode: ``bbox``, as the method's default, or ``kps``, recommended
        detector: the detector's ONNX file. None: the one of the pack in ``root``
        config: further keys of :class:`FaceLoss`
        vae: for the loss's step from latents
    """

    def __init__(
        self,
        model_name: str | None = "r50",
        pretrained_path: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cuda",
        det_size: int | Sequence[int] = (640, 640),
        root: str | os.PathLike[str] | None = None,
        align_mode: str = "bbox",
        *,
        detector: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        vae: Vae | None = None,
    ) -> None:
        super().__init__()
        weights = pretrained_path if pretrained_path is not None else find_recogniser(root, model_name)
        found = detector if detector is not None else find_detector(root)
        self.detector = Detector(found, device=device, det_sizes=_sizes(det_size))
        self.recogniser = Recogniser(weights, device=device, model=model_name)
        keys = {"face_loss_weight": 1.0, "face_align_mode": align_mode, **(config or {})}
        self.loss = FaceLoss(keys, detector=self.detector, recogniser=self.recogniser, vae=vae)

    def forward(
        self,
        ref_images: torch.Tensor,
        gen_images: torch.Tensor,
        return_details: bool = False,
        *,
        data_types: Sequence[str] | None = None,
        landmarks: torch.Tensor | None = None,
        ref_landmarks: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Report]:
        """The loss, a scalar; with ``return_details`` also the report.

        Args:
            ref_images: ``[B,3,H,W]`` (or one for all), RGB in [0, 1]
            gen_images: ``[B,3,H,W]``, RGB in [0, 1]; the gradient flows here
            data_types: per sample; only ``person`` and ``person_head`` count. None: all count
            landmarks, ref_landmarks: ``[B,5,2]`` where the faces are known; None: detected
        """
        value, report = self.loss(
            gen_images, ref_images, data_types=data_types, landmarks=landmarks, reference_landmarks=ref_landmarks
        )
        return (value, report) if return_details else value


class DifferentiableFaceLossWrapper(torch.nn.Module):
    """:class:`DifferentiableFaceLoss` on latents: they are decoded, and the gradient flows back to them.

    Args:
        vae: a file or diffusers folder, or a diffusers VAE in memory, whose weights are shared; see :class:`Vae`
        arcface_weights_path, model_name, device, root, det_size, align_mode, detector: as ``pretrained_path`` and the
            rest of :class:`DifferentiableFaceLoss`
        config: further keys of :class:`FaceLoss`. ``latent_format`` says how the latents relate to the VAE's; default:
            what the VAE tells. ``"none"`` for latents that are divided by the scaling factor already.
    """

    def __init__(
        self,
        vae: VaeSource,
        arcface_weights_path: str | os.PathLike[str] | None = None,
        model_name: str | None = "r50",
        device: str | torch.device = "cuda",
        root: str | os.PathLike[str] | None = None,
        det_size: int | Sequence[int] = (640, 640),
        align_mode: str = "bbox",
        *,
        detector: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.vae = vae if isinstance(vae, Vae) else Vae(vae, device=device)
        keys = {"prediction": {"kind": "sample"}, **(config or {})}
        images = DifferentiableFaceLoss(
            model_name, arcface_weights_path, device, det_size, root, align_mode, detector=detector, config=keys, vae=self.vae
        )
        self.loss = images.loss

    def forward(
        self,
        ref_images: torch.Tensor,
        gen_latents: torch.Tensor,
        return_details: bool = False,
        **arguments: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, Report]:
        """The loss, a scalar; with ``return_details`` also the report.

        Args:
            ref_images: ``[B,3,H,W]`` (or one for all), RGB in [0, 1], any size
            gen_latents: ``[B,C,h,w]`` as the diffusion model has them; the gradient flows here
            arguments: further ones of :meth:`FaceLoss.step`: ``data_types``, ``size``, ``landmarks``, …
        """
        value, report = self.loss.step(gen_latents, references=ref_images, **arguments)
        return (value, report) if return_details else value


def _sizes(det_size: int | Sequence[int]) -> list[int]:
    """``640``, ``(640, 640)`` and lists of sides to merge, in the library's form."""
    if isinstance(det_size, int):
        return [det_size]
    sizes = list(det_size)
    if len(sizes) == 2 and sizes[0] == sizes[1]:
        return sizes[:1]
    return sizes
