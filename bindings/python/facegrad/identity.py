"""The identity loss as a trainer uses it: made from a configuration, called once per step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ._compile import eager
from ._library import log
from .evaluate import RETRY_SIZES
from .loss import FaceLoss
from .method import Method, read_config
from .models import Detector, Recogniser
from .packs import find_detector, find_pack, find_recogniser
from .report import Alignment, Located, Outcome, Report, Sample
from .vae import Vae, VaeSource


class FaceIdentityLoss:
    """From a diffusion model's prediction to the weighted identity loss, ready to be added to the main loss.

    >>> face = facegrad.FaceIdentityLoss("train.yaml", vae=pipe.vae)  # doctest: +SKIP
    >>> loss, report = face(x_t=x_t, prediction=v, t=t, references=pictures, data_types=kinds)  # doctest: +SKIP
    >>> (mse + loss).backward()  # doctest: +SKIP

    The loss contains λ, the time weights and the gates already. A sample that does not count (another ``data_type``, no
    face, a noise level outside ``t_min`` to ``t_max``, …) has a gradient of exactly zero, and ``report.samples`` says why.
    Any thread may use the loss; calls run one after the other.

    Args:
        config: the method's keys (``use_face_loss``, ``face_loss_weight``, ``face_align_mode``, ``face_loss_type``,
            ``arcface_weights``, ``arcface_model``, ``arcface_root``, ``use_t_aware_weighting``, ``use_multiscale_face_loss``,
            ``multiscale_layer_weights``) with all others of ``facegrad_loss_new``; or the path of a YAML or JSON
            file that has them at its top or below ``model``. In a file, other keys are the trainer's and are left alone.
        vae: a file or folder, a VAE in memory, a function from the model's latents ``[B,C,h,w]`` to images ``[B,3,H,W]`` in
            [0, 1], or a :class:`Vae`; None: the config's ``vae``. See :class:`Vae` for which are decoded by the library
        detector: an ONNX file or a :class:`Detector`; None: the config's ``detector``, else that of the pack in ``root``;
            False: none, every face's place is given
        recogniser: a file or a :class:`Recogniser`; None: the config's ``arcface_weights``, else that of the pack in ``root``
        device: ``cpu``, ``cuda`` or ``cuda:N``; default: that of the networks given, else ``cuda`` where there is one
        root: the folder of InsightFace packs, or of one pack; default: the config's ``arcface_root``, else ``~/.insightface``

    With ``face_loss_type: non_differentiable`` the value is the score of :class:`ArcFaceLoss`, with the weights and gates of
    the loss, and has no gradient. ``arcface_weights`` or the pack that ``arcface_model`` names give the recogniser; an ONNX
    file runs in ONNX Runtime on the CPU where that is installed, else in libtorch. One line of the log says which.

    Attributes:
        loss: the :class:`FaceLoss`; None where ``use_face_loss`` is false, which loads nothing
        vae: the :class:`Vae`, where one was given
        config: the keys that the loss was made with
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str | bytes | os.PathLike[Any] | None = None,
        *,
        vae: VaeSource | None = None,
        detector: Detector | str | bytes | os.PathLike[Any] | Literal[False] | None = None,
        recogniser: Recogniser | str | bytes | os.PathLike[Any] | None = None,
        device: str | torch.device | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        method = Method(read_config(config) if isinstance(config, (str, bytes, os.PathLike)) else config or {})
        keys, root = method.keys, root if root is not None else method.root
        self.loss: FaceLoss | None = None
        self.vae: Vae | None = None
        self.config = dict(keys)
        if keys.get("use_face_loss", True) is False:
            return
        if device is None:
            known = next(
                (part._context.device for part in (vae, detector, recogniser) if isinstance(part, (Vae, Detector, Recogniser))), None
            )
            device = known if known is not None else "cuda" if torch.cuda.is_available() else "cpu"
        model = keys.get("arcface_model", "r50")
        pack = find_pack(method.pack, root) if method.pack is not None else None
        if detector is None and "detector" not in keys:
            detector = pack.detector if pack is not None else find_detector(root)
        if isinstance(detector, (str, bytes, os.PathLike)):
            detector = Detector(detector, device=device, retry_sizes=RETRY_SIZES if method.score else ())
        if recogniser is None and keys.get("arcface_weights") is None:
            recogniser = pack.recogniser if pack is not None else find_recogniser(root, model)
            keys.pop("arcface_weights", None)
        if isinstance(recogniser, (str, bytes, os.PathLike)):
            if method.score:
                # Loaded by the loss, since ONNX Runtime may run it.
                self.config["arcface_weights"] = keys["arcface_weights"] = os.fsdecode(recogniser)
                recogniser = None
            else:
                recogniser = Recogniser(recogniser, device=device, model=keys.get("arcface_model"))
        if vae is not None and not isinstance(vae, Vae):
            vae = Vae(vae, device=device)
        self.vae = vae
        self.loss = FaceLoss(keys, detector=detector or None, recogniser=recogniser, vae=vae, device=device)
        if method.score:
            log.info("face_loss_type: non_differentiable: the score of %s, without a gradient", self.loss.description["backbone"])
        log.info("face loss on %s: %s", device, json.dumps(self.loss.description))

    def again(self, **keys: Any) -> FaceIdentityLoss:
        """Another loss with other values of some keys. It shares the networks of this loss and does not load them again. The
        persons that are registered with this loss now are registered with it too."""
        made = object.__new__(FaceIdentityLoss)
        made.loss, made.vae, made.config = None, self.vae, {**self.config, **keys}
        if self.loss is not None and made.config.get("use_face_loss", True) is not False:
            made.loss = self.loss.again(keys)
        return made

    @eager
    def __call__(
        self,
        *,
        prediction: torch.Tensor,
        x_t: torch.Tensor | None = None,
        t: torch.Tensor | Sequence[float] | float | None = None,
        references: torch.Tensor | None = None,
        step: int = 0,
        **arguments: Any,
    ) -> tuple[torch.Tensor, Report]:
        """The loss, a scalar on the prediction's device, and the report.

        Args:
            prediction: the model's output ``[N,…]`` in its own layout and dtype; the gradient flows here
            x_t: the noisy latents, as the model got them
            t: per sample, as ``prediction.time`` of the config says (flow matching: the noise fraction in [0, 1])
            references: ``[N,3,H,W]`` or ``[1,3,H,W]``, RGB in [0, 1], any size
            step: number of the training step, for ``every_n_steps``
            arguments: the others of :meth:`FaceLoss.step`: ``data_types``, ``reference_ids``, ``size``, ``landmarks``, …
        """
        if self.loss is None:
            return prediction.new_zeros((), dtype=torch.float32), _disabled(prediction)
        return self.loss.step(prediction, x_t, t, references, number=step, **arguments)

    @eager
    def set_reference(self, id: str, images: torch.Tensor, landmarks: torch.Tensor | None = None) -> None:
        """Registers a person under an id, for ``reference_ids``, with the faces of ``[K,3,H,W]``, RGB in [0, 1]."""
        if self.loss is not None:
            self.loss.set_reference(id, images, landmarks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what the loss remembers: see :meth:`FaceLoss.save`. Without a loss nothing is written."""
        if self.loss is not None:
            self.loss.save(path)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Restores what :meth:`save` wrote: see :meth:`FaceLoss.restore`."""
        if self.loss is not None:
            self.loss.restore(path)


def _disabled(prediction: torch.Tensor) -> Report:
    nan = float("nan")
    sample = Sample(Outcome.DISABLED, Located.NOWHERE, Alignment.NONE, nan, 0.0, nan, None, None)
    return Report(0.0, 0.0, 0, (sample,) * (prediction.shape[0] if prediction.dim() else 0))
