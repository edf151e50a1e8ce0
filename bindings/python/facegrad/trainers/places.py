"""Finds the faces of training pictures in their clean latents, which are decoded once.

The clean latents of a training picture decode to that picture. Its face is the sample's own reference, and its place is the
place of the face in the estimate of x0 at every noise level. This works without pictures in the batch, which trainers with
cached latents do not have.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from ..models import Detector, Face

log = logging.getLogger("facegrad")

#: The largest distance between two encodings of one picture, which differ by the VAE's sampling. Another picture, crop or flip
#: differs by far more.
SAME = 0.05

#: The signature of a picture: (height, width) of its latents, and their averages over an 8×8 grid.
Signature: TypeAlias = tuple[tuple[int, int], torch.Tensor]

#: Faces to remember. One is 10 numbers, a signature, and an embedding in the library.
CAPACITY = 4096


#: Chooses one of several faces of a picture of (height, width), or none.
Choose: TypeAlias = "Callable[[Sequence[Face], tuple[int, int]], Face | None]"


@dataclass(frozen=True)
class Place:
    """A face in a training picture: the id under which the loss knows its embedding, and its landmarks ``[5,2]`` and box
    ``[4]`` (x1, y1, x2, y2) in pixels of the decoded picture. If ``id`` is None, the picture shows no face."""

    id: str | None
    landmarks: torch.Tensor
    box: torch.Tensor


class Places:
    """The faces of clean latents.

    A sample is identified by its latents, averaged to 8×8. Trainers have no common name for samples, and a name would be the
    same for a flipped or newly cropped version.

    Args:
        decode: decodes clean latents ``[N,C,h,w]`` of the model to images ``[N,3,H,W]``, RGB in [0, 1], without a gradient
        detector: finds the faces
        choose: chooses one of several faces, from the faces and the picture's (height, width)
        register: called with (id, picture ``[1,3,H,W]``, landmarks ``[1,5,2]``) for every new face
        forget: called with the id of a face that is dropped for newer ones
    """

    def __init__(
        self,
        decode: Callable[[torch.Tensor], torch.Tensor],
        detector: Detector,
        choose: Choose,
        register: Callable[[str, torch.Tensor, torch.Tensor], None],
        forget: Callable[[str], None],
        capacity: int = CAPACITY,
    ) -> None:
        self._decode, self._detector, self._choose = decode, detector, choose
        self._register, self._forget, self._capacity = register, forget, capacity
        self._known: OrderedDict[str, tuple[Signature, Place]] = OrderedDict()
        self._made = 0
        #: How many pictures have been decoded.
        self.decoded = 0

    def look(self, latents: torch.Tensor) -> list[Place]:
        """The face of every row of ``[N,C,h,w]``. All new rows are decoded in one call."""
        signatures = _signatures(latents)
        keys = [self._find(signature) for signature in signatures]
        new = [at for at, key in enumerate(keys) if key is None]
        if new:
            pictures = self._decode(latents[new].detach()).clamp(0, 1)
            self.decoded += len(new)
            for at, picture, faces in zip(new, pictures, self._detector.detect(pictures), strict=True):
                keys[at] = self._add(signatures[at], picture, faces)
        found = []
        for key in keys:
            assert key is not None
            self._known.move_to_end(key)
            found.append(self._known[key][1])
        while len(self._known) > self._capacity:
            key, (_, place) = self._known.popitem(last=False)
            if place.id is not None:
                self._forget(place.id)
        return found

    def _find(self, signature: Signature) -> str | None:
        size, means = signature
        same = [(key, known[1]) for key, (known, _) in self._known.items() if known[0] == size and known[1].shape == means.shape]
        if not same:
            return None
        distances = (torch.stack([known for _, known in same]) - means).norm(dim=1) / means.norm().clamp(min=1e-12)
        best = int(distances.argmin())
        return same[best][0] if float(distances[best]) < SAME else None

    def _add(self, signature: Signature, picture: torch.Tensor, faces: Sequence[Face]) -> str:
        key = f"latents/{self._made}"
        self._made += 1
        faces = [face for face in faces if face.landmarks is not None]
        place = Place(None, torch.full((5, 2), float("nan")), torch.full((4,), float("nan")))
        face = self._choose(faces, (picture.shape[-2], picture.shape[-1])) if faces else None
        if face is not None:
            place = Place(key, torch.tensor(face.landmarks), torch.tensor(face.bbox))
            self._register(key, picture[None], place.landmarks[None])
        self._known[key] = (signature, place)
        return key

    def state_dict(self) -> dict[str, Any]:
        """The signatures and places. The embeddings are in the loss's own state."""
        rows = [(key, signature, place.id, place.landmarks, place.box) for key, (signature, place) in self._known.items()]
        return {"made": self._made, "known": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._made = int(state["made"])
        self._known = OrderedDict((key, (signature, Place(id, landmarks, box))) for key, signature, id, landmarks, box in state["known"])


def _signatures(latents: torch.Tensor) -> list[Signature]:
    height, width = latents.shape[-2:]
    pooled = F.adaptive_avg_pool2d(latents.detach().float(), (min(8, height), min(8, width))).flatten(1).cpu()
    return [((height, width), row.clone()) for row in pooled]


def chooser(face_choice: str, face_index: int = 0) -> Choose:
    """The loss's ``face_choice`` for faces that Python has detected."""

    def choose(faces: Sequence[Face], size: tuple[int, int]) -> Face | None:
        if face_choice == "index":
            return faces[face_index] if face_index < len(faces) else None
        height, width = size

        def rank(face: Face) -> float:
            left, top, right, bottom = face.bbox
            if face_choice == "largest":
                return (right - left) * (bottom - top)
            if face_choice == "center":
                return -((left + right - width) ** 2) - (top + bottom - height) ** 2
            return face.score

        return max(faces, key=rank)

    return choose
