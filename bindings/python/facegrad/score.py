"""The method's classes without a gradient: a score of images, and one of latents."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ._compile import eager
from .device import moved
from .evaluate import RETRY_SIZES, EmbeddedFace, Evaluator
from .host_vae import decode, is_duck
from .latents import decode_latents
from .models import canvases
from .packs import find_pack
from .pictures import check_image_size, target_region
from .report import Details
from .synonyms import refuse_unknown
from .vae import Vae

log = logging.getLogger("facegrad")


#: What options of the score are called in InsightFace and in the method's other classes.
_CALLED = {
    "det_thresh": "threshold", "det_threshold": "threshold", "nms_thresh": "nms_threshold", "pack": "model_name", "arcface_model_name": "model_name",
    "name": "model_name", "arcface_root": "root", "gpu_id": "ctx_id", "det_sizes": "det_size", "input_size": "det_size",
}  # fmt: skip


class ArcFaceLoss(torch.nn.Module):
    """``mean(1 − cos)`` between reference and generated faces, without a gradient, to watch a training.

    Args:
        model_name: InsightFace's pack: ``buffalo_l``, ``antelopev2``, ``buffalo_m``, ``buffalo_s``, ``buffalo_sc``,
            ``auraface``, or the name of any folder with ONNX models in the place of a pack
        ctx_id: a GPU's number, or -1 for the CPU, as in InsightFace. Without CUDA, the CPU is used. None: use ``device``
        det_size: side, or ``(width, height)``, of one canvas in pixels, or a list of several, whose faces are merged
        root: InsightFace's folder, the pack's folder, or ComfyUI's ``models/insightface``; default ``~/.insightface``
        device: ``cpu``, ``cuda`` or ``cuda:N``; default ``cpu``. Inputs may be on any device
        options: further arguments of :class:`Evaluator`. Where detection finds no face, smaller sizes are tried;
            ``retry_sizes=()`` switches that off

    Attributes:
        evaluator: the :class:`Evaluator` that does the work
        embedding_dim: the length of an embedding
        face_size: side of an aligned crop, pixels
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] = "buffalo_l",
        ctx_id: int | None = None,
        det_size: int | tuple[int, int] | list[Any] = (640, 640),
        root: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if "align_mode" in options:
            raise TypeError("ArcFaceLoss: align_mode: the score aligns by landmarks, as InsightFace does; leave it out")
        refuse_unknown(Evaluator, options, _CALLED, "ArcFaceLoss")
        where, sizes = _device(ctx_id, device), canvases(det_size)
        files = find_pack(model_name, root)
        options = {"retry_sizes": RETRY_SIZES, **options}
        self._make: Callable[..., Evaluator] = partial(Evaluator, files.detector, files.recogniser, det_sizes=sizes, **options)
        self.evaluator = self._make(device=where)
        self.embedding_dim, self.face_size = self.evaluator.dim, self.evaluator.input_size

    def _apply(self, fn: Any, recurse: bool = True) -> ArcFaceLoss:
        """Loads the networks on the device that ``to``, ``cuda`` or ``cpu`` names. Their precision does not change."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = moved(fn, self.evaluator.device)
        if device is not None:
            self.evaluator = self._make(device=device)
        return self

    @eager
    def forward(
        self, ref_images: torch.Tensor, gen_images: torch.Tensor, return_details: bool = False, **targets: Any
    ) -> torch.Tensor | Details:
        """The distance, a scalar in [0, 2] on the device of ``gen_images``. With ``return_details``, the three values
        ``loss, per_sample, mask`` and a report: see :class:`facegrad.Details`.

        A sample without a face is left out with a warning. If all are left out, the distance is 0, as in the method, the
        mask is all false, and ``report.similarity`` is NaN.

        Args:
            ref_images: ``[B,3,H,W]`` or one for all, RGB, uint8, or floats in [0, 1]
            gen_images: ``[B,3,H,W]``, likewise
            targets: further arguments of :meth:`Evaluator.compare`
        """
        report = self.evaluator.compare(gen_images, ref_images, **targets)
        value = torch.tensor(report.mean_distance, dtype=torch.float32, device=gen_images.device)
        return Details.of(value, report) if return_details else value

    @eager
    def extract_embedding(self, image: torch.Tensor) -> torch.Tensor | None:
        """The embedding of the face with the highest score in an image ``[3,H,W]``, RGB, uint8, or floats in [0, 1]:
        ``[D]`` float32 of length 1 on the CPU; None where no face is found."""
        if not isinstance(image, torch.Tensor) or image.dim() != 3:
            got = list(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
            raise TypeError(f"image: expected a torch.Tensor [3,H,W], got {got}; extract_batch_embeddings takes [B,3,H,W]")
        return self._best(self.evaluator.faces(image[None])[0])

    @eager
    def extract_batch_embeddings(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The embeddings ``[N,D]`` of those images of ``[B,3,H,W]`` that have a face, and ``[B]`` bool that says which images
        these are. Two times None where no image has a face. See :meth:`extract_embedding`."""
        rows = [self._best(faces) for faces in self.evaluator.faces(images)]
        found = [row for row in rows if row is not None]
        if not found:
            return None, None
        return torch.stack(found), torch.tensor([row is not None for row in rows])

    @staticmethod
    def _best(faces: list[EmbeddedFace]) -> torch.Tensor | None:
        usable = [face.embedding for face in faces if bool(face.embedding.isfinite().all())]
        return usable[0] if usable else None


