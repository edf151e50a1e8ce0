"""The face loss of a trainer: made from its ``face_loss`` section, called once per step with the trainer's own tensors."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F

from ..graph import Graph
from ..identity import FaceIdentityLoss
from ..images import image_files, read_image
from ..models import Detector, Recogniser
from ..packs import find_detector, find_recogniser
from ..vae import Vae
from .convention import TOLERANCE, Convention, fit
from .layout import one_picture
from .places import Place, Places, chooser
from .recall import Recall, Rollouts
from .section import Section, read_section
from .term import FaceTerm

log = logging.getLogger("facegrad")

#: The longest side of a person's picture, pixels. A larger picture is scaled down.
LONGEST = 1024


def show_log() -> None:
    """Prints what the logger ``facegrad`` says, where the program does not print it already.

    It stays on under ``logging.disable``: ai-toolkit switches off every logger's warnings, and so facegrad's, with it.
    """
    log.isEnabledFor = lambda level: not log.disabled and level >= log.getEffectiveLevel()  # type: ignore[method-assign]
    if log.handlers or (log.hasHandlers() and log.isEnabledFor(logging.INFO)):
        return
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    log.propagate = False


class TrainerFace:
    """The face loss for an adapter, or for one line in your own training loop:

    >>> face = TrainerFace("face.yaml")  # doctest: +SKIP
    >>> loss = loss + face.step(  # doctest: +SKIP
    ...     prediction=model_pred, latents=model_input, noise=noise, x_t=noisy_model_input, target=target, vae=vae)

    At every step these tensors tell how x0 follows from the prediction (:mod:`.convention`). The result is logged once, on the
    logger ``facegrad``. Tensors that do not fit together are an error.

    Args:
        section: the section ``face_loss``, as a file or as its keys; see docs/trainers.md

    Attributes:
        term: the :class:`FaceTerm`, with the figures of the run
        rollouts: the section's rollouts, with their noise levels; None without them
        convention: the :class:`Convention` of the last step
    """

    def __init__(self, section: Mapping[str, Any] | str | os.PathLike[str] | Section) -> None:
        self.section = section if isinstance(section, Section) else read_section(section)
        enabled = self.section.loss.get("use_face_loss", True) is not False
        self.term = FaceTerm(self._load, average=self.section.average, warn_after=self.section.warn_after, enabled=enabled)  # type: ignore[arg-type]
        self.convention: Convention | None = None
        self._told: str | None = None
        self._vae: Any = None
        self._hints: dict[str, Any] = {}
        self._device: torch.device = torch.device("cpu")
        self._places: Places | None = None
        self._saved: Mapping[str, Any] | None = None
        self._detector: Detector | None = None
        self._decoder: Any = None
        self._config: dict[str, Any] = {}
        self._channels = 0
        keys = self.section.rollouts
        self.rollouts = Rollouts(keys, lambda: self.term.loss, self.section.warn_after) if keys is not None else None

    def step(
        self,
        *,
        prediction: torch.Tensor,
        latents: torch.Tensor,
        x_t: torch.Tensor,
        target: torch.Tensor,
        noise: torch.Tensor | None = None,
        vae: Any = None,
        pictures: torch.Tensor | None = None,
        paths: Sequence[str | None] | None = None,
        captions: Sequence[str | None] | None = None,
        skip: Sequence[str | None] | None = None,
        tolerance: float = TOLERANCE,
        hints: Mapping[str, Any] | None = None,
        step: int | None = None,
        recall: Recall | None = None,
        **targets: Any,
    ) -> torch.Tensor:
        """The weighted face loss of one batch: a scalar, added to the trainer's loss before ``backward``.

        Args:
            prediction: what the trainer compares with ``target``: ``[N,C,h,w]``, ``[N,C,1,h,w]`` or ``[N,1,C,h,w]``; the
                gradient flows here
            latents, noise, x_t, target: clean latents, noise, their mixture, and the target of the trainer's loss, in the
                prediction's layout. x_t may have further (control) channels after its own. Without ``noise``, the other
                three tell the convention
            vae: the trainer's own VAE, which is used where the section names none
            pictures: training pictures ``[N,3,H,W]``, RGB in [0, 1], for ``references: pictures``
            paths, captions: per sample a path and a caption, with which the section's ``persons`` are matched
            skip: per sample the reason why it gets no face loss (such as ``"regularisation"``), or None
            tolerance: the largest relative residual of the convention that is accepted
            hints: keys of the loss that the trainer knows (``latent_format``, ``packing``); the section's keys take precedence
            step: the optimiser's step, for ``every_n_steps``; None: the calls are counted
            recall: how to call the model again, for the section's ``rollouts``
            targets: further arguments of :class:`facegrad.targets.Targets`, per sample

        Raises:
            ConventionError: the tensors do not fit together, or do not fit the section's ``prediction``
        """
        if not self.term.enabled:
            return prediction.new_zeros((), dtype=torch.float32)
        if self.rollouts is not None and recall is None:
            raise ValueError("rollouts: the trainer's model cannot be called a second time from here; take `rollouts` out of the section")
        self._device = prediction.device
        self._hints = dict(hints or {})
        self._vae = vae if self._vae is None else self._vae
        count = len(prediction)
        reasons: list[str | None] = list(skip) if skip is not None else [None] * count
        names: list[str | None] = [None] * count
        if self.section.references == "persons":
            for at in range(count):
                names[at] = self._person(paths[at] if paths else None, captions[at] if captions else None)
                reasons[at] = reasons[at] or (None if names[at] else "no_person")
        rows = [at for at in range(count) if reasons[at] is None]
        if not rows:
            nothing = self._call(prediction[:0], reasons, step, {})
            return (
                nothing
                if self.rollouts is None or recall is None
                else nothing + self.rollouts.accompany(recall, latents, self.term.step - 1)
            )
        whole = latents
        prediction, latents, target, x_t = (one_picture(x) for x in (prediction, latents, target, x_t))
        noise = one_picture(noise) if noise is not None else None
        if x_t.dim() == latents.dim() and x_t.shape[1] > latents.shape[1]:
            x_t = x_t[:, : latents.shape[1]]
        tensors = {
            "prediction": prediction,
            "latents": latents,
            "x_t": x_t,
            "target": target,
            **({"noise": noise} if noise is not None else {}),
        }
        if len({tuple(x.shape) for x in tensors.values()}) != 1:
            raise ValueError("expected one shape, got " + ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items()))
        every = rows == list(range(count))
        tensors = {name: (x if every else x[rows]).to(prediction.device) for name, x in tensors.items()}
        found = fit(tensors["latents"], tensors["x_t"], tensors["target"], tensors.get("noise"), tolerance)
        self._tell(found)
        arguments = {key: value[rows] if isinstance(value, torch.Tensor) else [value[at] for at in rows] for key, value in targets.items()}
        arguments |= {"x_t": tensors["x_t"].detach(), "t": found.level, "coefficients": found.coefficients}
        live = list(range(len(rows)))
        self._channels = int(prediction.shape[1])
        self._restore()
        if "latents" in (self.section.references, self.section.landmarks):
            places = self._look(tensors["latents"])
            live = [at for at, place in enumerate(places) if place.id is not None]
            for at in set(range(len(rows))) - set(live):
                reasons[rows[at]] = "no_reference_face"
            arguments |= {"sample_ids": [place.id for place in places]}
            if self.section.landmarks == "latents":
                arguments |= {"landmarks": torch.stack([p.landmarks for p in places]), "boxes": torch.stack([p.box for p in places])}
            if self.section.references == "latents":
                arguments |= {"reference_ids": [place.id for place in places]}
        if self.section.references == "persons":
            arguments |= {"reference_ids": [names[at] for at in rows]}
        if self.section.references == "pictures":
            if pictures is None:
                raise ValueError(
                    "references: pictures: the batch has none, because latents are cached: use `references: latents`, which needs none"
                )
            arguments |= {"references": pictures[rows]}
        if self.section.min_snr is not None:
            snr = (found.signal / found.noise.clamp(min=1e-12)).square()
            arguments |= {"sample_weights": (self.section.min_snr / snr.clamp(min=1e-12)).clamp(max=1).float()}
        if len(live) < len(rows):
            arguments = {
                key: value[live] if isinstance(value, torch.Tensor) else [value[at] for at in live] for key, value in arguments.items()
            }
        chosen = tensors["prediction"] if len(live) == len(rows) else tensors["prediction"][live]
        value = self._call(chosen, reasons, step, arguments)
        if self.rollouts is None or recall is None:
            return value
        ids: list[str | None] = [None] * count
        for at, id in zip((rows[at] for at in live), arguments.get("reference_ids", ()), strict=False):
            ids[at] = id
        pictured = pictures if self.section.references == "pictures" else None
        return value + self.rollouts.step(recall, found, tensors, rows, whole, self.term.step - 1, ids, pictured)

    def logs(self) -> dict[str, float]:
        """Figures of the last call: see :meth:`FaceTerm.logs` and :meth:`Rollout.logs`."""
        return self.term.logs() | (self.rollouts.rollout.logs() if self.rollouts is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: the term's state, and the places of the training pictures' faces."""
        places = self._places.state_dict() if self._places is not None else None
        return {
            **self.term.state_dict(),
            "places": places,
            "rollouts": self.rollouts.rollout.state_dict() if self.rollouts is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned. The models are loaded at the next step."""
        self._saved = dict(state)

    def _call(self, prediction: torch.Tensor, reasons: Sequence[str | None], step: int | None, arguments: dict[str, Any]) -> torch.Tensor:
        self._restore()
        return self.term(prediction=prediction, step=step, left_out=Counter(r for r in reasons if r is not None), **arguments)

    def _restore(self) -> None:
        """Applies a state that was loaded before the models."""
        if self._saved is None:
            return
        saved, self._saved = dict(self._saved), None
        places, rollouts = saved.pop("places", None), saved.pop("rollouts", None)
        if rollouts is not None and self.rollouts is not None:
            self.rollouts.rollout.load_state_dict(rollouts)
        self.term.load_state_dict(saved)
        if places is not None:
            self._places_of(self.term.loss).load_state_dict(places)

    def _tell(self, found: Convention) -> None:
        if self.section.stated is not None:
            found.check(self.section.stated)
        self.convention = found
        text = found.formula if found.kind != "custom" else found.kind
        if text != self._told:
            self._told = text
            log.info("face loss: %s", found)

    def _person(self, path: str | None, caption: str | None) -> str | None:
        persons = self.section.persons
        if len(persons) == 1 and persons[0].match is None:
            return persons[0].name
        texts = [text.replace("\\", "/").lower() for text in (path, caption) if text]
        fits = [p.name for p in persons if any(fnmatch(text, f"*{pattern.lower()}*") for pattern in p.match or () for text in texts)]
        if len(fits) > 1:
            raise ValueError(f"persons: {path or caption!r} matches {' and '.join(fits)}; make their `match` tell them apart")
        if not texts:
            raise ValueError(
                "persons: this trainer tells neither paths nor captions, by which `match` could choose; name one person without `match`"
            )
        return fits[0] if fits else None

    def _look(self, latents: torch.Tensor) -> list[Place]:
        return self._places_of(self.term.loss).look(latents)

    def _load(self) -> FaceIdentityLoss:
        section = self.section
        device = torch.device(section.device) if section.device else self._device
        detector = section.detector if section.detector is not None else find_detector(section.root)
        self._detector = Detector(device=device, **_keys(detector, det_sizes=[128, 640]))
        recogniser = (
            section.recogniser
            if section.recogniser is not None
            else find_recogniser(section.root, section.loss.get("arcface_model", "r50"))
        )
        keys = {"face_align_mode": "kps", **self._hints, **section.loss}
        keys.setdefault("latent_format", None)
        source = self._decoder = self._source(device)
        if isinstance(source, Vae):
            if keys.get("packing") is None and self._channels == 4 * source.channels:
                keys["packing"] = "flux2"
            if keys["latent_format"] is None and source.latent_format is None:
                raise ValueError(
                    "latent_format: the VAE does not tell how the model's latents relate to its own; add `latent_format` to the "
                    "section (sd15, sdxl, sd3, flux, flux2, qwen_image, wan21, none)"
                )
        keys = {key: value for key, value in keys.items() if value is not None}
        keys |= {"prediction": {"kind": "custom"}, "landmarks": "detect" if section.landmarks == "latents" else section.landmarks}
        self._config = keys
        log.info(
            "face loss: references from %s, places of faces from %s, VAE %s, detector %s, recogniser %s", section.references, section.landmarks,
            "of the section" if section.vae is not None else "of the trainer", "of the section" if section.detector is not None else detector,
            "of the section" if section.recogniser is not None else recogniser,
        )  # fmt: skip
        loss = FaceIdentityLoss(
            keys, vae=source, detector=self._detector, recogniser=Recogniser(device=device, **_keys(recogniser)), device=device
        )
        for person in section.persons:
            loss.set_reference(person.name, *self._pictures(person.pictures))
        return loss

    def _source(self, device: torch.device) -> Any:
        """The decoder: the section's VAE, else the trainer's own."""
        given = self.section.vae
        if given == "pixels":
            return lambda x: x.float() / 2 + 0.5
        if given is not None:
            keys = dict(given) if isinstance(given, Mapping) else {"path": given}
            named = {key: keys.pop(key) for key in ("dtype", "recompute", "slicing") if key in keys}
            return Vae(keys.pop("path"), device=device, **named, config=keys or None)
        if self._vae is None:
            raise ValueError("vae: the trainer hands none over here; name its file or folder in the section, `vae: ae.safetensors`")
        return Vae(self._vae, device=device) if not isinstance(self._vae, Vae) else self._vae

    def _places_of(self, loss: FaceIdentityLoss) -> Places:
        if self._places is None:
            assert self._detector is not None
            keys: dict[str, Any] = {key: self._config[key] for key in ("packing", "latent_format", "latent_crop") if key in self._config}
            vae, source = loss.vae, self._decoder

            def decode(latents: torch.Tensor) -> torch.Tensor:
                if not isinstance(vae, Vae):
                    with torch.no_grad():
                        images: torch.Tensor = source(latents)
                    return images
                graph = Graph(latents.device)
                return graph.read(graph.decode(graph.unpack(graph.input(latents.contiguous()), vae, keys), vae))

            def register(id: str, picture: torch.Tensor, landmarks: torch.Tensor) -> None:
                if self.section.references == "latents":
                    points = landmarks if self._config["face_align_mode"] == "kps" else None
                    loss.set_reference(id, picture, points)
                    if self.rollouts is not None:
                        self.rollouts.register(id, picture, points)

            def forget(id: str) -> None:
                if self.section.references == "latents" and loss.loss is not None:
                    loss.loss.remove_reference(id)
                    if self.rollouts is not None:
                        self.rollouts.forget(id)

            choose = chooser(self._config.get("face_choice", "score"), int(self._config.get("face_index", 0)))
            self._places = Places(decode, self._detector, choose, register, forget)
        return self._places

    def _pictures(self, paths: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A person's pictures as one tensor, padded with black to one size, and the faces' landmarks."""
        assert self._detector is not None
        choose, found = chooser(self.section.loss.get("face_choice", "score"), int(self.section.loss.get("face_index", 0))), []
        for path in image_files(paths):
            picture = read_image(path).float()[None] / 255
            scale = LONGEST / max(picture.shape[-2:])
            if scale < 1:
                picture = F.interpolate(picture, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1)
            faces = [face for face in self._detector.detect(picture.to(self._detector.device))[0] if face.landmarks is not None]
            face = choose(faces, (picture.shape[-2], picture.shape[-1])) if faces else None
            if face is None:
                log.warning("face loss: %s shows no face and is left out of the references", path)
                continue
            found.append((picture[0], torch.tensor(face.landmarks)))
        if not found:
            raise ValueError(f"persons: none of {', '.join(paths)} shows a face")
        height, width = (max(picture.shape[at] for picture, _ in found) for at in (1, 2))
        padded = torch.stack([F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p, _ in found])
        kps = self.section.loss.get("face_align_mode", "kps") == "kps"
        return padded.to(self._detector.device), torch.stack([points for _, points in found]) if kps else None


def _keys(given: Any, **defaults: Any) -> dict[str, Any]:
    """A file's path, or an object of keys with ``path``, as keyword arguments."""
    return {**defaults, **given} if isinstance(given, Mapping) else {**defaults, "path": os.fspath(given)}
