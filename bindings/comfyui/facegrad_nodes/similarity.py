"""Nodes that tell how much a face is the person's."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

import facegrad

from . import host, models, references
from .draw import Cell, grid, overlay
from .faces import FACE_TIP, FOLDER_TIP, chosen, detect, index_input, order_input
from .layout import planes
from .sockets import CATEGORY, ORDERS, REFERENCE, Reference, detector_input, recogniser_input

#: What stands for the similarity of an image without a face: the least that a cosine can be.
NO_FACE = -1.0
ALL_FACES = "most similar"
SORTED = ["most similar first", "least similar first", "as they came"]


class FaceSimilarity(io.ComfyNode):
    """How much a face is the person's."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradFaceSimilarity",
            display_name="Face Similarity",
            category=CATEGORY,
            description="Cosine similarity of one face of every image to a reference, in [-1, 1]; -1 where an image has no face. With a usual recogniser two photographs of one person lie near 0.5 and above, two persons near 0.",
            search_aliases=["arcface", "face distance", "compare faces", "identity score", "face analysis"],
            is_input_list=True,
            inputs=[
                io.Image.Input("image", tooltip=f"The images to judge. {FOLDER_TIP}"),
                REFERENCE.Input("reference", tooltip="The person, from Face Reference or Load Face Reference."),
                detector_input(),
                recogniser_input(),
                order_input(),
                index_input(),
            ],
            outputs=[
                io.Float.Output("mean", tooltip="The mean over the images that have a face."),
                io.Float.Output("per_image", is_output_list=True, tooltip="The similarity of every image; -1 where it has no face."),
                io.Image.Output("overlay", is_output_list=True, tooltip="The images with the judged face and its similarity."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: list[torch.Tensor],
        reference: list[Reference],
        detector: list[Any],
        recogniser: list[Any],
        order: list[str] | None = None,
        face_index: list[int] | None = None,
    ) -> Any:
        judge = Judge(reference[:1], detector[0], recogniser[0], order[0] if order else ORDERS[0], face_index[0] if face_index else 0)
        scores, shown = [], []
        for batch in image:
            judged = judge(planes(batch))
            scores += [one.score for one in judged]
            shown.append(torch.cat([overlay(picture[..., :3], *one.label()) for picture, one in zip(batch, judged)]))
        known = [score for score in scores if score != NO_FACE]
        if not known:
            raise ValueError(
                f"image: no face was found in any of the {len(scores)} image(s); lower the detector's threshold or add a smaller det_size"
            )
        return io.NodeOutput(sum(known) / len(known), scores, shown, ui={"text": [listing(scores)]})


def listing(scores: list[float], at_most: int = 24) -> str:
    """The similarities as lines of text, the first ones of many."""
    lines = [f"{at}: " + ("no face" if score == NO_FACE else f"{score:.3f}") for at, score in enumerate(scores[:at_most])]
    more = [f"… and {len(scores) - at_most} more"] if len(scores) > at_most else []
    return "\n".join(lines + more)


class Judged:
    """What was seen in one image.

    Attributes:
        face: the face that counts, if there is one
        score: its similarity, or `NO_FACE`
        person: the number of the reference that it is most similar to
    """

    def __init__(self, face: facegrad.Face | None, score: float, person: int) -> None:
        self.face, self.score, self.person = face, score, person

    def label(self) -> tuple[list[facegrad.Face], list[str]]:
        """What `draw.overlay` takes."""
        return ([self.face], [f"{self.score:.3f}"]) if self.face else ([], [])


class Judge:
    """Compares one face of every image with one or several persons.

    Args:
        people: the references
        order: how the faces of an image are counted, or `ALL_FACES`: the face that is most similar to any of the persons
        index: the number of the face; not used with `ALL_FACES`
    """

    def __init__(self, people: list[Reference], detector: Any, recogniser: Any, order: str, index: int) -> None:
        self._detector, self._recogniser = models.detector(detector), models.recogniser(recogniser)
        self._people = torch.stack(
            [references.embedding(person, self._recogniser, self._recogniser.device).float().cpu() for person in people]
        )
        self._order, self._index = order, index

    def __call__(self, images: torch.Tensor) -> list[Judged]:
        """Judges `[B,3,H,W]`."""
        faces = detect(self._detector, images)
        rows = faces.found if self._order == ALL_FACES else [[face] if face else [] for face in chosen(faces, self._order, self._index)]
        if not any(rows):
            return [Judged(None, NO_FACE, 0) for _ in rows]
        embeddings = self._recogniser.embed(images.to(self._recogniser.device), rows).float().cpu()
        similarities = iter((embeddings @ self._people.T).tolist())
        judged = []
        for row in rows:
            best = Judged(None, NO_FACE, 0)
            for face in row:
                for person, score in enumerate(next(similarities)):
                    if best.face is None or score > best.score:
                        best = Judged(face, score, person)
            judged.append(best)
        return judged


class SortBySimilarity(io.ComfyNode):
    """The pictures of a folder, by how much they show the person."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradSortBySimilarity",
            display_name="Sort by Face Similarity",
            category=CATEGORY,
            description="Keeps the pictures that show the person, sorts them, and draws all with their scores. Connect several references for several people: every picture goes to the person that it is most similar to.",
            search_aliases=["arcface", "filter faces", "best of", "rank images", "dataset cleaning", "face threshold", "curate"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip=f"The pictures to sort. {FOLDER_TIP}"),
                REFERENCE.Input("reference", tooltip="The person, or a list of several."),
                detector_input(),
                recogniser_input(),
                io.Float.Input(
                    "min_similarity",
                    default=0.4,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Pictures below are rejected, as those without a face are.",
                ),
                io.Int.Input("best_n", default=0, min=0, max=100_000, tooltip="Keep at most so many, the most similar ones. 0 keeps all."),
                io.Combo.Input("sort", options=SORTED, default=SORTED[0], tooltip="The order of the pictures that are kept."),
                io.Combo.Input(
                    "face",
                    options=[ALL_FACES, *ORDERS],
                    default=ALL_FACES,
                    tooltip="Which face of a picture counts. most similar: any of them. " + FACE_TIP,
                ),
                io.Int.Input(
                    "face_index",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="The number of the face in that order; 0 is the first. Not used with most similar.",
                ),
                io.Int.Input("columns", default=4, min=1, max=20, tooltip="Columns of the grid."),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The pictures that are kept, sorted."),
                io.Float.Output("similarity", is_output_list=True, tooltip="Their similarities."),
                io.Int.Output("index", is_output_list=True, tooltip="Their places among the pictures that came in, from 0."),
                io.Int.Output("person", is_output_list=True, tooltip="The number of the reference that each is most similar to, from 0."),
                io.Image.Output("rejected", is_output_list=True, tooltip="The other pictures, in the order in which they came."),
                io.Image.Output("grid", tooltip="All pictures with their scores, the kept ones first."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: list[torch.Tensor],
        reference: list[Reference],
        detector: list[Any],
        recogniser: list[Any],
        min_similarity: list[float],
        best_n: list[int],
        sort: list[str],
        face: list[str],
        face_index: list[int],
        columns: list[int],
    ) -> Any:
        judge = Judge(reference, detector[0], recogniser[0], face[0], face_index[0])
        pictures = [one[None, ..., :3] for batch in image for one in batch]
        judged = [one for batch in image for one in judge(planes(batch))]
        ranked = sorted(range(len(judged)), key=lambda at: -judged[at].score)
        kept = [at for at in ranked if judged[at].face is not None and judged[at].score >= min_similarity[0]][: best_n[0] or None]
        if sort[0] == SORTED[1]:
            kept.reverse()
        elif sort[0] == SORTED[2]:
            kept.sort()
        rejected = sorted(set(range(len(judged))) - set(kept))
        several = len(reference) > 1
        cells = [
            Cell(pictures[at][0], judged[at].face, cls.caption(at, judged[at], several), at in kept)
            for at in kept + sorted(rejected, key=ranked.index)
        ]
        drawn = grid(cells, columns[0])
        lines = [f"{len(kept)} of {len(judged)} kept"] + [cls.caption(at, judged[at], several) for at in kept[:24]]
        ui = {"images": host.preview(drawn), "text": ["\n".join(lines)]} | ({} if kept else {"facegrad_warning": [True]})
        columns_out = ([pictures[at] for at in kept], [judged[at].score for at in kept], kept, [judged[at].person for at in kept])
        return io.NodeOutput(*map(host.or_blocked, columns_out), host.or_blocked([pictures[at] for at in rejected]), drawn, ui=ui)

    @staticmethod
    def caption(at: int, one: Judged, several: bool) -> str:
        """A picture's number, its score, and whose face it is."""
        if one.face is None:
            return f"{at}: no face"
        return f"{at}: {one.score:.3f}" + (f", person {one.person}" if several else "")
