"""Nodes that find faces and cut them out, without a gradient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

import facegrad

from . import models
from .draw import overlay
from .layout import pixels, planes
from .sockets import CATEGORY, FACES, ORDERS, Faces, detector_input, recogniser_input

#: Of an input that takes a list of pictures.
FOLDER_TIP = "One image, a batch, or the list that a folder loader gives."
#: Where a widget chooses among the faces of an image.
FACE_TIP = "Which face of an image counts, where it has several: the face with this number (0 is the first) in this order."


def detect(detector: facegrad.Detector, images: torch.Tensor) -> Faces:
    """The faces of `[B,3,H,W]`."""
    return Faces(detector.detect(images.to(detector.device)), images.shape[2], images.shape[3])


def order_input() -> Any:
    return io.Combo.Input(
        "order", options=ORDERS, default=ORDERS[0], optional=True, tooltip="The order in which the faces of an image are counted."
    )


def index_input() -> Any:
    return io.Int.Input("face_index", default=0, min=0, max=99, optional=True, tooltip=FACE_TIP)


def chosen(faces: Faces, order: str, index: int) -> list[facegrad.Face | None]:
    """Per image the face with this number, or none."""
    return [row[index] if index < len(row) else None for row in faces.ordered(order)]


def box(face: facegrad.Face, width: int, height: int, margin: float = 0.0) -> dict[str, Any]:
    """ComfyUI's BOUNDING_BOX of a face: whole pixels inside the image.

    Args:
        margin: in sides of the box, added on every side
    """
    x1, y1, x2, y2 = face.bbox
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    left, top = max(0, round(x1 - dx)), max(0, round(y1 - dy))
    right, bottom = min(width, round(x2 + dx)), min(height, round(y2 + dy))
    return {"x": left, "y": top, "width": max(1, right - left), "height": max(1, bottom - top), "label": "face", "score": face.score}


def mask_of(boxes: Sequence[dict[str, Any]], width: int, height: int) -> torch.Tensor:
    """MASK `[1,H,W]`: 1 inside the boxes."""
    mask = torch.zeros(1, height, width)
    for b in boxes:
        mask[:, b["y"] : b["y"] + b["height"], b["x"] : b["x"] + b["width"]] = 1
    return mask


def inside(faces: Faces, boxes: Any, mask: torch.Tensor | None) -> Faces:
    """Only the faces whose centre lies in a box and in the mask.

    Args:
        boxes: BOUNDING_BOX as ComfyUI's nodes give it: one box, the boxes of all images, or a list of them for each image
        mask: MASK `[1 or B,H,W]`; above 0.5 counts
    """
    areas = _per_image(boxes, len(faces.found))
    if mask is not None and (mask.shape[-2:] != (faces.height, faces.width) or len(mask) not in (1, len(faces.found))):
        raise ValueError(
            f"mask: expected {faces.width}x{faces.height} and one mask, or one for each of the {len(faces.found)} image(s); "
            f"got {len(mask)} of {mask.shape[-1]}x{mask.shape[-2]}"
        )

    def kept(face: facegrad.Face, image: int) -> bool:
        x, y = (face.bbox[0] + face.bbox[2]) / 2, (face.bbox[1] + face.bbox[3]) / 2
        if mask is not None:
            row, column = min(faces.height - 1, max(0, int(y))), min(faces.width - 1, max(0, int(x)))
            if mask[image % len(mask), row, column] <= 0.5:
                return False
        return areas is None or any(a["x"] <= x <= a["x"] + a["width"] and a["y"] <= y <= a["y"] + a["height"] for a in areas[image])

    return Faces([[face for face in row if kept(face, at)] for at, row in enumerate(faces.found)], faces.height, faces.width)


def _per_image(boxes: Any, images: int) -> list[list[dict[str, Any]]] | None:
    if boxes is None:
        return None
    if isinstance(boxes, dict):
        boxes = [boxes]
    if not boxes or isinstance(boxes[0], dict):
        boxes = [boxes] * images
    if len(boxes) != images:
        raise ValueError(f"bboxes: expected boxes for {images} image(s), got them for {len(boxes)}")
    return [list(row) for row in boxes]


class DetectFaces(io.ComfyNode):
    """Boxes and landmarks."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradDetectFaces",
            display_name="Detect Faces",
            category=CATEGORY,
            description="Finds the faces of every image: boxes, five landmarks and scores, and a picture of them. The boxes and the mask fit ComfyUI's own nodes.",
            search_aliases=["face detection", "scrfd", "arcface", "insightface", "face box", "face mask"],
            inputs=[
                io.Image.Input("image", tooltip="The images to look at."),
                detector_input(),
                io.BoundingBox.Input(
                    "bboxes", optional=True, force_input=True, tooltip="Only faces whose centre lies in one of these boxes are kept."
                ),
                io.Mask.Input("mask", optional=True, tooltip="Only faces whose centre lies in the mask are kept."),
            ],
            outputs=[
                FACES.Output("faces", tooltip="The faces, for this pack's nodes."),
                io.Image.Output("overlay", tooltip="The images with boxes, landmarks and scores."),
                io.Int.Output("count", tooltip="How many faces there are in all images."),
                io.String.Output("boxes_json", tooltip="For each image its boxes, scores and landmarks, as JSON."),
                io.BoundingBox.Output("boxes", "bboxes", tooltip="For each image a list of boxes, by falling score."),
                io.Mask.Output("face_mask", "mask", tooltip="For each image a mask: 1 inside the boxes."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, detector: Any, bboxes: Any = None, mask: torch.Tensor | None = None) -> Any:
        faces = inside(detect(models.detector(detector), planes(image)), bboxes, mask)
        shown = [overlay(one[..., :3], found, [f"{face.score:.2f}" for face in found]) for one, found in zip(image, faces.found)]
        listed = [[{"bbox": face.bbox, "score": face.score, "landmarks": face.landmarks} for face in found] for found in faces.found]
        boxes = [[box(face, faces.width, faces.height) for face in found] for found in faces.found]
        masks = torch.cat([mask_of(row, faces.width, faces.height) for row in boxes])
        count = sum(map(len, faces.found))
        text = f"{count} face(s) in {len(image)} image(s)"
        return io.NodeOutput(faces, torch.cat(shown), count, json.dumps(listed), boxes, masks, ui={"text": [text]})


class PickFace(io.ComfyNode):
    """One face of every image."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradPickFace",
            display_name="Pick Face",
            category=CATEGORY,
            description="Picks one face of every image, and gives its box and mask to ComfyUI's own crop and mask nodes. Images that have no such face are left out of every output.",
            search_aliases=["face index", "crop face", "face box", "face mask", "select face"],
            inputs=[
                io.Image.Input("image", tooltip="The images that Detect Faces got."),
                FACES.Input("faces", tooltip="From Detect Faces."),
                order_input(),
                index_input(),
                io.Float.Input(
                    "margin",
                    default=0.25,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    optional=True,
                    tooltip="Room around the face, in sides of its box, added on every side.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The images that have such a face, one by one."),
                io.BoundingBox.Output("box", "bbox", is_output_list=True, tooltip="The face's box in each of them, for Crop Image."),
                io.Mask.Output("mask", is_output_list=True, tooltip="The same as a mask."),
                FACES.Output("picked", "faces", is_output_list=True, tooltip="The same for this pack's nodes."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, faces: Faces, order: str = ORDERS[0], face_index: int = 0, margin: float = 0.25) -> Any:
        check_image(image, faces)
        rows = [(one, face) for one, face in zip(image, chosen(faces, order, face_index)) if face is not None]
        if not rows:
            raise ValueError(f"face_index: no image has a face with the number {face_index}; 0 is the first")
        boxes = [box(face, faces.width, faces.height, margin) for _, face in rows]
        return io.NodeOutput(
            [one[None] for one, _ in rows],
            boxes,
            [mask_of([b], faces.width, faces.height) for b in boxes],
            [Faces([[face]], faces.height, faces.width) for _, face in rows],
        )


def check_image(image: torch.Tensor, faces: Faces) -> None:
    """Raises where the faces are not this image's."""
    if (len(image), *image.shape[1:3]) != (len(faces.found), faces.height, faces.width):
        raise ValueError(
            f"image: faces were found in {len(faces.found)} image(s) of {faces.width}x{faces.height}, but image has {len(image)} of {image.shape[2]}x{image.shape[1]}; connect the image that Detect Faces got"
        )


class AlignedFaceCrops(io.ComfyNode):
    """What the recogniser sees."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradAlignedFaceCrops",
            display_name="Aligned Face Crops",
            category=CATEGORY,
            description="Cuts every face out as the recogniser and the loss see it, aligned by its landmarks.",
            search_aliases=["crop face", "align face", "arcface", "face crop"],
            inputs=[
                io.Image.Input("image", tooltip="The images that Detect Faces got."),
                FACES.Input("faces", tooltip="From Detect Faces or Pick Face."),
                recogniser_input(),
            ],
            outputs=[io.Image.Output("crops", tooltip="One crop for each face, all of the recogniser's size.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, faces: Faces, recogniser: Any) -> Any:
        check_image(image, faces)
        if not any(faces.found):
            raise ValueError(
                "faces: there is no face to crop: Detect Faces found none; lower its detector's threshold or add a smaller det_size"
            )
        network = models.recogniser(recogniser)
        return io.NodeOutput(pixels(network.align(planes(image).to(network.device), faces.found)))
