"""What travels along the links: socket types as the graph shows them, and the values behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from comfy_api.latest import io

import facegrad

DETECTOR = io.Custom("FACE_DETECTOR")
RECOGNISER = io.Custom("FACE_RECOGNISER")
DECODER = io.Custom("FACE_VAE")
FACES = io.Custom("FACES")
REFERENCE = io.Custom("FACE_REFERENCE")
TAPE = io.Custom("FACE_TAPE")
LOG = io.Custom("FACE_LOSS_LOG")
LOSS_MAP = io.Custom("LOSS_MAP")
#: Links of other packs. Their objects name the files that they were loaded from, and those files are read here.
FOREIGN = [io.Custom("INSIGHTFACE"), io.Custom("FACEANALYSIS")]

CATEGORY = "facegrad"


def detector_input() -> Any:
    """The socket of every node that finds faces."""
    return io.MultiType.Input(
        "detector",
        [DETECTOR, *FOREIGN],
        tooltip="Finds the faces. From Load Face Pack or Load Face Detector; InsightFace links of other packs fit too.",
    )


def recogniser_input() -> Any:
    """The socket of every node that compares faces."""
    return io.MultiType.Input(
        "recogniser",
        [RECOGNISER, *FOREIGN],
        tooltip="Compares the faces (ArcFace). From Load Face Pack or Load Face Recogniser; InsightFace links of other packs fit too.",
    )


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

    def ordered(self, by: str) -> list[list[facegrad.Face]]:
        """Per image its faces, the first one first.

        Args:
            by: `largest` box, best `score`, or `left to right`
        """
        return [sorted(faces, key=_ORDERS[by]) for faces in self.found]

    def largest(self) -> list[facegrad.Face | None]:
        """Per image the face with the largest box."""
        return [faces[0] if faces else None for faces in self.ordered("largest")]


def _area(face: facegrad.Face) -> float:
    x1, y1, x2, y2 = face.bbox
    return (x2 - x1) * (y2 - y1)


_ORDERS = {
    "largest": lambda face: -_area(face),
    "score": lambda face: -face.score,
    "left to right": lambda face: face.bbox[0],
}
#: What the faces of an image can be ordered by.
ORDERS = list(_ORDERS)


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

    def expect(self, kind: str, socket: str) -> TapeNode:
        """Itself, where it holds `kind`.

        Args:
            socket: the input at which it came
        """
        if self.kind != kind:
            raise ValueError(
                f"{socket}: expected a tape that ends in {kind}, got one that ends in {self.kind}; wire Predict x0 → Unpack → Decode → Face Loss"
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
        rollout: figures of the step's rollout; empty where it had none
    """

    step: int
    total: float
    identity: float
    similarity: float
    outcomes: list[str] = field(default_factory=list)
    rollout: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A picture that the model made of noise while it was trained.

    Attributes:
        step: steps before it
        image: IMAGE `[H,W,3]`
        similarity: its face's cosine to the reference; None where it shows no face
    """

    step: int
    image: torch.Tensor
    similarity: float | None


@dataclass
class Log:
    """Every step of the last training that ran with the loss, and the samples that were made on the way."""

    records: list[Record] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets the training before."""
        self.records.clear()
        self.samples.clear()

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

    def similarity(self) -> float | None:
        """The mean similarity over the last tenth of the steps in which a sample counted; None where none counted."""
        return _lately([record.similarity for record in self.records if record.similarity == record.similarity])

    def rolled(self) -> list[tuple[int, float]]:
        """Step and similarity of every rollout in which a face counted."""
        key = "rollout/similarity"
        return [(record.step, record.rollout[key]) for record in self.records if key in record.rollout]

    def summary(self) -> str:
        """The log in one line."""
        if not self.records:
            return "no step was taken: no training ran with this Face Identity Loss. Connect its model to Train LoRA"
        skipped = ", ".join(f"{count} × {reason}" for reason, count in self.skipped().items()) or "none"
        similarity = self.similarity()
        end = "no sample counted, so the LoRA was trained without the loss" if similarity is None else f"similarity lately {similarity:.3f}"
        rollouts = sum(bool(record.rollout) for record in self.records)
        lately = _lately([similarity for _, similarity in self.rolled()])
        seen = "no face counted in them" if lately is None else f"their similarity lately {lately:.3f}"
        more = f"; {rollouts} rollouts, {seen}" if rollouts else ""
        return f"{len(self.records)} steps; {end}; {self.counted()} samples counted; skipped: {skipped}{more}"


def _lately(values: list[float]) -> float | None:
    """The mean of the last tenth; None of nothing."""
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else None
