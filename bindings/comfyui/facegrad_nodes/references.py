"""Whom the trainer's images are compared with, and references as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import facegrad
from facegrad.graph import Graph

from .decoder import FaceDecoder
from .sockets import Reference

_PERSON = "person"


class OnePerson:
    """The same person for every image of the training set."""

    count: int | None = None

    def __init__(self, reference: Reference) -> None:
        self._images, self._landmarks = stacked(reference)

    def begin(self) -> None:
        """Nothing to prepare."""

    def register(self, loss: facegrad.FaceIdentityLoss) -> None:
        loss.set_reference(_PERSON, self._images, self._landmarks)

    def targets(self, indices: Sequence[int], target: torch.Tensor, latents: dict[str, Any]) -> dict[str, Any]:
        return {"reference_ids": [_PERSON] * len(indices)}


class PerImage:
    """A reference image of its own for every image of the training set, or one for all.

    Args:
        images: `[3,H,W]` RGB in [0, 1], in the order of the training set, or one of them
        places: whether places in a reference image are taken for places in the training image

    Attributes:
        count: how many images there are
    """

    def __init__(self, images: Sequence[torch.Tensor], places: bool) -> None:
        self._images, self._places = list(images), places
        self.count: int | None = len(images)

    def begin(self) -> None:
        """Nothing to prepare."""

    def register(self, loss: facegrad.FaceIdentityLoss) -> None:
        """Nothing: the images go with every batch, and the library remembers their faces."""

    def targets(self, indices: Sequence[int], target: torch.Tensor, latents: dict[str, Any]) -> dict[str, Any]:
        rows = [self._images[0 if self.count == 1 else at] for at in indices]
        height, width = (max(row.shape[side] for row in rows) for side in (1, 2))
        return {"references": torch.stack([self._fitted(row, height, width) for row in rows]).to(target.device)}

    def _fitted(self, image: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """An image in the size of its batch: scaled where the form is the same, else with black below and to the right."""
        if image.shape[1:] == (height, width):
            return image
        if abs(image.shape[1] / image.shape[2] - height / width) < 0.02 * height / width:
            return torch.nn.functional.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
        if self._places:
            raise ValueError(
                f"Face Identity Loss: reference images of {image.shape[2]}x{image.shape[1]} and {width}x{height} came into one batch; with "
                "landmarks from the reference they must have the form of the training images: scale them alike, or choose landmarks `detect`"
            )
        return torch.nn.functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))


class TrueLatents:
    """Every image of the training set is its own reference: the decode of its clean latent."""

    count: int | None = None

    def __init__(self, decoder: FaceDecoder) -> None:
        self._decoder = decoder
        self._decoded: dict[int, torch.Tensor] = {}

    def begin(self) -> None:
        # A new training may have other latents.
        self._decoded.clear()

    def register(self, loss: facegrad.FaceIdentityLoss) -> None:
        """Nothing: the images go with every batch."""

    def targets(self, indices: Sequence[int], target: torch.Tensor, latents: dict[str, Any]) -> dict[str, Any]:
        for at, latent in zip(indices, target):
            if at not in self._decoded:
                graph = Graph(self._decoder.device)
                space = graph.unpack(graph.input(latent[None]), self._decoder.vae, latents)
                image = graph.read(graph.decode(space, self._decoder.vae))[0]
                # 8 bits, as the pictures that recognisers see: a training set is held in a quarter of the memory.
                self._decoded[at] = image.mul(255).round().byte()
        return {"references": torch.stack([self._decoded[at] for at in indices]).to(target.device).float() / 255}


def stacked(reference: Reference) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The pictures `[K,3,H,W]`, smaller ones with black below and to the right, and the landmarks `[K,5,2]`."""
    height = max(image.shape[1] for image in reference.images)
    width = max(image.shape[2] for image in reference.images)
    images = torch.zeros(len(reference.images), 3, height, width)
    for row, image in zip(images, reference.images):
        row[:, : image.shape[1], : image.shape[2]] = image
    unknown = ((float("nan"),) * 2,) * 5
    return images, torch.tensor([face.landmarks or unknown for face in reference.faces])


