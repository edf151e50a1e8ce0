"""Nodes that look at faces, without a gradient."""

from __future__ import annotations

import json
import math
from typing import Any

import torch

import facegrad

from . import host, references
from .draw import overlay
from .layout import pixels, planes
from .sockets import CATEGORY, DETECTOR, FACES, RECOGNISER, REFERENCE, Faces, Reference


def detect(detector: facegrad.Detector, images: torch.Tensor) -> Faces:
    """The faces of `[B,3,H,W]`."""
    return Faces(detector.detect(images), images.shape[2], images.shape[3])


def on_device(images: torch.Tensor, owner: facegrad.Detector | facegrad.Recogniser) -> torch.Tensor:
    """The images where the network is."""
    return images.to(owner.device)


class DetectFaces:
    """Boxes and landmarks."""

    DESCRIPTION = "Finds the faces of every image: boxes, five landmarks and scores, and a picture of them."
    CATEGORY = CATEGORY
    RETURN_TYPES = (FACES, "IMAGE", "INT", "STRING")
    RETURN_NAMES = ("faces", "overlay", "count", "boxes_json")
    FUNCTION = "detect"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "detector": (DETECTOR,)}}

    def detect(self, image: torch.Tensor, detector: facegrad.Detector) -> tuple[Faces, torch.Tensor, int, str]:
        faces = detect(detector, on_device(planes(image), detector))
        shown = [overlay(one[..., :3], found, [f"{face.score:.2f}" for face in found]) for one, found in zip(image, faces.found)]
        listed = [[{"bbox": face.bbox, "score": face.score, "landmarks": face.landmarks} for face in found] for found in faces.found]
        return faces, torch.cat(shown), sum(map(len, faces.found)), json.dumps(listed)


class AlignedFaceCrops:
    """What the recogniser sees."""

    DESCRIPTION = "Cuts every face out as the recogniser and the loss see it, aligned by its landmarks."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("crops",)
    FUNCTION = "crop"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "faces": (FACES,), "recogniser": (RECOGNISER,)}}

    def crop(self, image: torch.Tensor, faces: Faces, recogniser: facegrad.Recogniser) -> tuple[torch.Tensor]:
        if (len(image), *image.shape[1:3]) != (len(faces.found), faces.height, faces.width):
            raise ValueError(
                f"faces were found in {len(faces.found)} image(s) of {faces.width}x{faces.height}, but image has {len(image)} of {image.shape[2]}x{image.shape[1]}; connect the image that Detect Faces got"
            )
        if not any(faces.found):
            raise ValueError("there is no face to crop: Detect Faces found none; lower its detector's threshold or add a smaller det_size")
        return (pixels(recogniser.align(on_device(planes(image), recogniser), faces.found)),)


class FaceReference:
    """Who the person is."""

    DESCRIPTION = (
        "One person from one or several pictures: the largest face of each, and their mean embedding. Pictures without a face are left out."
    )
    CATEGORY = CATEGORY
    RETURN_TYPES = (REFERENCE, "IMAGE", "INT")
    RETURN_NAMES = ("reference", "crops", "count")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "detector": (DETECTOR,), "recogniser": (RECOGNISER,)}}

    def make(
        self, image: torch.Tensor, detector: facegrad.Detector, recogniser: facegrad.Recogniser
    ) -> tuple[Reference, torch.Tensor, int]:
        images = planes(image)
        largest = detect(detector, on_device(images, detector)).largest()
        reference = references.make(images, largest, recogniser, recogniser.device)
        rows, _ = references.stacked(reference)
        crops = recogniser.align(on_device(rows, recogniser), [[face] for face in reference.faces])
        return reference, pixels(crops), len(reference.images)


class SaveFaceReference:
    """A person as a file."""

    DESCRIPTION = "Saves a face reference to output/face_references. The file holds the pictures: treat it as you treat them."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"reference": (REFERENCE,), "name": ("STRING", {"default": "person"})}}

    def save(self, reference: Reference, name: str) -> dict[str, Any]:
        if not name or any(mark in name for mark in '/\\:*?"<>|') or name.startswith("."):
            raise ValueError(f"name: expected a plain file name, got {name!r}")
        path = host.references_folder() / f"{name}.safetensors"
        references.save(reference, path)
        return {"ui": {"text": [str(path)]}, "result": (str(path),)}


class LoadFaceReference:
    """A person from a file."""

    DESCRIPTION = "Loads a face reference from output/face_references or models/face_references."
    CATEGORY = CATEGORY + "/loaders"
    RETURN_TYPES = (REFERENCE,)
    RETURN_NAMES = ("reference",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"file": (host.files("face_references", (".safetensors",)) or ["(none saved)"],)}}

    @classmethod
    def IS_CHANGED(cls, file: str) -> float:
        """A file that was saved anew is loaded anew."""
        return host.file("face_references", file).stat().st_mtime

    def load(self, file: str) -> tuple[Reference]:
        return (references.load(host.file("face_references", file)),)


class FaceSimilarity:
    """How much a face is the person's."""

    DESCRIPTION = (
        "Cosine similarity of the largest face of every image to a reference, in [-1, 1]; nan where an image has no face. With a usual "
        "recogniser two photographs of one person lie near 0.5 and above, two persons near 0."
    )
    CATEGORY = CATEGORY
    RETURN_TYPES = ("FLOAT", "FLOAT", "IMAGE")
    RETURN_NAMES = ("mean", "per_image", "overlay")
    OUTPUT_IS_LIST = (False, True, False)
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "reference": (REFERENCE,), "detector": (DETECTOR,), "recogniser": (RECOGNISER,)}}

    def compare(
        self, image: torch.Tensor, reference: Reference, detector: facegrad.Detector, recogniser: facegrad.Recogniser
    ) -> tuple[float, list[float], torch.Tensor]:
        images = on_device(planes(image), detector)
        largest = detect(detector, images).largest()
        if not any(largest):
            raise ValueError(
                f"no face was found in any of the {len(image)} image(s); lower the detector's threshold or add a smaller det_size"
            )
        rows = [[face] if face else [] for face in largest]
        person = references.embedding(reference, recogniser, recogniser.device)
        found = iter((recogniser.embed(on_device(images, recogniser), rows).float().cpu() @ person).tolist())
        scores = [next(found) if face else math.nan for face in largest]
        shown = [overlay(one[..., :3], faces, [f"{score:.3f}"] * len(faces)) for one, faces, score in zip(image, rows, scores)]
        known = [score for score in scores if not math.isnan(score)]
        return sum(known) / len(known), scores, torch.cat(shown)
