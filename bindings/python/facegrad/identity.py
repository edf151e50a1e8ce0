"""The identity loss as a trainer uses it: made from its configuration, called once a step."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ._library import build_info
from .loss import FaceLoss
from .models import Detector, Recogniser
from .packs import find_detector, find_recogniser
from .report import Alignment, Located, Outcome, Report, Sample
from .vae import Vae, VaeSource

#: How the method's keys begin, by which a misspelt one is noticed among a trainer's own.
_OURS = ("use_face", "face_", "arcface_")


class FaceIdentityLoss:
    """From a diffusion model's prediction to the weighted identity loss, ready to be added to the main loss.

    >>> face = facegrad.FaceIdentityLoss("train.yaml", vae=pipe.vae)  # doctest: +SKIP
    >>> loss, report = face(x_t=x_t, prediction=v, t=t, references=pictures, data_types=kinds)  # doctest: +SKIP
    >>> (mse + loss).backward()  # doctest: +SKIP

    λ, the time weights and the gates are in the loss already. A sample that does not count (another ``data_type``, no
    face, outside the time window, …) has a gradient of exactly zero, and ``report.samples`` says why.

    Args:
        config: the method's keys (``use_face_loss``, ``face_loss_weight``, ``face_align_mode``, ``face_loss_type``,
            ``arcface_weights``, ``arcface_model``) with all others of ``facegrad_loss_new``; or the path of a YAML or JSON
            file that has them at its top or below ``model``. In a file, other keys are the trainer's and are left alone.
        vae: a file or folder, a diffusers VAE in memory, or a :class:`Vae`; None: the config's ``vae``
        detector: an ONNX file or a :class:`Detector`; None: the config's ``detector``, else that of the pack in ``root``;
            False: none, every face's place is given
        recogniser: a file or a :class:`Recogniser`; None: the config's ``arcface_weights``, else that of the pack in ``root``
        device: ``cpu``, ``cuda`` or ``cuda:N``; default: that of the networks given, else ``cuda`` where there is one
        root: the folder of InsightFace packs, or of one pack; default ``~/.insightface``

    Attributes:
        loss: the :class:`FaceLoss`; None where ``use_face_loss`` is false, which loads nothing
        vae: the :class:`Vae`, where one was given
        config: the keys that the loss was made with
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        *,
        vae: VaeSource | None = None,
        detector: Detector | str | os.PathLike[str] | Literal[False] | None = None,
        recogniser: Recogniser | str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        keys = read_config(config) if isinstance(config, (str, os.PathLike)) else dict(config or {})
        self.loss: FaceLoss | None = None
        self.vae: Vae | None = None
        self.config = dict(keys)
        if keys.get("use_face_loss", True) is False:
            return
        if device is None:
            known = next((part._context.device for part in (vae, detector, recogniser) if isinstance(part, (Vae, Detector, Recogniser))), None)
            device = known if known is not None else "cuda" if torch.cuda.is_available() else "cpu"
        model = keys.get("arcface_model", "r50")
        if detector is None and "detector" not in keys:
            detector = find_detector(root)
        if isinstance(detector, (str, os.PathLike)):
            detector = Detector(detector, device=device)
        if recogniser is None and keys.get("arcface_weights") is None:
            recogniser = find_recogniser(root, model)
            keys.pop("arcface_weights", None)
        if isinstance(recogniser, (str, os.PathLike)):
            recogniser = Recogniser(recogniser, device=device, model=keys.get("arcface_model"))
        if vae is not None and not isinstance(vae, Vae):
            vae = Vae(vae, device=device)
        self.vae = vae
        self.loss = FaceLoss(keys, detector=detector or None, recogniser=recogniser, vae=vae, device=device)

    def again(self, **keys: Any) -> FaceIdentityLoss:
        """Another loss over the same networks, which are shared and not loaded again, with other values of some keys. It
        knows the persons that are registered with this one now."""
        made = object.__new__(FaceIdentityLoss)
        made.loss, made.vae, made.config = None, self.vae, {**self.config, **keys}
        if self.loss is not None and made.config.get("use_face_loss", True) is not False:
            detector, recogniser, vae = self.loss._parts
            made.loss = FaceLoss(made.config, detector=detector, recogniser=recogniser, vae=vae, device=self.loss._context.device)
            with tempfile.TemporaryDirectory() as folder:
                self.save(Path(folder) / "memory")
                made.restore(Path(folder) / "memory")
        return made

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

    def set_reference(self, id: str, images: torch.Tensor, landmarks: torch.Tensor | None = None) -> None:
        """Registers a person under an id, for ``reference_ids``, with the faces of ``[K,3,H,W]``, RGB in [0, 1]."""
        if self.loss is not None:
            self.loss.set_reference(id, images, landmarks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what the loss remembers: see :meth:`FaceLoss.save`. Without a loss nothing is written."""
        if self.loss is not None:
            self.loss.save(path)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Remembers what :meth:`save` wrote: see :meth:`FaceLoss.restore`."""
        if self.loss is not None:
            self.loss.restore(path)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The loss's keys of a YAML or JSON file: those below ``model`` where there is such a section, else those at its top.

    Raises:
        ValueError: for a key that begins like the method's and is none, with the nearest that is
    """
    text = Path(path).read_text(encoding="utf-8")
    if Path(path).suffix.lower() == ".json":
        content = json.loads(text)
    else:
        try:
            import yaml
        except ImportError as error:
            raise ImportError(f"reading {path} needs PyYAML: pip install pyyaml, or give a dict or a JSON file") from error
        content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of keys, got {type(content).__name__}")
    section = content["model"] if isinstance(content.get("model"), dict) else content
    known = build_info()["loss_keys"]
    for key in section:
        if key not in known and str(key).startswith(_OURS):
            import difflib

            near = difflib.get_close_matches(key, known, 1)
            hint = f" (did you mean `{near[0]}`?)" if near else ""
            raise ValueError(f"{path}: unknown key `{key}`{hint}; known are {', '.join(known)}")
    return {key: value for key, value in section.items() if key in known}


def _disabled(prediction: torch.Tensor) -> Report:
    nan = float("nan")
    sample = Sample(Outcome.DISABLED, Located.NOWHERE, Alignment.NONE, nan, 0.0, nan, None, None)
    return Report(0.0, 0.0, 0, (sample,) * (prediction.shape[0] if prediction.dim() else 0))
