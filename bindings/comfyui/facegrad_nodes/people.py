"""Nodes that make, save and load a reference: who the person is."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

import facegrad

from . import host, models, references
from .faces import FOLDER_TIP, chosen, detect, index_input, order_input
from .layout import pixels, planes
from .sockets import CATEGORY, ORDERS, REFERENCE, Reference, detector_input, recogniser_input

IF_EXISTS = ["number it", "replace", "refuse"]


class FaceReference(io.ComfyNode):
    """Who the person is."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradFaceReference",
            display_name="Face Reference",
            category=CATEGORY,
            description="One person from one or several pictures: one face of each, and their mean embedding. Pictures without a face are left out.",
            search_aliases=["arcface", "face embedding", "identity", "insightface", "person"],
            is_input_list=True,
            inputs=[
                io.Image.Input("image", tooltip=f"Pictures of one person. {FOLDER_TIP}"),
                detector_input(),
                recogniser_input(),
                order_input(),
                index_input(),
            ],
            outputs=[
                REFERENCE.Output("reference", tooltip="The person."),
                io.Image.Output("crops", tooltip="The person's face in every picture that was used."),
                io.Int.Output("count", tooltip="How many pictures were used."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: list[torch.Tensor],
        detector: list[Any],
        recogniser: list[Any],
        order: list[str] | None = None,
        face_index: list[int] | None = None,
    ) -> Any:
        finder, network = models.detector(detector[0]), models.recogniser(recogniser[0])
        rows: list[torch.Tensor] = []
        faces: list[facegrad.Face | None] = []
        for batch in map(planes, image):
            rows.extend(batch)
            faces.extend(chosen(detect(finder, batch), order[0] if order else ORDERS[0], face_index[0] if face_index else 0))
        reference = references.make(rows, faces, network, network.device)
        pictures, _ = references.stacked(reference)
        crops = network.align(pictures.to(network.device), [[face] for face in reference.faces])
        used = len(reference.images)
        return io.NodeOutput(reference, pixels(crops), used, ui={"text": [f"{used} of {len(rows)} picture(s) used"]})


class SaveFaceReference(io.ComfyNode):
    """A person as a file."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradSaveFaceReference",
            display_name="Save Face Reference",
            category=CATEGORY,
            description="Saves a face reference to output/face_references. The file holds the pictures: treat it as you treat them. A file that is there is replaced only where you say so.",
            search_aliases=["save face", "face model", "arcface"],
            is_output_node=True,
            inputs=[
                REFERENCE.Input("reference", tooltip="The person to save."),
                io.String.Input("name", default="person", tooltip="The file's name, without folder and ending."),
                io.Combo.Input(
                    "if_exists",
                    options=IF_EXISTS,
                    default=IF_EXISTS[0],
                    optional=True,
                    tooltip="What happens where another file has this name: number it saves beside it, replace overwrites it, refuse stops. The same person again is not saved twice.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, reference: Reference, name: str, if_exists: str = IF_EXISTS[0]) -> Any:
        if not name or any(mark in name for mark in '/\\:*?"<>|') or name.startswith("."):
            raise ValueError(f"name: expected a plain file name, got {name!r}")
        path = references.place(reference, host.references_folder() / f"{name}.safetensors", if_exists)
        references.save(reference, path)
        return io.NodeOutput(str(path), ui={"text": [str(path)]})


class LoadFaceReference(io.ComfyNode):
    """A person from a file."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradLoadFaceReference",
            display_name="Load Face Reference",
            category=CATEGORY + "/loaders",
            description="Loads a face reference from output/face_references or models/face_references.",
            search_aliases=["load face", "face model", "arcface"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=host.files("face_references", (".safetensors",)) or ["(none saved)"],
                    tooltip="A file that Save Face Reference wrote. Press R to see new ones.",
                )
            ],
            outputs=[REFERENCE.Output("reference", tooltip="The person.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> float:
        """A file that was saved anew is loaded anew."""
        return host.file("face_references", file).stat().st_mtime

    @classmethod
    def execute(cls, file: str) -> Any:
        return io.NodeOutput(references.load(host.file("face_references", file)))
