"""The method's classes with a gradient: an identity loss on images, and one on latents."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .device import moved
from .iresnet import IResNet
from .latents import decode_latents
from .loss import FaceLoss
from .method import ARCHITECTURES
from .method import layer_weights as weights_by_level
from .models import Detector, Recogniser, canvases
from .packs import find_detector, find_pack, find_recogniser
from .pictures import check_image_size, crop_and_resize, target_region
from .report import Details, Report
from .synonyms import refuse_unknown
from .vae import Vae, VaeSource

log = logging.getLogger("facegrad")

#: What arguments of these classes are called in InsightFace, in the configuration and in the method's other classes.
_CALLED = {
    "arcface_weights": "pretrained_path", "arcface_model": "model_name", "arcface_model_name": "model_name", "arcface_root": "root",
    "face_align_mode": "align_mode", "ctx_id": 'device="cpu" for -1, device="cuda:0" for 0', "det_sizes": "det_size",
}  # fmt: skip

#: A face in the method's form: ``bbox``, four whole pixels, and ``kps``, ``[5,2]`` or None.
FaceInfo = dict[str, Any]


class DifferentiableFaceLoss(torch.nn.Module):
    """``mean(1 − cos)`` between reference and generated faces, differentiable in the generated images.

    The library holds the networks, frozen and in float32. ``parameters()`` is therefore empty, and ``to(dtype)`` changes
    nothing. ``to(device)`` loads the networks on that device.

    Args:
        model_name: ``r50``, ``r100``, … of the recogniser; checked against the weights. None: not checked. Without
            ``pretrained_path`` also the name of a pack, whose recogniser and detector are used
        pretrained_path: the recogniser: arcface_torch weights or an ONNX file. None: the one of the pack in ``root``
        device: ``cpu``, ``cuda`` or ``cuda:N``
        det_size: side, or ``(width, height)``, of one canvas in pixels, or a list of several, whose faces are merged
        root: the folder of InsightFace packs, or of one pack; default ``~/.insightface``
        align_mode: ``bbox``, the method's default, or ``kps``, which is recommended
        detector: the detector's ONNX file. None: the one of the pack in ``root``
        config: further keys of :class:`FaceLoss`
        vae: for the loss's step from latents

    Attributes:
        loss: the :class:`FaceLoss` that does the work
        recognizer: the recogniser as a module: :class:`IResNet`
        face_size: side of an aligned crop, pixels
        embedding_dim: numbers of an embedding
    """

    def __init__(
        self,
        model_name: str | None = "r50",
        pretrained_path: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cuda",
        det_size: int | tuple[int, int] | list[Any] = (640, 640),
        root: str | os.PathLike[str] | None = None,
        align_mode: str = "bbox",
        *,
        detector: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        vae: Vae | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(
            type(self).__init__,
            options,
            _CALLED | {"arcface_weights_path": "pretrained_path", "weights_path": "pretrained_path"},
            "DifferentiableFaceLoss",
        )
        pack = None
        if pretrained_path is None and model_name is not None and model_name not in ARCHITECTURES:
            pack, model_name = find_pack(model_name, root), None
        weights = (
            pretrained_path if pretrained_path is not None else pack.recogniser if pack is not None else find_recogniser(root, model_name)
        )
        found = detector if detector is not None else pack.detector if pack is not None else find_detector(root)
        self.det_size, self.root, self.align_mode = det_size, root, align_mode
        self._keys = {"face_loss_weight": 1.0, "face_align_mode": align_mode, **(config or {})}
        self.vae = vae
        self.detector = Detector(found, device=device, det_sizes=canvases(det_size))
        self.recogniser = Recogniser(weights, device=device, model=model_name)
        self.recognizer = IResNet(self.recogniser)
        self._assemble()

    def _assemble(self) -> None:
        self.face_size, self.embedding_dim = self.recogniser.input_size, self.recogniser.dim
        self._levels: dict[tuple[tuple[str, float], ...], FaceLoss] = {}
        self.loss = self._loss({})

    def _loss(self, keys: Mapping[str, Any]) -> FaceLoss:
        return FaceLoss({**self._keys, **keys}, detector=self.detector, recogniser=self.recogniser, vae=self.vae)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.recogniser.device

    def _apply(self, fn: Any, recurse: bool = True) -> DifferentiableFaceLoss:
        # The recogniser's module moves with super(); the rest follows it.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = moved(fn, self.detector.device)
        if device is not None:
            if self.vae is not None:
                raise RuntimeError(
                    f"to({str(device)!r}): the VAE's weights are shared and stay; make the loss anew with device={str(device)!r}"
                )
            assert self.recognizer.recogniser is not None
            self.detector, self.recogniser = self.detector.on(device), self.recognizer.recogniser
            self._assemble()
        return self

    def forward(
        self,
        ref_images: torch.Tensor,
        gen_images: torch.Tensor,
        return_details: bool = False,
        *,
        data_types: Sequence[str] | None = None,
        landmarks: torch.Tensor | None = None,
        ref_landmarks: torch.Tensor | None = None,
    ) -> torch.Tensor | Details:
        """The loss, a scalar. With ``return_details``, the three values ``loss, per_sample, mask`` and a report: see
        :class:`facegrad.Details`.

        Args:
            ref_images: ``[B,3,H,W]`` (or one for all), RGB in [0, 1]
            gen_images: ``[B,3,H,W]``, RGB in [0, 1]; the gradient flows here
            data_types: per sample; only ``person`` and ``person_head`` count. None: all count
            landmarks, ref_landmarks: ``[B,5,2]`` where the faces are known; None: detected
        """
        value, report = self.loss(gen_images, ref_images, data_types=data_types, landmarks=landmarks, reference_landmarks=ref_landmarks)
        return Details.of(value, report) if return_details else value

    def forward_multiscale(
        self,
        ref_images: torch.Tensor,
        gen_images: torch.Tensor,
        layer_weights: Mapping[str, float] | None = None,
        return_details: bool = False,
        **targets: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """The weighted sum of the cosine distances of the recogniser's levels, a scalar. With ``return_details`` also the
        mean distance of every level, without a gradient, and which samples count, ``[B]`` bool.

        Args:
            ref_images, gen_images: as for :meth:`forward`
            layer_weights: weights of ``layer1`` … ``layer4`` and ``embedding``; None: .1, .2, .3, .4 and 1. For an ONNX
                recogniser, weights of its outputs by name, and of ``embedding``, its first output
            targets: further arguments of :meth:`FaceLoss.__call__`
        """
        weights = weights_by_level(layer_weights)
        key = tuple(weights.items())
        if key not in self._levels:
            self._levels[key] = self._loss({"levels": weights})
        value, report = self._levels[key](gen_images, ref_images, **targets)
        if not return_details:
            return value
        distances = {name: torch.tensor(d, dtype=torch.float32, device=value.device) for name, d in zip(weights, report.level_distances)}
        return value, distances, Details.of(value, report).mask

    @torch.no_grad()
    def detect_faces(self, images: torch.Tensor) -> list[FaceInfo | None]:
        """The face with the highest score in every image of ``[B,3,H,W]``, RGB in [0, 1]; None where there is no face. A face
        has ``bbox``, x1, y1, x2, y2 in whole pixels, and ``kps``, landmarks ``[5,2]`` float32 in pixels, or None."""
        if not isinstance(images, torch.Tensor) or images.dim() != 4:
            got = list(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
            raise TypeError(f"images: expected a torch.Tensor [B,3,H,W], got {got}")
        found: list[FaceInfo | None] = []
        for faces in self.detector.detect(images.detach().to(self.detector.device)):
            if not faces:
                found.append(None)
                continue
            points = faces[0].landmarks
            kps = None if points is None else np.array(points, dtype=np.float32)
            found.append({"bbox": np.array(faces[0].bbox).astype(int), "kps": kps})
        return found

    def crop_and_resize_face(self, image: torch.Tensor, bbox: Sequence[float]) -> torch.Tensor:
        """The face in a box x1, y1, x2, y2 (pixels) of an image ``[3,H,W]``, resized to ``[3,S,S]``. The gradient flows to the
        image."""
        return crop_and_resize(image, bbox, self.face_size)

    @staticmethod
    def preprocess_face(face: torch.Tensor) -> torch.Tensor:
        """A crop in [0, 1], scaled to [−1, 1] as :meth:`extract_embedding` takes it."""
        return face * 2 - 1

    def extract_embedding(self, face: torch.Tensor) -> torch.Tensor:
        """The embedding of a crop ``[3,S,S]``, RGB in [−1, 1]: ``[D]`` float32, not normalised. The gradient flows to the crop."""
        embedding: torch.Tensor = self.recognizer(_one(face))[0]
        return embedding

    def extract_multiscale_features(self, face: torch.Tensor) -> dict[str, torch.Tensor]:
        """All levels of a crop ``[3,S,S]``, RGB in [−1, 1]: ``layer1`` … ``layer4``, maps ``[C,h,w]``, and ``embedding``,
        ``[D]``, float32, not normalised. The gradient flows to the crop."""
        return {name: value[0] for name, value in self.recognizer.forward_multiscale(_one(face)).items()}


def _one(face: torch.Tensor) -> torch.Tensor:
    """A crop ``[3,S,S]`` as a batch of one."""
    if face.dim() != 3:
        raise ValueError(f"face: expected one crop [3,S,S], got {list(face.shape)}; `recognizer` takes batches")
    return face[None]


class DifferentiableFaceLossWrapper(torch.nn.Module):
    """:class:`DifferentiableFaceLoss` on latents: they are decoded, and the gradient flows back to them.

    Args:
        vae: a file or diffusers folder, a VAE in memory, or a function from the model's latents to images in [0, 1]; see
            :class:`Vae`
        arcface_weights_path, model_name, device, root, align_mode, det_size, detector: as ``pretrained_path`` and the
            rest of :class:`DifferentiableFaceLoss`
        image_size: width of one image, pixels. Of an image that is twice as wide (reference | target), only the right half
            is compared. None: the whole image
        config: further keys of :class:`FaceLoss`. ``latent_format`` says how the latents relate to the VAE's; default: the
            format that the VAE tells. Use ``"none"`` for latents that are divided by the scaling factor already.

    Attributes:
        face_loss: the :class:`DifferentiableFaceLoss`
        loss: its :class:`FaceLoss`
        vae: the :class:`Vae`
    """

    def __init__(
        self,
        vae: VaeSource,
        arcface_weights_path: str | os.PathLike[str] | None = None,
        model_name: str | None = "r50",
        image_size: int | None = None,
        device: str | torch.device = "cuda",
        root: str | os.PathLike[str] | None = None,
        align_mode: str = "bbox",
        *,
        det_size: int | tuple[int, int] | list[Any] = (640, 640),
        detector: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(
            type(self).__init__,
            options,
            _CALLED | {"pretrained_path": "arcface_weights_path", "weights_path": "arcface_weights_path"},
            "DifferentiableFaceLossWrapper",
        )
        check_image_size(image_size)
        self.vae = vae if isinstance(vae, Vae) else Vae(vae, device=device)
        self.image_size = image_size
        self._warned = False
        self._config = {"prediction": {"kind": "sample"}, **(config or {})}
        self.face_loss = DifferentiableFaceLoss(
            model_name, arcface_weights_path, device, det_size, root, align_mode, detector=detector, config=self._config, vae=self.vae
        )

    @property
    def loss(self) -> FaceLoss:
        """The loss object of the library."""
        return self.face_loss.loss

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes the diffusion model's latents ``[B,C,h,w]`` to images ``[B,3,H,W]``, RGB in [0, 1]. The gradient flows to the
        latents."""
        return decode_latents(self.vae, latents, self._config)

    def extract_target_region(self, images: torch.Tensor) -> torch.Tensor:
        """The part of an image that is compared: the right half of a diptych ``[B,3,H,2·image_size]``, else the whole image."""
        return target_region(images, self.image_size)

    def forward(
        self,
        ref_images: torch.Tensor,
        gen_latents: torch.Tensor,
        return_details: bool = False,
        **arguments: Any,
    ) -> torch.Tensor | Details:
        """The loss, a scalar. With ``return_details``, the three values ``loss, per_sample, mask`` and a report: see
        :class:`facegrad.Details`.

        Args:
            ref_images: ``[B,3,H,W]`` (or one for all), RGB in [0, 1], any size
            gen_latents: the diffusion model's latents ``[B,C,h,w]``; the gradient flows here
            arguments: the arguments of :class:`facegrad.targets.Targets`, such as ``data_types`` and ``landmarks``. With
                ``image_size``, places are pixels of the right half. Without it, the further arguments of
                :meth:`FaceLoss.step` are allowed too
        """
        value: torch.Tensor
        report: Report
        if self.image_size is None:
            self._warn(gen_latents)
            value, report = self.loss.step(gen_latents, references=ref_images, **arguments)
        else:
            images = self.extract_target_region(self.decode_latents(gen_latents))
            value, report = self.loss(images, ref_images, **arguments)
        return Details.of(value, report) if return_details else value

    def forward_multiscale(
        self,
        ref_images: torch.Tensor,
        gen_latents: torch.Tensor,
        layer_weights: Mapping[str, float] | None = None,
        return_details: bool = False,
        **targets: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """:meth:`DifferentiableFaceLoss.forward_multiscale` of latents ``[B,C,h,w]``: they are decoded as a whole, and the
        gradient flows back to them."""
        if self.image_size is None:
            self._warn(gen_latents)
        images = self.extract_target_region(self.decode_latents(gen_latents))
        return self.face_loss.forward_multiscale(ref_images, images, layer_weights, return_details, **targets)

    def _warn(self, latents: torch.Tensor) -> None:
        """Warns about images that look like diptychs. The method uses the right half of every image; here only
        ``image_size`` does that."""
        if not self._warned and latents.dim() == 4 and latents.shape[-1] == 2 * latents.shape[-2]:
            self._warned = True
            log.warning(
                "the pictures are twice as wide as high and count as a whole; where they are diptychs (reference | target) write "
                "image_size=, the width of one image in pixels"
            )
