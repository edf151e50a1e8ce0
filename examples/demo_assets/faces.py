"""Drawn faces: portraits that may be shipped, of people who do not exist.

An identity is a seed; everything that makes a person recognisable follows from it (shape of head and
jaw, skin, hair, eyes, brows, nose, mouth, ears, beard, glasses, freckles). A pose is everything that
does not: turn of the head, expression, light, background, clothes. `draw` returns the picture, the box
and the five landmarks that face detectors are trained with.

    python faces.py sheet.png      draws a contact sheet: a row a person, a column a pose
"""

from __future__ import annotations

import colorsys
import sys
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

SKINS = [(255, 224, 196), (241, 194, 160), (224, 172, 130), (198, 134, 96), (150, 95, 62), (104, 66, 46)]
HAIRS = [(28, 22, 20), (62, 40, 26), (110, 70, 36), (172, 120, 60), (222, 184, 110), (150, 60, 30), (150, 150, 152), (70, 66, 80)]
IRISES = [(70, 44, 26), (96, 72, 40), (60, 96, 60), (60, 104, 150), (110, 120, 130)]


@dataclass
class Identity:
    """A person. All lengths are in half head widths."""

    seed: int
    height: float = field(init=False)
    jaw: float = field(init=False)
    chin: float = field(init=False)

    def __post_init__(self) -> None:
        r = np.random.default_rng(self.seed)
        u = lambda lo, hi: float(r.uniform(lo, hi))  # noqa: E731
        pick = lambda seq: seq[int(r.integers(len(seq)))]  # noqa: E731
        self.height, self.jaw, self.chin = u(1.12, 1.5), u(0.55, 0.98), u(2.0, 3.6)
        self.skin = jitter(pick(SKINS), r, 12)
        self.hair, self.iris = jitter(pick(HAIRS), r, 14), jitter(pick(IRISES), r, 12)
        self.style = int(r.integers(7))
        self.hairline, self.volume, self.side = u(0.42, 0.72), u(0.06, 0.3), u(-0.5, 0.5)
        self.eye_gap, self.eye_y = u(0.34, 0.5), u(-0.16, 0.06)
        self.eye_w, self.eye_h, self.eye_tilt = u(0.15, 0.25), u(0.075, 0.14), u(-0.28, 0.28)
        self.iris_size = u(0.75, 1.05)
        self.brow_y, self.brow_w, self.brow_h = u(0.2, 0.34), u(0.2, 0.32), u(0.025, 0.085)
        self.brow_tilt, self.brow_arch = u(-0.3, 0.3), u(0.0, 0.1)
        self.nose_w, self.nose_len, self.nose_tip = u(0.1, 0.24), u(0.34, 0.58), u(0.05, 0.12)
        self.mouth_y, self.mouth_w = u(0.24, 0.4), u(0.22, 0.42)
        self.lip_top, self.lip_bottom = u(0.025, 0.09), u(0.04, 0.12)
        self.lip = mix(self.skin, jitter((176, 54, 66), r, 24), u(0.35, 0.8))
        self.ear = u(0.12, 0.24)
        self.beard = int(r.choice([0, 0, 0, 1, 2, 3])) if self.style not in (2, 3) else 0
        self.glasses = int(r.choice([0, 0, 0, 0, 1, 2]))
        self.frame = jitter(pick([(20, 20, 24), (120, 30, 30), (40, 60, 120), (150, 120, 60)]), r, 12)
        self.freckles = int(r.choice([0, 0, 0, 1]))
        self.cheek = u(0.0, 0.3)


