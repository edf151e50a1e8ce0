"""The picture the demo writes: before, after, reference, and the curves below."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

INK, SOFT, LOSS, JUDGE = (34, 36, 44), (150, 154, 164), (206, 92, 60), (40, 110, 190)
SIDE, GAP, TOP, PLOT = 300, 30, 78, 250


def _picture(x: torch.Tensor) -> Image.Image:
    array = (x[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(array).resize((SIDE * 2, SIDE * 2), Image.Resampling.BICUBIC)


def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size * 2)
    except TypeError:                       # Pillow before 10.1 has one size only
        return ImageFont.load_default()


def draw_panel(path: Path, before, after, reference, losses, judged, report) -> None:
    """Writes the PNG: pictures are [1, 3, S, S] in [0, 1]; `losses` one a step; `judged` pairs (step, cosine)."""
    width, height = 3 * SIDE + 4 * GAP, TOP + SIDE + PLOT + 130
    sheet = Image.new("RGB", (2 * width, 2 * height), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    text = lambda x, y, s, size=15, fill=INK, anchor="la": pen.text((2 * x, 2 * y), s, fill, _font(size), anchor=anchor)
    a, b = report["judge"]
    titles = (("before", f"judge's similarity {a:+.2f}"), ("after", f"judge's similarity {b:+.2f}"),
              ("reference", "the person to become"))
    for k, (image, (title, note)) in enumerate(zip((before, after, reference), titles)):
        x = GAP + k * (SIDE + GAP)
        text(x + SIDE / 2, 18, title, 22, anchor="ma")
        text(x + SIDE / 2, 50, note, 15, JUDGE if k < 2 else SOFT, "ma")
        sheet.paste(_picture(image), (2 * x, 2 * TOP))
    x, y = 2 * (SIDE + 1.5 * GAP), 2 * (TOP + SIDE / 2)
    pen.line([x - 16, y, x + 12, y], INK, 5)
    pen.polygon([(x + 24, y), (x + 8, y - 12), (x + 8, y + 12)], INK)
    _curves(pen, text, (GAP + 40, TOP + SIDE + 64, width - 2 * GAP - 40, PLOT), losses, judged)
    sheet = sheet.resize((width, height), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _curves(pen, text, area, losses, judged) -> None:
    left, top, wide, high = area
    values = [v for v in losses + [s for _, s in judged] if math.isfinite(v)]
    low, top_value = min(0., math.floor(min(values) * 5) / 5), max(1., math.ceil(max(values) * 5) / 5)
    px = lambda step: 2 * (left + wide * step / max(len(losses), 1))
    py = lambda v: 2 * (top + high * (top_value - v) / (top_value - low))
    for k in range(round((top_value - low) / .2) + 1):
        v = low + .2 * k
        pen.line([px(0), py(v), px(len(losses)), py(v)], (226, 226, 222), 2)
        text(left - 8, py(v) / 2, f"{v:.1f}", 13, SOFT, "rm")
    for k in range(5):
        step = round(len(losses) * k / 4)
        text(px(step) / 2, top + high + 8, str(step), 13, SOFT, "ma")
    text(left + wide / 2, top + high + 30, "optimisation step", 13, SOFT, "ma")
    for points, colour in (([(k + 1, v) for k, v in enumerate(losses)], LOSS), (judged, JUDGE)):
        run = []
        for step, v in [*points, (0, float("nan"))]:
            if math.isfinite(v):
                run.append((px(step), py(v)))
            elif run:
                pen.line(run, colour, 5, joint="curve")
                run = []
    text(left, top - 34, "loss whose gradient moves the pixels (1 - cosine)", 15, LOSS)
    text(left + wide, top - 34, "similarity seen by a judge that gives no gradient", 15, JUDGE, "ra")
