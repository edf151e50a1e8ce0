"""The score that needs no gradient: faces, embeddings and similarities as InsightFace's users know them."""

from __future__ import annotations

import ctypes as c
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import _abi
from ._compile import eager
from ._library import Context, Owner, call, config_text, library, onnxruntime_folder, read_text
from ._tensor import View, optional
from .models import Face, _face, _faces
from .modules import _sizes
from .packs import find_pack
from .report import Report, Sample, Sink
from .targets import Targets

#: Where a detector at 640 finds nothing: smaller canvases, on which a face that fills the picture looks usual.
RETRY_SIZES = (320, 160, 128)


@dataclass(frozen=True)
class EmbeddedFace(Face):
    """A face and its embedding.

    Attributes:
        embedding: ``[D]`` float32 of length 1; NaN where the face spans no area
    """

    embedding: torch.Tensor


class Evaluator(Owner):
    """Faces and embeddings as ``insightface.app.FaceAnalysis.get`` computes them, from 8-bit pixels, and the
    similarities of people by them. Nothing here has a gradient. Any thread may use it.

    Args:
        detector: an SCRFD ONNX file
        recogniser: a recogniser's ONNX file or weights, or a mapping with ``path`` and further keys of
            ``facegrad_backbone_new`` (``mean``, ``std``, ``color``, …)
        device: ``cpu``, ``cuda`` or ``cuda:N``
        det_sizes: sides of the detection canvases, multiples of 32; what they find is merged. InsightFace before 1.0
            used 640, since then 128 and 640
        threshold, nms_threshold: least score of a face, and overlap above which the weaker of two boxes is dropped
        min_size: least length of a face's shorter side, pixels
        retry_sizes: sides tried in turn where ``det_sizes`` find nothing
        retry_padding: then ``det_sizes`` again with a black border of this part of the picture's longer side
        engine: ``ort`` (ONNX Runtime), ``torch``, or ``auto``: ONNX Runtime on the CPU where it is installed
        providers: ONNX Runtime's execution providers, best first: ``cpu``, ``cuda``, ``tensorrt``, ``rocm``,
            ``migraphx``, ``openvino``, ``coreml``, ``directml``. One that is not there is an error
        onnxruntime: the library of ONNX Runtime or its folder; default: the installed wheel's
        face_choice: of several faces ``score``, ``largest``, ``center``, or ``index`` with ``face_index``
        pooling: of several reference images of one person: ``centroid``, the cosine with their normalised mean;
            ``mean`` of the cosines; ``max``
        face_types: the ``data_types`` that count; None: all
    """

    _kind = "evaluator"

    def __init__(
        self,
        detector: str | os.PathLike[str],
        recogniser: str | os.PathLike[str] | Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        det_sizes: Sequence[int] = (640,),
        threshold: float = 0.5,
        nms_threshold: float = 0.4,
        min_size: float = 0.0,
        retry_sizes: Sequence[int] = (),
        retry_padding: float = 0.0,
        engine: str = "auto",
        providers: Sequence[str] = (),
        onnxruntime: str | os.PathLike[str] | None = None,
        face_choice: str = "score",
        face_index: int = 0,
        pooling: str = "centroid",
        face_types: Sequence[str] | None = None,
    ) -> None:
        self._context = Context.of(device)
        runtime = os.fsdecode(onnxruntime) if onnxruntime is not None else onnxruntime_folder()
        engines: dict[str, Any] = {"engine": engine, "providers": list(providers)}
        if runtime is not None and engine != "torch":
            engines["onnxruntime"] = runtime
        config = {
            "detector": {
                "path": os.fsdecode(detector), "det_sizes": list(det_sizes), "threshold": threshold, "nms_threshold": nms_threshold,
                "min_size": min_size, "retry_sizes": list(retry_sizes), "retry_padding": retry_padding, **engines,
            },
            "recogniser": dict(recogniser) if isinstance(recogniser, Mapping) else os.fsdecode(recogniser),
            "face_choice": face_choice, "face_index": face_index, "pooling": pooling, **engines,
            **({} if face_types is None else {"face_types": list(face_types)}),
        }  # fmt: skip
        text = config_text(config)
        super().__init__(lambda out: call("evaluator_new", self._context._handle, text, out))
        info = json.loads(read_text(library.facegrad_evaluator_info, self._handle))
        #: What was loaded, which engine runs it, and under ``settings`` what decides between faces.
        self.description: dict[str, Any] = {key: info[key] for key in ("detector", "recogniser", "settings")}
        #: Numbers of an embedding.
        self.dim: int = info["dim"]
        #: Side of an aligned crop, pixels.
        self.input_size: int = info["input_size"]

    def _here(self, images: torch.Tensor) -> torch.Tensor:
        return images.detach().to(self._context.device)

    @eager
    def faces(self, images: torch.Tensor) -> list[list[EmbeddedFace]]:
        """The faces of every image of ``[N,3,H,W]`` by falling score; RGB, uint8, or floats in [0, 1]."""
        view, count = View("images", self._here(images)), c.c_size_t()
        capacity = 16 * max(1, images.shape[0])
        while True:
            faces = (_abi.Face * capacity)()
            faces[0].struct_size = c.sizeof(_abi.Face)
            rows = torch.empty(capacity, self.dim, device=self._context.device)
            out = View("embeddings", rows)
            call(
                "evaluator_faces", self._handle, view.pointer, faces, capacity, out.pointer, c.byref(count), self._context.stream,
            )  # fmt: skip
            if count.value <= capacity:
                break
            capacity = count.value
        found: list[list[EmbeddedFace]] = [[] for _ in range(images.shape[0])]
        for face, row in zip(faces[: count.value], rows.cpu()):
            plain = _face(face)
            found[face.image].append(EmbeddedFace(plain.bbox, plain.score, plain.landmarks, row.clone()))
        return found

    @eager
    def align(self, images: torch.Tensor, faces: Sequence[Sequence[Face]] | torch.Tensor) -> torch.Tensor:
        """The crops that the recogniser sees, ``[M,3,S,S]`` float32 in [0, 1]: InsightFace's ``norm_crop``.

        Args:
            images: ``[N,3,H,W]``, RGB, uint8, or floats in [0, 1]
            faces: lists of faces as :meth:`faces` gives them, or landmarks ``[N,5,2]``, one face an image
        """
        array, count = _faces(images, faces)
        crops = torch.empty(count, 3, self.input_size, self.input_size, device=self._context.device)
        view, out = View("images", self._here(images)), View("crops", crops)
        call("evaluator_align", self._handle, view.pointer, array, count, out.pointer, self._context.stream)
        return crops

    @eager
    def set_reference(self, id: str, images: torch.Tensor, landmarks: torch.Tensor | None = None) -> None:
        """Registers a person by the chosen face of every image of ``[K,3,H,W]``; with ``landmarks`` ``[K,5,2]``, rows
        of NaN where not known, by the nearest one. Images without a face are left out with a warning."""
        view, points = View("images", self._here(images)), optional("landmarks", landmarks)
        call("evaluator_set_reference", self._handle, id.encode(), view.pointer, points.pointer if points else None, self._context.stream)

    def remove_reference(self, id: str) -> None:
        """Forgets a registered person."""
        call("evaluator_remove_reference", self._handle, id.encode())

    @eager
    def compare(
        self,
        images: torch.Tensor,
        references: torch.Tensor | None = None,
        **targets: Any,
    ) -> Report:
        """Compares one face of every image with its reference. ``report.similarity`` is the mean cosine.

        Args:
            images: ``[N,3,H,W]``, RGB, uint8, or floats in [0, 1]
            references: ``[N,3,H,W]`` or ``[1,3,H,W]``, any size
            targets: the arguments of :class:`facegrad.targets.Targets`. Landmarks and boxes say which of the faces that are
                found is meant: the nearest one. Only ``report.loss`` is weighted
        """
        images = self._here(images)
        references = None if references is None else self._here(references)
        count = images.shape[0] if images.dim() else 0
        told, view = Targets(count, references, **targets), View("images", images)
        return self._report(count, lambda *out: call("evaluator_compare", self._handle, view.pointer, c.byref(told.struct), *out))

    @eager
    def find(self, images: torch.Tensor, ids: Sequence[str]) -> list[dict[str, Sample]]:
        """Who of the registered people is where: for every image of ``[N,3,H,W]`` every person's face, matched one
        to one so that the sum of the similarities is largest (the Hungarian method)."""
        view = View("images", self._here(images))
        names = (_abi.Text * max(1, len(ids)))(*(id.encode() for id in ids))
        report = self._report(
            images.shape[0] * len(ids),
            lambda *out: call("evaluator_find", self._handle, view.pointer, names, len(ids), *out),
        )
        rows = iter(report.samples)
        return [{id: next(rows) for id in ids} for _ in range(images.shape[0])]

    def _report(self, count: int, run: Callable[..., None]) -> Report:
        """The report of a call that ends in samples, their number, result and stream."""
        sink = Sink(count)
        run(sink.samples, sink.capacity, c.byref(sink.result), self._context.stream)
        return sink.report()