@dataclass
class Pose:
    """Everything that is not the person. Angles in radians."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    smile: float = 0.3
    open: float = 0.0
    lids: float = 1.0
    brows: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)
    light: float = 0.0
    warmth: float = 0.0
    background: tuple[Colour, Colour] = ((206, 216, 226), (150, 166, 186))
    shirt: Colour = (70, 90, 130)

    @staticmethod
    def random(r: np.random.Generator, strength: float = 1.0) -> Pose:
        n = lambda s: float(np.clip(r.normal(0, s * strength), -2 * s, 2 * s))  # noqa: E731
        return Pose(
            yaw=n(0.28), pitch=n(0.16), roll=n(0.14), smile=n(0.5), open=max(0.0, n(0.4)),
            lids=1.0 - abs(n(0.16)), brows=n(0.05), gaze=(n(0.25), n(0.15)), light=n(0.3), warmth=n(0.06),
            background=(hue(r, 0.35, 0.9), hue(r, 0.4, 0.7)), shirt=hue(r, 0.55, 0.6),
        )  # fmt: skip


@dataclass
class Portrait:
    """A drawn face: RGB uint8 picture [H,W,3], box (x1, y1, x2, y2), landmarks [5,2]; pixels."""

    image: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray


def draw(person: Identity, pose: Pose, size: int = 256, scale: float = 0.27, centre: tuple[float, float] = (0.5, 0.5)) -> Portrait:
    """Draws a square picture. `scale` is half the head's width and `centre` the head's middle, both
    as parts of the picture."""
    over = 3 if size <= 160 else 2
    full = size * over
    canvas = Image.fromarray(gradient(full, *pose.background))
    view = View(person, pose, full * scale, full * centre[0], full * centre[1])
    pen = ImageDraw.Draw(canvas)
    body(pen, view)
    back_hair(pen, view)
    head(canvas, view)
    pen = ImageDraw.Draw(canvas)
    brows_and_eyes(canvas, view)
    nose_and_mouth(pen, view)
    front_hair(pen, view)
    spectacles(pen, view)
    image = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32)
    image = lit(image, pose, centre, scale)
    # Pixel centres are integers, so a point of the drawing lies half a pixel earlier.
    flat = lambda points: points / over - 0.5  # noqa: E731
    landmarks = flat(view.landmarks())
    outline = flat(view.at(*outline_of(person), 0.0))
    box = np.concatenate([outline.min(0), outline.max(0)])
    return Portrait(np.clip(image, 0, 255).round().astype(np.uint8), box, landmarks)


class View:
    """Projects points of the head (x right, y down, z towards the viewer) to the canvas."""

    def __init__(self, person: Identity, pose: Pose, unit: float, cx: float, cy: float) -> None:
        self.person, self.pose, self.unit, self.cx, self.cy = person, pose, unit, cx, cy

    def at(self, x, y, z=None) -> np.ndarray:
        p, x, y = self.pose, np.asarray(x, float), np.asarray(y, float)
        # Features lie on the front of an ellipsoid.
        z = np.sqrt(np.clip(1 - (x / 1.15) ** 2 - (y / (1.15 * self.person.height)) ** 2, 0, 1)) * 0.75 if z is None else np.asarray(z, float)
        x, z = x * np.cos(p.yaw) + z * np.sin(p.yaw), z * np.cos(p.yaw) - x * np.sin(p.yaw)
        y = y * np.cos(p.pitch) + z * np.sin(p.pitch)
        x, y = x * np.cos(p.roll) - y * np.sin(p.roll), x * np.sin(p.roll) + y * np.cos(p.roll)
        return np.stack([self.cx + x * self.unit, self.cy + y * self.unit], -1)

    def poly(self, pen: ImageDraw.ImageDraw, x, y, fill, z=None) -> None:
        pen.polygon([tuple(q) for q in self.at(x, y, z)], fill=fill)

    def line(self, pen: ImageDraw.ImageDraw, x, y, fill, width: float, z=None) -> None:
        points = [tuple(q) for q in self.at(x, y, z)]
        wide = max(1, round(width * self.unit))
        pen.line(points, fill=fill, width=wide, joint="curve")
        for q in (points[0], points[-1]):
            pen.ellipse([q[0] - wide / 2, q[1] - wide / 2, q[0] + wide / 2, q[1] + wide / 2], fill=fill)

    def landmarks(self) -> np.ndarray:
        i = self.person
        nose = i.eye_y + i.nose_len
        mouth = nose + i.mouth_y
        width = i.mouth_w * (1 + 0.2 * self.pose.smile)
        lift = -0.07 * self.pose.smile
        points = [(-i.eye_gap, i.eye_y), (i.eye_gap, i.eye_y), (0, nose - 0.04), (-width, mouth + lift), (width, mouth + lift)]
        depth = [None, None, 0.95, None, None]
        return np.stack([self.at(x, y, z) for (x, y), z in zip(points, depth)])


def outline_of(i: Identity, grow: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    x, y = np.cos(t), np.sin(t)
    low = y > 0
    narrow = np.where(low, 1 - (1 - i.jaw) * np.abs(y) ** i.chin * 0.75, 1.0)
    return (1 + grow) * x * narrow, (1 + grow) * y * i.height * np.where(low, 1.0, 0.92)


def head(canvas: Image.Image, v: View) -> None:
    i, pen = v.person, ImageDraw.Draw(canvas)
    for side in (-1, 1):
        x, y = disc(side * 1.0, i.eye_y + 0.12, i.ear, i.ear * 1.6)
        v.poly(pen, x, y, mix(i.skin, (120, 50, 40), 0.16), -0.1)
    v.poly(pen, *outline_of(i), i.skin, 0.0)
    if i.cheek > 0.05:
        soft = Image.new("L", canvas.size, 0)
        for side in (-1, 1):
            v.poly(ImageDraw.Draw(soft), *disc(side * 0.56, i.eye_y + 0.42, 0.2, 0.15), int(255 * i.cheek))
        canvas.paste((214, 96, 86), mask=soft.filter(ImageFilter.GaussianBlur(v.unit * 0.08)))
    if i.freckles:
        r = np.random.default_rng(i.seed + 1)
        for side in (-1, 1):
            for _ in range(9):
                x, y = side * r.uniform(0.2, 0.7), i.eye_y + r.uniform(0.2, 0.45)
                v.poly(pen, *disc(x, y, 0.022, 0.022), mix(i.skin, (130, 70, 40), 0.5))
    if i.beard:
        beard(canvas, v)


def beard(canvas: Image.Image, v: View) -> None:
    i = v.person
    mouth = i.eye_y + i.nose_len + i.mouth_y
    mask = Image.new("L", canvas.size, 0)
    pen = ImageDraw.Draw(mask)
    if i.beard in (1, 2):
        x, y = outline_of(i)
        low = y > i.eye_y + 0.45
        order = np.argsort(x[low])
        bx, by = x[low][order], y[low][order]
        top = np.linspace(bx.max(), bx.min(), 20)
        rise = mouth - 0.1 - 0.25 * (np.abs(top) / max(bx.max(), 1e-3)) ** 2
        v.poly(pen, np.r_[bx, top], np.r_[by, rise], 110 if i.beard == 1 else 235, np.r_[np.zeros(len(bx)), np.full(20, 0.3)])
    moustache = np.linspace(-0.36, 0.36, 15)
    curve = mouth - 0.13 + 0.9 * moustache**2
    v.line(pen, moustache, curve, 235 if i.beard > 1 else 110, 0.11)
    canvas.paste(i.hair, mask=mask.filter(ImageFilter.GaussianBlur(v.unit * 0.02)))


def brows_and_eyes(canvas: Image.Image, v: View) -> None:
    i, p, pen = v.person, v.pose, ImageDraw.Draw(canvas)
    for side in (-1, 1):
        cx, cy = side * i.eye_gap, i.eye_y
        t = np.linspace(0, np.pi, 14)
        wx, wy = i.eye_w * np.cos(t), i.eye_h * p.lids * np.sin(t)
        tilt = side * i.eye_tilt
        turn = lambda x, y: (cx + x, cy + y + tilt * x)  # noqa: E731
        ex, ey = turn(np.r_[wx, wx[::-1]], np.r_[-wy * 1.1, wy[::-1] * 0.8])
        shade = np.r_[wx, wx[::-1]] * 1.25, np.r_[-wy * 1.6 - 0.02, wy[::-1] * 1.2]
        v.poly(pen, *turn(*shade), mix(i.skin, (90, 50, 50), 0.16))
        eye = Image.new("L", canvas.size, 0)
        v.poly(ImageDraw.Draw(eye), ex, ey, 255)
        ball = Image.new("RGB", canvas.size, (250, 248, 244))
        bp = ImageDraw.Draw(ball)
        gx, gy = cx + p.gaze[0] * i.eye_w * 0.5, cy + p.gaze[1] * i.eye_h
        radius = max(i.eye_h, 0.07) * 1.05 * i.iris_size
        v.poly(bp, *disc(gx, gy, radius, radius), i.iris)
        v.poly(bp, *disc(gx, gy, radius * 0.5, radius * 0.5), (14, 12, 12))
        v.poly(bp, *disc(gx + radius * 0.35, gy - radius * 0.35, radius * 0.22, radius * 0.22), (255, 255, 255))
        canvas.paste(ball, mask=eye)
        v.line(pen, *turn(wx, -wy * 1.1), (40, 28, 26), 0.03)
        b = np.linspace(-1, 1, 9)
        bx = cx + b * i.brow_w
        by = cy - i.brow_y - p.brows - i.brow_arch * (1 - b**2) + side * i.brow_tilt * b * i.brow_w
        v.line(pen, bx, by, mix(i.hair, (30, 20, 20), 0.25), i.brow_h)


def nose_and_mouth(pen: ImageDraw.ImageDraw, v: View) -> None:
    i, p = v.person, v.pose
    tip = i.eye_y + i.nose_len
    dark = mix(i.skin, (90, 40, 30), 0.35)
    bridge = np.linspace(0, 1, 8)
    v.line(pen, 0.05 + 0.07 * bridge, i.eye_y + 0.1 + (i.nose_len - 0.16) * bridge, mix(i.skin, (90, 40, 30), 0.2), 0.03, 0.72 + 0.18 * bridge)
    t = np.linspace(0.1, np.pi - 0.1, 12)
    v.line(pen, i.nose_w * np.cos(t), tip + i.nose_tip * np.sin(t) - 0.03, dark, 0.04, np.full(12, 0.85))
    for side in (-1, 1):
        v.poly(pen, *disc(side * i.nose_w * 0.5, tip + i.nose_tip * 0.4, 0.035, 0.025), mix(i.skin, (50, 20, 20), 0.6), 0.88)
    mouth, width = tip + i.mouth_y, i.mouth_w * (1 + 0.2 * p.smile)
    s = np.linspace(-1, 1, 17)
    bend = -0.07 * p.smile * s**2
    line = mouth + bend
    gape = 0.24 * p.open * (1 - s**2)
    bow = i.lip_top * (1 - s**2) * (1 - 0.35 * np.exp(-((s / 0.18) ** 2)))
    x = s * width
    v.poly(pen, np.r_[x, x[::-1]], np.r_[line - bow - 0.005, (line + gape + i.lip_bottom * (1 - s**2))[::-1]], i.lip)
    if p.open > 0.05:
        v.poly(pen, np.r_[x, x[::-1]] * 0.92, np.r_[line, (line + gape)[::-1]], (70, 18, 24))
        v.poly(pen, np.r_[x, x[::-1]] * 0.8, np.r_[line, (line + gape * 0.4)[::-1]], (246, 244, 238))
    v.line(pen, x, line, mix(i.lip, (50, 10, 16), 0.6), 0.018)


def body(pen: ImageDraw.ImageDraw, v: View) -> None:
    i, unit, cx = v.person, v.unit, v.cx
    chin = v.cy + i.height * unit
    neck = mix(i.skin, (80, 40, 30), 0.2)
    pen.polygon([(cx - 0.42 * unit, chin - 0.7 * unit), (cx + 0.42 * unit, chin - 0.7 * unit), (cx + 0.5 * unit, chin + 0.6 * unit), (cx - 0.5 * unit, chin + 0.6 * unit)], fill=neck)
    pen.ellipse([cx - 2.0 * unit, chin + 0.22 * unit, cx + 2.0 * unit, chin + 3.4 * unit], fill=v.pose.shirt)
    pen.ellipse([cx - 0.5 * unit, chin + 0.02 * unit, cx + 0.5 * unit, chin + 0.55 * unit], fill=neck)


def back_hair(pen: ImageDraw.ImageDraw, v: View) -> None:
    i = v.person
    dark = mix(i.hair, (0, 0, 0), 0.25)
    if i.style in (2, 3):
        long = 1.35 if i.style == 2 else 1.9
        x = np.r_[np.linspace(-1.2 - i.volume, 1.2 + i.volume, 20), 1.15 + i.volume, -1.15 - i.volume]
        y = np.r_[-np.sqrt(np.clip(1 - np.linspace(-1, 1, 20) ** 2, 0, 1)) * i.height * (0.98 + i.volume), long, long]
        v.poly(pen, x, y, dark, -0.3)
    elif i.style == 4:
        r = np.random.default_rng(i.seed + 2)
        for a in np.linspace(np.pi * 0.92, np.pi * 2.08, 20):
            radius = 0.28 + 0.5 * i.volume + r.uniform(0, 0.06)
            v.poly(pen, *disc(np.cos(a) * 1.05, np.sin(a) * i.height * 0.95, radius, radius), dark, -0.1)


def front_hair(pen: ImageDraw.ImageDraw, v: View) -> None:
    i = v.person
    if i.style == 6:
        return
    x, y = outline_of(i, 0.04 + 0.5 * i.volume)
    up = y < (-0.1 if i.style in (0, 1, 5) else 0.1)
    order = np.argsort(x[up])
    ox, oy = x[up][order], y[up][order]
    s = np.linspace(1, -1, 21)
    line = -i.height * i.hairline
    if i.style == 0:
        inner = line + 0.05 * np.cos(6 * s)
    elif i.style == 1:
        inner = line + 0.22 * np.exp(-(((s - i.side) / 0.5) ** 2))
    elif i.style == 5:
        inner = line * 0.72 - 0.02 * np.cos(20 * s)
    else:
        inner = line - 0.2 * np.exp(-(((s - 0.6 * i.side) / 0.22) ** 2)) + 0.12
    inner = inner + (oy[0] - line) * np.abs(s) ** 5
    v.poly(pen, np.r_[ox, s * 0.97], np.r_[oy, inner], i.hair, np.r_[np.full(len(ox), 0.0), np.full(21, 0.35)])


def spectacles(pen: ImageDraw.ImageDraw, v: View) -> None:
    i = v.person
    if not i.glasses:
        return
    for side in (-1, 1):
        t = np.linspace(0, 2 * np.pi, 33)
        power = 1.0 if i.glasses == 1 else 0.5
        x = side * i.eye_gap + 0.29 * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** power
        y = i.eye_y + 0.24 * np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power
        v.line(pen, x, y, i.frame, 0.045, 0.82)
        v.line(pen, [side * (i.eye_gap + 0.29), side * 1.0], [i.eye_y, i.eye_y + 0.02], i.frame, 0.045, [0.8, 0.0])
    v.line(pen, [-i.eye_gap + 0.28, i.eye_gap - 0.28], [i.eye_y - 0.03, i.eye_y - 0.03], i.frame, 0.045, 0.86)


def lit(image: np.ndarray, pose: Pose, centre: tuple[float, float], scale: float) -> np.ndarray:
    size = image.shape[0]
    axis = (np.arange(size) / size - centre[0]) / (2 * scale)
    slope = 1 + pose.light * np.tanh(axis)[None, :, None] * 0.6
    return image * slope * np.array([1 + pose.warmth, 1.0, 1 - pose.warmth], np.float32)


def disc(cx: float, cy: float, rx: float, ry: float) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return cx + rx * np.cos(t), cy + ry * np.sin(t)


def gradient(size: int, top: Colour, bottom: Colour) -> np.ndarray:
    t = np.linspace(0, 1, size)[:, None, None]
    return np.broadcast_to((1 - t) * np.array(top) + t * np.array(bottom), (size, size, 3)).astype(np.uint8)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    return tuple(round(x * (1 - t) + y * t) for x, y in zip(a, b))  # type: ignore[return-value]


def jitter(c: Colour, r: np.random.Generator, by: int) -> Colour:
    return tuple(int(np.clip(x + r.integers(-by, by + 1), 0, 255)) for x in c)  # type: ignore[return-value]


def hue(r: np.random.Generator, saturation: float, value: float) -> Colour:
    rgb = colorsys.hsv_to_rgb(r.uniform(), r.uniform(0, saturation), r.uniform(value * 0.6, value))
    return tuple(round(255 * c) for c in rgb)  # type: ignore[return-value]


def sheet(path: str, people: int = 6, poses: int = 6, size: int = 192) -> None:
    rows = []
    for seed in range(people):
        r = np.random.default_rng(1000 + seed)
        shots = [draw(Identity(seed), Pose() if k == 0 else Pose.random(r), size) for k in range(poses)]
        rows.append(np.concatenate([s.image for s in shots], 1))
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    sheet(sys.argv[1] if len(sys.argv) > 1 else "sheet.png")