def make(
    images: Sequence[torch.Tensor], found: Sequence[facegrad.Face | None], recogniser: facegrad.Recogniser, device: torch.device
) -> Reference:
    """One person from the faces of several pictures `[3,H,W]`; pictures without a face are left out.

    Raises:
        ValueError: no picture has a face
    """
    kept = [(image, face) for image, face in zip(images, found) if face is not None]
    if not kept:
        raise ValueError(
            f"image: no face was found in any of the {len(images)} reference image(s); take a picture where the face is larger, or lower the detector's threshold"
        )
    embeddings = torch.cat([recogniser.embed(image[None].to(device), [[face]]).float().cpu() for image, face in kept])
    return Reference(
        images=[image.float().cpu() for image, _ in kept],
        faces=[face for _, face in kept],
        embedding=torch.nn.functional.normalize(embeddings.mean(0), dim=0),
        recogniser=recogniser.description,
    )


def embedding(reference: Reference, recogniser: facegrad.Recogniser, device: torch.device) -> torch.Tensor:
    """The person's embedding `[D]` in the eyes of `recogniser`: computed anew where another network made the kept one."""
    if reference.recogniser == recogniser.description:
        return reference.embedding
    return make(reference.images, reference.faces, recogniser, device).embedding


def place(reference: Reference, path: Path, if_exists: str) -> Path:
    """Where a reference may be saved without replacing another one.

    Args:
        path: the wanted file
        if_exists: `number it`, `replace` or `refuse`

    Raises:
        FileExistsError: `refuse`, and another reference has the name
    """
    if if_exists == "replace" or _same(path, reference):
        return path
    if path.exists() and if_exists == "refuse":
        raise FileExistsError(f"name: {path} is there already; choose another name, or set if_exists to replace or number it")
    wanted, number = path, 1
    while path.exists() and not _same(path, reference):
        number += 1
        path = wanted.with_stem(f"{wanted.stem}_{number}")
    return path


def _same(path: Path, reference: Reference) -> bool:
    """Whether a file holds this reference."""
    try:
        kept = load(path)
    except (OSError, ValueError, SafetensorError):
        return False
    same = kept.recogniser == reference.recogniser and kept.faces == reference.faces
    return same and torch.equal(kept.embedding, reference.embedding)


def save(reference: Reference, path: Path) -> None:
    """Writes a safetensors file: pictures as 8 bits, faces, embedding. It shows the person: treat it as a photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"image.{at}": image.mul(255).round().byte() for at, image in enumerate(reference.images)}
    tensors["embedding"] = reference.embedding
    faces = [{"bbox": face.bbox, "score": face.score, "landmarks": face.landmarks} for face in reference.faces]
    save_file(tensors, path, {"facegrad_reference": "1", "faces": json.dumps(faces), "recogniser": reference.recogniser})


def load(path: Path) -> Reference:
    """Reads what `save` wrote.

    Raises:
        ValueError: another kind of file, or a damaged one
    """
    if not path.is_file():
        raise ValueError(f"file: {path}: expected a file")
    advice = "make one with the Save Face Reference node"
    try:
        opened = safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"file: {path} is not a face reference, or the face reference is damaged ({error}); {advice}") from error
    try:
        with opened as file:
            about = file.metadata() or {}
            if about.get("facegrad_reference") != "1":
                raise ValueError(f"file: {path} is not a face reference; {advice}")
            images = [file.get_tensor(f"image.{at}").float() / 255 for at in range(len(file.keys()) - 1)]
            kept = file.get_tensor("embedding")
        return Reference(images, [_face(face) for face in json.loads(about["faces"])], kept, about["recogniser"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"file: {path}: the face reference is damaged ({error or type(error).__name__}); {advice}") from error


def _face(face: dict[str, Any]) -> facegrad.Face:
    points = face["landmarks"]
    x1, y1, x2, y2 = face["bbox"]
    return facegrad.Face((x1, y1, x2, y2), face["score"], tuple((x, y) for x, y in points) if points else None)
