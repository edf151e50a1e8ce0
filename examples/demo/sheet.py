"""The picture the demo writes: training pictures, a row of samples for each training, and curves below."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, SOFT, GRID = (250, 250, 248), (34, 36, 44), (130, 134, 144), (226, 226, 222)
ARM = {"plain": (206, 92, 60), "pair": (40, 110, 190), "rollouts": (30, 140, 90)}
TITLES = {"plain": ("LoRA", "no face loss"), "pair": ("face loss", "on training pairs"), "rollouts": ("face loss", "on rollouts too")}
SIDE, GAP, LEFT, COUNT = 118, 8, 190, 7
SHARP = 2                                     # everything is drawn twice as large and reduced at the end


class Pen:
    """Draws in page units onto an enlarged sheet."""

    def __init__(self, width: int, height: int) -> None:
        self.sheet = Image.new("RGB", (SHARP * width, SHARP * height), PAPER)
        self.draw = ImageDraw.Draw(self.sheet)

    def text(self, x: float, y: float, words: str, size: int = 15, fill=INK, anchor: str = "la") -> None:
        self.draw.text((SHARP * x, SHARP * y), words, fill, ImageFont.load_default(SHARP * size), anchor=anchor)

    def line(self, points, fill, width: float = 1.0) -> None:
        self.draw.line([(SHARP * x, SHARP * y) for x, y in points], fill, round(SHARP * width), joint="curve")

    def picture(self, x: float, y: float, image: torch.Tensor) -> None:
        """`image`: [3, H, W] in [0, 1]."""
        array = (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
        self.sheet.paste(Image.fromarray(array).resize((SHARP * SIDE, SHARP * SIDE), Image.Resampling.BICUBIC),
                         (round(SHARP * x), round(SHARP * y)))

    def save(self, path: Path) -> None:
        width, height = self.sheet.size
        path.parent.mkdir(parents=True, exist_ok=True)
        self.sheet.resize((width // SHARP, height // SHARP), Image.Resampling.LANCZOS).save(path)


def draw_sheet(path: Path, references: torch.Tensor, results: list[dict], words: str) -> None:
    """`references` [K, 3, H, W] of the first person, `results` one dict of arms a person, `words` the verdict."""
    width = LEFT + COUNT * (SIDE + GAP) + 24
    pen = Pen(width, (1 + len(results[0])) * (SIDE + 34) + 462)
    first, y = results[0], 24
    rows = [("the person", f"{len(references)} pictures", INK, references, None)]
    rows += [(*TITLES[arm], ARM[arm], r.samples, r.cosines) for arm, r in first.items()]
    for title, note, colour, pictures, cosines in rows:
        pen.text(24, y + 36, title, 19, colour)
        pen.text(24, y + 60, note, 15, colour)
        for k, picture in enumerate(pictures[:COUNT]):
            x = LEFT + k * (SIDE + GAP)
            pen.picture(x, y, picture)
            if cosines is not None:
                pen.text(x + SIDE / 2, y + SIDE + 4, "no face" if math.isnan(cosines[k]) else f"{cosines[k]:+.2f}", 13, colour, "ma")
        y += SIDE + 34
    pen.text(LEFT, y - 12, "the judge's similarity below each sample; all LoRAs start from the same noise and see the same captions", 13, SOFT)
    y += 46
    half = (width - 3 * 60) / 2
    plot(pen, (64, y, half, 210), "independent judge: similarity of samples",
         {arm: average([dict(r[arm].history.judged) for r in results]) for arm in first}, (0, 1))
    mses = {arm: smooth(average([dict(enumerate(r[arm].history.mse)) for r in results])) for arm in first}
    top = max(v for curve in mses.values() for v in curve.values()) * 1.1
    plot(pen, (64 + half + 60, y, half, 210), "diffusion loss (mse)", mses, (0, top))
    y += 262
    for line in words.splitlines():
        for part in textwrap.wrap(line, 165):
            pen.text(24, y, part, 14)
            y += 20
    pen.save(path)


def average(curves: list[dict[int, float]]) -> dict[int, float]:
    """The mean over people at the steps that every curve has."""
    shared = sorted(set.intersection(*(set(c) for c in curves)))
    return {step: sum(c[step] for c in curves) / len(curves) for step in shared}


def smooth(curve: dict[int, float], span: int = 15) -> dict[int, float]:
    """The running mean: one batch's mse says more about its noise levels than about the model."""
    values = list(curve.values())
    return {k: sum(values[max(0, i - span + 1):i + 1]) / min(i + 1, span) for i, k in enumerate(curve)}


def plot(pen: Pen, area: tuple, title: str, curves: dict[str, dict[int, float]], limits: tuple[float, float]) -> None:
    left, top, wide, high = area
    low, up = limits
    last = max(max(c) for c in curves.values())
    place = lambda step, v: (left + wide * step / max(last, 1), top + high * (up - min(max(v, low), up)) / (up - low))
    pen.text(left, top - 28, title, 15)
    for k in range(6):
        v = low + (up - low) * k / 5
        pen.line([place(0, v), place(last, v)], GRID)
        pen.text(left - 6, place(0, v)[1], f"{v:.1f}" if up >= 1 else f"{v:.2f}", 12, SOFT, "rm")
    for k in range(4):
        step = round(last * k / 3)
        pen.text(place(step, low)[0], top + high + 8, str(step), 12, SOFT, "ma")
    pen.text(left + wide, top + high + 26, "training step", 12, SOFT, "ra")
    for k, (arm, curve) in enumerate(curves.items()):
        pen.line([place(step, v) for step, v in curve.items()], ARM[arm], 2)
        pen.text(left + k * 80, top + high + 26, arm, 13, ARM[arm])
