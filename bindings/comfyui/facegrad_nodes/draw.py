"""Pictures: overlays on faces, and the curves of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import facegrad

from .sockets import Log, Sample

INK, PALE, PAPER = (38, 43, 51), (222, 226, 231), (255, 255, 255)
BLUE, ORANGE, GREEN = (38, 99, 200), (214, 108, 24), (46, 150, 84)


def to_pil(image: torch.Tensor) -> Image.Image:
    """IMAGE `[H,W,3]` → PIL."""
    return Image.fromarray(image.mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy())


def from_pil(image: Image.Image) -> torch.Tensor:
    """PIL → IMAGE `[1,H,W,3]`."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float()[None] / 255


def overlay(image: torch.Tensor, faces: Sequence[facegrad.Face], labels: Sequence[str]) -> torch.Tensor:
    """IMAGE `[H,W,3]` with boxes, landmarks and a label each → `[1,H,W,3]`."""
    picture = to_pil(image)
    draw = ImageDraw.Draw(picture)
    stroke = max(1, round(min(picture.size) / 250))
    letters = max(10, min(picture.size) // 28)
    font = ImageFont.load_default(letters)
    for face, label in zip(faces, labels):
        draw.rectangle(face.bbox, outline=GREEN, width=stroke)
        for x, y in face.landmarks or ():
            draw.ellipse((x - 1.5 * stroke, y - 1.5 * stroke, x + 1.5 * stroke, y + 1.5 * stroke), fill=ORANGE)
        write(draw, (face.bbox[0], face.bbox[1]), label, font, picture.size)
    if not faces:
        write(draw, (0, 1.6 * letters), "no face", font, picture.size)
    return from_pil(picture)


def write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """A label on a dark ground above a corner, moved inside the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0.0, corner[0]), max(0, size[0] - width))
    y = min(max(0.0, corner[1] - height), max(0, size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=INK)
    draw.text((x + 3 - left, y + 3 - top), text, font=font, fill=PAPER)


@dataclass(frozen=True)
class Cell:
    """A picture of a grid.

    Attributes:
        image: IMAGE `[H,W,3]`
        face: to be marked, if there is one
        caption: below the picture
        good: whether it is drawn as one that is kept
    """

    image: torch.Tensor
    face: facegrad.Face | None
    caption: str
    good: bool


def grid(cells: Sequence[Cell], columns: int, side: int = 224) -> torch.Tensor:
    """Pictures in rows, each with a caption, as IMAGE `[1,H,W,3]`; those that are not good are pale."""
    rows = -(-len(cells) // columns)
    columns = max(1, min(columns, len(cells)))
    gap, caption = 8, 24
    picture = Image.new("RGB", (columns * (side + gap) + gap, max(1, rows) * (side + caption + gap) + gap), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for at, cell in enumerate(cells):
        x, y = gap + at % columns * (side + gap), gap + at // columns * (side + caption + gap)
        shown = to_pil(cell.image)
        if cell.face is not None:
            stroke = max(1, round(max(shown.size) / 120))
            ImageDraw.Draw(shown).rectangle(cell.face.bbox, outline=GREEN if cell.good else ORANGE, width=stroke)
        shown.thumbnail((side, side))
        if not cell.good:
            shown = Image.blend(shown, Image.new("RGB", shown.size, PAPER), 0.55)
        picture.paste(shown, (x + (side - shown.width) // 2, y + (side - shown.height) // 2))
        draw.rectangle((x, y + side, x + side, y + side + caption), fill=GREEN if cell.good else PALE)
        draw.text((x + side / 2, y + side + caption / 2), cell.caption, font=font, fill=PAPER if cell.good else INK, anchor="mm")
    return from_pil(picture)


def curves(log: Log, width: int = 900) -> Image.Image:
    """The training in panels: the losses, the similarity, why samples did not count, and the last pictures that the model made."""
    skipped = log.skipped()
    rows = 1 + len(skipped)
    columns = 4
    last = [Cell(one.image, None, label(one), one.similarity is not None) for one in log.samples[-columns:]]
    strip = to_pil(grid(last, columns, (width - 48) // columns - 8)[0]) if last else None
    picture = Image.new("RGB", (width, 560 + 26 * rows + (strip.height + 12 if strip else 0)), PAPER)
    draw = ImageDraw.Draw(picture)
    steps = [record.step for record in log.records]
    total = [record.total for record in log.records]
    identity = [record.identity for record in log.records]
    similarity = [record.similarity for record in log.records]
    panel(draw, (64, 44, width - 24, 230), steps, [("loss with identity", BLUE, total), ("identity loss (weighted)", ORANGE, identity)])
    rolled = dict(log.rolled())
    alike = [("cosine similarity to the reference", GREEN, similarity)]
    if rolled:
        alike.append(("in rollouts", BLUE, [rolled.get(step, math.nan) for step in steps]))
    panel(draw, (64, 296, width - 24, 482), steps, alike)
    font = ImageFont.load_default(14)
    draw.text((64, 522), "samples", font=font, fill=INK)
    counts = {"counted": log.counted(), **skipped}
    most = max(1, *counts.values())
    for row, (name, count) in enumerate(counts.items()):
        y = 548 + 26 * row
        length = (width - 330) * count / most
        draw.text((64, y), name.replace("_", " "), font=font, fill=INK)
        draw.rectangle((240, y + 2, 240 + length, y + 16), fill=GREEN if name == "counted" else ORANGE)
        draw.text((246 + length, y), str(count), font=font, fill=INK)
    if strip is not None:
        picture.paste(strip, (24, 560 + 26 * rows))
    return picture


def label(sample: Sample) -> str:
    """What is written below a picture that the model made."""
    return f"step {sample.step}: " + ("no face" if sample.similarity is None else f"{sample.similarity:.3f}")


def panel(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    steps: Sequence[int],
    series: Sequence[tuple[str, tuple[int, int, int], Sequence[float]]],
) -> None:
    """One diagram: every series faint, and its moving mean on top."""
    left, top, right, bottom = box
    font = ImageFont.load_default(13)
    finite = [v for _, _, values in series for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    span = (high - low) or max(abs(high), 1e-6)
    low, high = low - 0.06 * span, high + 0.06 * span
    last = max(steps[-1], 1) if steps else 1

    def x(step: float) -> float:
        return left + (right - left) * step / last

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    for tick in range(5):
        value = low + (high - low) * tick / 4
        draw.line((left, y(value), right, y(value)), fill=PALE)
        draw.text((left - 8, y(value)), f"{value:.3g}", font=font, fill=INK, anchor="rm")
        draw.text((x(last * tick / 4), bottom + 12), f"{round(last * tick / 4)}", font=font, fill=INK, anchor="mm")
    at = float(left)
    for name, colour, values in series:
        faint = tuple(round(c + (255 - c) * 0.62) for c in colour)
        line(draw, [(x(s), y(v)) for s, v in zip(steps, values) if math.isfinite(v)], faint, 1)
        line(draw, [(x(s), y(v)) for s, v in zip(steps, moving_mean(values)) if math.isfinite(v)], colour, 2)
        draw.rectangle((at, top - 23, at + 12, top - 11), fill=colour)
        draw.text((at + 18, top - 17), name, font=font, fill=INK, anchor="lm")
        at += 40 + draw.textlength(name, font=font)


def line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple[int, ...], width: int) -> None:
    """A polyline; a dot where there is one point only."""
    if len(points) == 1:
        px, py = points[0]
        draw.ellipse((px - 2, py - 2, px + 2, py + 2), fill=colour)
    elif points:
        draw.line(list(points), fill=colour, width=width, joint="curve")


def moving_mean(values: Sequence[float]) -> list[float]:
    """The mean of the last tenth of the steps at every step, over what is finite."""
    window = max(1, len(values) // 10)
    means = []
    for end in range(1, len(values) + 1):
        known = [v for v in values[max(0, end - window) : end] if math.isfinite(v)]
        means.append(sum(known) / len(known) if known else math.nan)
    return means