class FaceLossWrapper(torch.nn.Module):
    """:class:`ArcFaceLoss` on latents, which it decodes first.

    Args:
        vae: a diffusers VAE, or any object with ``decode`` and ``config``, whose config tells the scaling of the model's
            latents; or any function from latents ``[B,C,h,w]`` to images ``[B,3,H,W]`` in [0, 1]; or a :class:`Vae`, or the
            file or folder of one
        arcface_model_name: as ``model_name`` of :class:`ArcFaceLoss`
        image_size: width of one image, pixels. Of an image that is twice as wide (reference | target), only the right half
            is compared. None: the whole image
        arcface_root: as ``root`` of :class:`ArcFaceLoss`
        options: further arguments of :class:`ArcFaceLoss`

    Attributes:
        arcface_loss: the :class:`ArcFaceLoss`
    """

    def __init__(
        self,
        vae: Any,
        arcface_model_name: str = "buffalo_l",
        image_size: int | None = None,
        arcface_root: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        called = {"model_name": "arcface_model_name", "root": "arcface_root", **_CALLED}
        for name in options.keys() & called.keys() - {"ctx_id", "det_size"}:
            here = {"model_name": "arcface_model_name", "root": "arcface_root"}.get(called[name], called[name])
            raise TypeError(f"FaceLossWrapper: `{name}` is called `{here}` here; write {here}={options[name]!r}")
        if isinstance(vae, (str, bytes, os.PathLike)):
            vae = Vae(os.fsdecode(vae), device=_device(options.get("ctx_id"), options.get("device")))
        if not (isinstance(vae, Vae) or is_duck(vae) or callable(vae)):
            raise TypeError(
                "vae: expected a diffusers VAE, a function from latents to images in [0, 1], a facegrad.Vae or the path of one, got "
                f"{type(vae).__name__}"
            )
        check_image_size(image_size)
        self.arcface_loss = ArcFaceLoss(arcface_model_name, root=arcface_root, **options)
        self.image_size = image_size
        # The tuple hides the VAE from parameters() and state_dict(), because it belongs to the trainer.
        self._vae = (vae,)

    @property
    def vae(self) -> Any:
        """The VAE or function that was given."""
        return self._vae[0]

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes the model's latents ``[B,C,h,w]`` to images ``[B,3,H,W]``, RGB in [0, 1]."""
        return decode_latents(self.vae, latents) if isinstance(self.vae, Vae) else decode(self.vae, latents)

    def extract_target_region(self, images: torch.Tensor) -> torch.Tensor:
        """The part of an image that is compared: the right half of a diptych ``[B,3,H,2·image_size]``, else the whole image."""
        return target_region(images, self.image_size)

    @eager
    @torch.no_grad()
    def forward(
        self,
        ref_images: torch.Tensor,
        pred_latents: torch.Tensor,
        x_0_latents: torch.Tensor | None = None,
        t: torch.Tensor | None = None,
        return_details: bool = False,
        **targets: Any,
    ) -> torch.Tensor | Details:
        """The distance of :meth:`ArcFaceLoss.forward`, for latents.

        Args:
            ref_images: ``[B,3,H,W]`` or one for all, RGB, uint8, or floats in [0, 1]
            pred_latents: the latents to score, ``[B,C,h,w]``; ignored where ``x_0_latents`` are given
            x_0_latents: the latents to score where the method's four arguments are given, ``[B,C,h,w]``; ``x0_latents`` is the
                same
            t: the method's fourth argument; the score does not depend on it
            return_details, targets: as for :class:`ArcFaceLoss`
        """
        # The method's document writes x0 in both ways.
        x_0_latents = targets.pop("x0_latents", x_0_latents)
        latents = pred_latents if x_0_latents is None else x_0_latents
        images = self.extract_target_region(self.decode_latents(latents))
        result: torch.Tensor | Details = self.arcface_loss(ref_images, images, return_details, **targets)
        return result


def _device(ctx_id: int | None, device: str | torch.device | None) -> str | torch.device:
    """The device that ``ctx_id`` or ``device`` names."""
    if ctx_id is None:
        return device if device is not None else "cpu"
    if isinstance(ctx_id, bool) or not isinstance(ctx_id, int):
        raise TypeError(f"ctx_id: expected a GPU's number or -1 for the CPU, got {ctx_id!r}; the folder of the models is `root`")
    if device is not None:
        raise TypeError(f"ctx_id={ctx_id} and device={str(device)!r} both say where to compute; give one of them")
    if ctx_id < 0:
        return "cpu"
    if not torch.cuda.is_available():
        log.warning("ctx_id=%d: there is no CUDA here, so the CPU computes", ctx_id)
        return "cpu"
    return f"cuda:{ctx_id}"
