"""Draws found faces on one sheet: boxes, landmarks, aligned crops and similarities."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .models import Face

if TYPE_CHECKING:
    from PIL import Image as Pillow

    from .evaluate import Evaluator

PAPER, CARD, INK, SOFT, LINE = (246, 246, 243), (255, 255, 255), (34, 36, 44), (138, 142, 152), (226, 226, 221)
COLOURS = ((40, 110, 190), (206, 92, 60), (46, 139, 102), (142, 84, 168), (196, 142, 20), (20, 140, 150), (190, 62, 110), (104, 112, 128))
#: Layout in points; everything is drawn at twice the size and scaled down, for smooth edges.
WIDTH, GAP, PAD, PICTURE, CROP, CELL = 1180, 20, 14, (300, 236), 76, 58
#: More faces than this make no readable table, and more pictures no readable sheet.
MOST, MOST_PANELS = 18, 100


@dataclass
class Mark:
    """A face in a panel.

    Attributes:
        face: the face's place in the image
        crop: the aligned crop ``[3,S,S]``, RGB in [0, 1]
        name: the short name of the face in image, crops and table
        note: the label of the crop
    """

    face: Face
    crop: torch.Tensor
    name: str
    note: str


@dataclass
class Panel:
    """An image with its faces.

    Attributes:
        title: the text above the image
        image: ``[3,H,W]`` uint8, RGB
        marks: the faces
        note: the text where there are no faces
        size: width and height of the original image, where ``image`` is a smaller copy
    """

    title: str
    image: torch.Tensor
    marks: list[Mark] = field(default_factory=list)
    note: str = "no face"
    size: tuple[int, int] | None = None

    @classmethod
    def small(cls, title: str, image: torch.Tensor, marks: list[Mark]) -> Panel:
        """A panel with a copy of the image that is only as large as the sheet shows it."""
        from PIL import Image

        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        size = picture.size
        picture.thumbnail((2 * PICTURE[0], 2 * PICTURE[1]), Image.Resampling.LANCZOS)
        return cls(title, torch.from_numpy(np.array(picture)).permute(2, 0, 1), marks, size=size)


def draw_sheet(path: str | os.PathLike[str], panels: Sequence[Panel], similarities: torch.Tensor | None = None) -> None:
    """Writes the sheet as a PNG.

    Args:
        path: its folder is made where it is missing
        panels: the pictures, two in a row
        similarities: ``[M,M]`` cosines of all marks in their order; None: no table
    """
    marks = [mark for panel in panels for mark in panel.marks]
    with_table = similarities is not None and 1 < len(marks) <= MOST
    rows = [panels[at : at + 2] for at in range(0, len(panels), 2)]
    heights = [max(_card_height(panel) for panel in row) for row in rows]
    table_height = (len(marks) + 1) * CELL + 70 if with_table else 0
    sheet = _Sheet(WIDTH, GAP + sum(h + GAP for h in heights) + table_height + (GAP if with_table else 0))
    colours = {id(mark): COLOURS[at % len(COLOURS)] for at, mark in enumerate(marks)}
    y = GAP
    for row, height in zip(rows, heights):
        for column, panel in enumerate(row):
            x = GAP + column * (WIDTH - GAP) // 2
            sheet.card(x, y, (WIDTH - 3 * GAP) // 2, height)
            _panel(sheet, panel, x + PAD, y + PAD, colours)
        y += height + GAP
    if with_table and similarities is not None:
        sheet.card(GAP, y, (len(marks) + 1) * CELL + 2 * PAD, table_height)
        _table(sheet, marks, similarities, GAP + PAD, y + PAD, colours)
    sheet.save(path)


def comparison_sheet(path: str | os.PathLike[str], evaluator: Evaluator, references: torch.Tensor, images: torch.Tensor) -> None:
    """A sheet of a training step: every reference beside its generated image, with their similarity.

    Args:
        path: the PNG
        evaluator: finds and compares the faces
        references: ``[N,3,H,W]`` or ``[1,3,H,W]``, RGB, uint8, or floats in [0, 1]
        images: ``[N,3,H,W]``
    """
    references = references.expand(images.shape[0], -1, -1, -1)
    report = evaluator.compare(images, references)
    panels = []
    for at, sample in enumerate(report.samples):
        for title, picture in ((f"reference {at}", references[at]), (f"generated {at}", images[at])):
            panel = Panel(title, _bytes(picture))
            faces = evaluator.faces(picture[None])[0]
            if title.startswith("generated"):
                faces = [face for face in faces if face.bbox == sample.bbox]
                if math.isfinite(sample.similarity):
                    panel.title += f"    similarity {sample.similarity:+.3f}"
                else:
                    panel.note = sample.outcome.name.lower().replace("_", " ")
            crops = evaluator.align(picture[None], [faces])
            for face, crop in zip(faces, crops):
                panel.marks.append(Mark(face, crop.cpu(), "", f"score {face.score:.2f}"))
            panels.append(panel)
    draw_sheet(path, panels)


def _card_height(panel: Panel) -> int:
    columns = _crop_columns()
    lines = -(-len(panel.marks) // columns)
    return PAD * 2 + 26 + max(PICTURE[1], lines * (CROP + 22))


def _crop_columns() -> int:
    return ((WIDTH - 3 * GAP) // 2 - 2 * PAD - PICTURE[0] - PAD) // (CROP + 8)


def _panel(sheet: _Sheet, panel: Panel, x: int, y: int, colours: dict[int, Any]) -> None:
    sheet.text(x, y, panel.title, 14)
    width, height = panel.size or (panel.image.shape[2], panel.image.shape[1])
    sheet.text(x + (WIDTH - 3 * GAP) // 2 - 2 * PAD, y + 2, f"{width} x {height}", 11, SOFT, "ra")
    y += 26
    scale = min(PICTURE[0] / width, PICTURE[1] / height)
    left, top = x, y
    sheet.picture(left, top, panel.image, (round(2 * scale * width), round(2 * scale * height)))
    for mark in panel.marks:
        colour = colours[id(mark)]
        box = [left + scale * v if at % 2 == 0 else top + scale * v for at, v in enumerate(mark.face.bbox)]
        sheet.box(box, colour, (left, top, left + scale * width, top + scale * height))
        radius = min(3.0, max(1.2, (box[2] - box[0]) * 0.03))
        for px, py in mark.face.landmarks or ():
            sheet.dot(left + scale * (px + 0.5), top + scale * (py + 0.5), radius, colour)
        if mark.name:
            sheet.badge(max(box[0], left), max(box[1], top), mark.name, colour)
    columns, first = _crop_columns(), left + scale * width + PAD
    for at, mark in enumerate(panel.marks):
        cx, cy = first + at % columns * (CROP + 8), y + at // columns * (CROP + 22)
        sheet.crop(cx, cy, mark.crop, CROP, colours[id(mark)])
        sheet.text(cx + CROP / 2, cy + CROP + 4, f"{mark.name}  {mark.note}".strip(), 11, SOFT, "ma")
    if not panel.marks:
        sheet.text(first, y + 4, panel.note, 13, SOFT)


def _table(sheet: _Sheet, marks: list[Mark], similarities: torch.Tensor, x: int, y: int, colours: dict[int, Any]) -> None:
    sheet.text(x, y, "similarity of every pair (cosine)", 14)
    y += 32
    small = CELL - 8
    for at, mark in enumerate(marks):
        along = (at + 1) * CELL
        for cx, cy in ((x + along, y), (x, y + along)):
            sheet.crop(cx + 4, cy + 4, mark.crop, small, colours[id(mark)])
            sheet.badge(cx + 4, cy + 4, mark.name, colours[id(mark)])
    for row in range(len(marks)):
        for column in range(len(marks)):
            value = float(similarities[row, column])
            sheet.cell(x + (column + 1) * CELL, y + (row + 1) * CELL, CELL, value, row == column)


def _bytes(picture: torch.Tensor) -> torch.Tensor:
    if picture.dtype == torch.uint8:
        return picture.cpu()
    return (picture.detach().float().clamp(0, 1) * 255).round().byte().cpu()


class _Sheet:
    """A canvas that is measured in points and drawn at twice the size."""

    def __init__(self, width: int, height: int) -> None:
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ImportError as error:
            raise ImportError("sheets are drawn with Pillow: pip install pillow") from error
        self._pillow, self._fonts = Image, ImageFont
        self.paper = Image.new("RGB", (2 * width, 2 * height), PAPER)
        self.pen = ImageDraw.Draw(self.paper)

    def text(self, x: float, y: float, text: str, size: int, fill: tuple[int, int, int] = INK, anchor: str = "la") -> None:
        self.pen.text((2 * x, 2 * y), text, fill, self._fonts.load_default(2 * size), anchor=anchor)

    def card(self, x: float, y: float, width: float, height: float) -> None:
        self.pen.rounded_rectangle([2 * x, 2 * y, 2 * (x + width), 2 * (y + height)], 16, CARD, LINE, 2)

    def picture(self, x: float, y: float, image: torch.Tensor, size: tuple[int, int]) -> None:
        size = max(1, size[0]), max(1, size[1])
        self.paper.paste(self._image(image).resize(size, self._pillow.Resampling.LANCZOS), (round(2 * x), round(2 * y)))

    def crop(self, x: float, y: float, crop: torch.Tensor, side: int, colour: tuple[int, int, int]) -> None:
        image = self._image(_bytes(crop)).resize((2 * side, 2 * side), self._pillow.Resampling.BICUBIC)
        self.paper.paste(image, (round(2 * x), round(2 * y)))
        self.pen.rectangle([2 * x - 3, 2 * y - 3, 2 * (x + side) + 2, 2 * (y + side) + 2], None, colour, 4)

    def box(self, box: Sequence[float], colour: tuple[int, int, int], frame: Sequence[float]) -> None:
        """Draws the part of a face's box that lies in the image."""
        x1, y1 = max(box[0], frame[0]), max(box[1], frame[1])
        x2, y2 = min(box[2], frame[2]), min(box[3], frame[3])
        if x2 > x1 and y2 > y1:
            self.pen.rounded_rectangle([2 * x1, 2 * y1, 2 * x2, 2 * y2], 6, None, colour, 4)

    def dot(self, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        self.pen.ellipse([2 * (x - radius), 2 * (y - radius), 2 * (x + radius), 2 * (y + radius)], colour, (255, 255, 255), 2)

    def badge(self, x: float, y: float, name: str, colour: tuple[int, int, int]) -> None:
        wide = 2 * (7 + 7 * len(name))
        self.pen.rounded_rectangle([2 * x, 2 * y, 2 * x + wide, 2 * y + 32], 6, colour)
        self.pen.text((2 * x + wide / 2, 2 * y + 16), name, (255, 255, 255), self._fonts.load_default(24), anchor="mm")

    def cell(self, x: float, y: float, side: int, value: float, same: bool) -> None:
        strength = min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
        fill = tuple(round(c + (t - c) * strength) for c, t in zip((250, 250, 248), (40, 110, 190)))
        self.pen.rectangle([2 * x + 2, 2 * y + 2, 2 * (x + side) - 2, 2 * (y + side) - 2], (240, 240, 237) if same else fill)
        if not same:
            self.text(x + side / 2, y + side / 2, f"{value:.2f}", 13, (255, 255, 255) if strength > 0.5 else INK, "mm")

    def save(self, path: str | os.PathLike[str]) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        size = self.paper.width // 2, self.paper.height // 2
        self.paper.resize(size, self._pillow.Resampling.LANCZOS).save(path, "PNG", optimize=True)

    def _image(self, image: torch.Tensor) -> Pillow.Image:
        return self._pillow.fromarray(image.permute(1, 2, 0).contiguous().numpy())