class ArcFaceLoss(torch.nn.Module):
    """``mean(1 − cos)`` between reference and generated faces, for watching a training: no gradient.

    Args:
        model_name: InsightFace's pack: ``buffalo_l``, ``antelopev2``, ``buffalo_m``, ``buffalo_s``, ``buffalo_sc``, or
            ``auraface``
        root: InsightFace's folder, default ``~/.insightface``; the pack's folder, or ComfyUI's ``models/insightface``
        device: ``cpu``, ``cuda`` or ``cuda:N``; inputs may lie anywhere
        det_size: side, ``(side, side)``, or a list of sides to merge
        options: further arguments of :class:`Evaluator`. Where a detection finds nothing, smaller sizes are tried;
            ``retry_sizes=()`` switches that off

    Attributes:
        evaluator: the :class:`Evaluator` that does the work
    """

    def __init__(
        self,
        model_name: str = "buffalo_l",
        root: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device = "cpu",
        det_size: int | Sequence[int] = (640, 640),
        **options: Any,
    ) -> None:
        super().__init__()
        files = find_pack(model_name, root)
        options = {"retry_sizes": RETRY_SIZES, **options}
        self.evaluator = Evaluator(files.detector, files.recogniser, device=device, det_sizes=_sizes(det_size), **options)

    @eager
    def forward(
        self, ref_images: torch.Tensor, gen_images: torch.Tensor, return_details: bool = False, **targets: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Report]:
        """The distance, a scalar in [0, 2] on ``gen_images``' device; with ``return_details`` also the report.

        A sample without a face is left out with a warning. Where all are, the distance is 0, as the method has it,
        and ``report.counted`` says that nothing was compared; ``report.similarity`` is then NaN.

        Args:
            ref_images: ``[B,3,H,W]`` or one for all, RGB, uint8, or floats in [0, 1]
            gen_images: ``[B,3,H,W]``
            targets: further arguments of :meth:`Evaluator.compare`
        """
        report = self.evaluator.compare(gen_images, ref_images, **targets)
        value = torch.tensor(report.mean_distance, dtype=torch.float32, device=gen_images.device)
        return (value, report) if return_details else value


