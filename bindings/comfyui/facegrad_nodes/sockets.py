"""What travels along the links: type names as the graph shows them, and the values behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

import facegrad

DETECTOR = "FACE_DETECTOR"
RECOGNISER = "FACE_RECOGNISER"
DECODER = "FACE_VAE"
FACES = "FACES"
REFERENCE = "FACE_REFERENCE"
TAPE = "FACE_TAPE"
LOG = "FACE_LOSS_LOG"

CATEGORY = "facegrad"


@dataclass(frozen=True)
class Faces:
    """The faces of a batch of images.

    Attributes:
        found: per image its faces, by falling score; pixels
        height, width: of the images, pixels
    """

    found: list[list[facegrad.Face]]
    height: int
    width: int

    def largest(self) -> list[facegrad.Face | None]:
        """Per image the face with the largest box."""

        def area(face: facegrad.Face) -> float:
            x1, y1, x2, y2 = face.bbox
            return (x2 - x1) * (y2 - y1)

        return [max(faces, key=area) if faces else None for faces in self.found]


@dataclass(frozen=True)
class Reference:
    """One person.

    Attributes:
        images: per picture `[3,H,W]` RGB in [0, 1], float32, on the CPU; sizes may differ
        faces: per picture the person's face, pixels
        embedding: `[D]`, length 1: the normalised mean over the pictures
        recogniser: description of the network that made the embedding
    """

    images: list[torch.Tensor]
    faces: list[facegrad.Face]
    embedding: torch.Tensor
    recogniser: str


@dataclass(frozen=True)
class TapeNode:
    """A node of the library's tape.

    Attributes:
        graph: the tape
        node: its number there
        kind: what it holds: `latent` (model space), `vae latent`, `images` or `loss`
        origin: the number of the prediction, where gradients are wanted
    """

    graph: Any
    node: int
    kind: str
    origin: int

    def expect(self, kind: str) -> TapeNode:
        """Itself, where it holds `kind`."""
        if self.kind != kind:
            raise ValueError(
                f"expected a tape that ends in {kind}, got one that ends in {self.kind}; wire Predict x0 → Unpack → Decode → Face Loss"
            )
        return self

    def then(self, node: int, kind: str) -> TapeNode:
        """The node that follows on the same tape."""
        return TapeNode(self.graph, node, kind, self.origin)


@dataclass
class Record:
    """What one step of a training did.

    Attributes:
        step: from 0
        total: the trainer's loss with the identity loss in it; NaN where not known
        identity: the weighted identity loss in it
        similarity: mean cosine of the counted samples; NaN where none counts
        outcomes: per sample why it counts or not
    """

    step: int
    total: float
    identity: float
    similarity: float
    outcomes: list[str] = field(default_factory=list)


@dataclass
class Log:
    """Every step of the last training that ran with the loss."""

    records: list[Record] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets the training before."""
        self.records.clear()

    def skipped(self) -> dict[str, int]:
        """How often a sample did not count, by reason, most frequent first."""
        reasons: dict[str, int] = {}
        for record in self.records:
            for outcome in record.outcomes:
                if outcome != "counted":
                    reasons[outcome] = reasons.get(outcome, 0) + 1
        return dict(sorted(reasons.items(), key=lambda item: -item[1]))

    def counted(self) -> int:
        """How many samples counted."""
        return sum(outcome == "counted" for record in self.records for outcome in record.outcomes)