class FaceLossWrapper(torch.nn.Module):
    """:class:`ArcFaceLoss` of latents: decodes them first.

    Args:
        vae: a diffusers VAE whose config tells the scaling of the model's latents, or any function from latents
            ``[B,C,h,w]`` to images in [0, 1]
        model_name, root, options: as for :class:`ArcFaceLoss`
    """

    def __init__(
        self, vae: Any, model_name: str = "buffalo_l", root: str | os.PathLike[str] | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.arcface = ArcFaceLoss(model_name, root, **options)
        # A tuple hides the VAE from parameters() and state_dict(): it is the trainer's.
        self._vae = (vae,)

    @torch.no_grad()
    def forward(
        self, ref_images: torch.Tensor, gen_latents: torch.Tensor, return_details: bool = False, **targets: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Report]:
        """As :meth:`ArcFaceLoss.forward`, for the model's latents."""
        images = decode(self._vae[0], gen_latents)
        result: torch.Tensor | tuple[torch.Tensor, Report] = self.arcface(ref_images, images, return_details, **targets)
        return result


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The model's latents ``[B,C,h,w]`` as images in [0, 1], by a diffusers VAE or by a function that does it."""
    config = getattr(vae, "config", None)
    if config is None or not hasattr(vae, "decode"):
        if not callable(vae):
            raise TypeError(f"vae: expected a diffusers VAE or a function from latents to images in [0, 1], got {type(vae).__name__}")
        images: torch.Tensor = vae(latents)
        return images
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if hasattr(vae, "bn"):
        raise TypeError("vae: FLUX.2's latents are patches; give a function that unpacks and decodes them")
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        x = latents * latents.new_tensor(std).view(shape) + latents.new_tensor(mean).view(shape)
    else:
        x = latents / getattr(config, "scaling_factor", 1.0) + (getattr(config, "shift_factor", None) or 0.0)
    x = x.to(next(vae.parameters()).dtype)
    # The video VAEs take a picture as one frame.
    frames = type(vae).__name__ in ("AutoencoderKLQwenImage", "AutoencoderKLWan")
    made = vae.decode(x.unsqueeze(2) if frames else x, return_dict=False)[0]
    images = made.squeeze(2) if frames else made
    return (images.float() / 2 + 0.5).clamp(0, 1)
