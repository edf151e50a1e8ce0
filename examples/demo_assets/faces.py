"""Draws cartoon portraits: a person is a seed, a picture is a person plus a pose, a light and a background.

Nothing here comes from a photograph, so models trained on these pictures can be shipped and shown.
Only numpy is needed.

Face coordinates: x to the right, y down, one unit is about half the height of a head. The eyes lie near
y = 0, the chin near y = 1, and (0, 0) with a unit of 55 px is where the ArcFace template of 112 px puts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SKINS = np.array([[255, 224, 200], [246, 208, 178], [238, 190, 155], [224, 172, 132], [205, 150, 108],
                  [176, 120, 80], [141, 90, 58], [104, 64, 42], [74, 46, 34]], np.float32) / 255
HAIRS = np.array([[30, 26, 26], [62, 40, 28], [106, 66, 38], [150, 100, 54], [214, 172, 96], [238, 210, 140],
                  [168, 66, 30], [198, 88, 36], [150, 148, 150], [222, 220, 216], [70, 120, 150],
                  [196, 96, 130]], np.float32) / 255
HAIR_WEIGHTS = np.array([3, 3, 2.5, 2, 1.6, 1.2, 1.2, 1, 1, .8, .2, .2])
EYES = np.array([[74, 46, 28], [110, 70, 36], [84, 122, 60], [60, 120, 178], [110, 160, 190], [120, 128, 134],
                 [36, 28, 24]], np.float32) / 255
FRAMES = np.array([[28, 28, 32], [120, 62, 30], [178, 40, 48], [40, 70, 140], [190, 150, 60]], np.float32) / 255
HAIR_STYLES = ["bald", "buzz", "short", "side", "fringe", "long", "bob", "curly", "bun", "quiff"]
HAIR_STYLE_WEIGHTS = np.array([.7, .8, 1.3, 1.3, 1.2, 1.3, 1.1, 1.3, 1, 1])


@dataclass
class Person:
    """What stays the same in every picture of one person; every field follows from `seed`."""

    seed: int
    traits: dict = field(init=False)

    def __post_init__(self) -> None:
        r = np.random.default_rng([self.seed, 7])
        u = r.uniform
        tone = u(0, len(SKINS) - 1.001)
        low = int(tone)
        skin = SKINS[low] + (SKINS[low + 1] - SKINS[low]) * (tone - low) + r.normal(0, .012, 3)
        hair = HAIRS[r.choice(len(HAIRS), p=HAIR_WEIGHTS / HAIR_WEIGHTS.sum())] * u(.85, 1.12)
        style = HAIR_STYLES[r.choice(len(HAIR_STYLES), p=HAIR_STYLE_WEIGHTS / HAIR_STYLE_WEIGHTS.sum())]
        hairy = r.choice(["none", "full", "goatee", "moustache", "stubble"], p=[.62, .12, .09, .1, .07])
        if style in ("long", "bob", "bun", "fringe"):
            hairy = "none"
        self.traits = dict(
            skin=np.clip(skin, .05, 1), hair=np.clip(hair, .03, .97), style=style, beard=str(hairy),
            width=u(.68, .86), chin=u(.98, 1.17), jaw=u(1.7, 3.3), brow_bone=u(2.0, 2.8), ear=u(.13, .2),
            eye_x=u(.27, .385), eye_w=u(.125, .175), eye_h=u(.5, .95), eye_tilt=u(-.28, .28),
            iris=EYES[r.integers(len(EYES))] * u(.85, 1.1), iris_size=u(.55, .72), lash=u(.012, .034),
            eyelid=u(0, .5), brow_y=u(.19, .31), brow_thick=u(.018, .062), brow_w=u(.16, .25),
            brow_arch=u(0, .09), brow_tilt=u(-.3, .3), brow_shade=u(.5, .95),
            nose_y=u(.25, .38), nose_w=u(.07, .165), nose_len=u(.22, .36), nose_round=u(.6, 1.2),
            mouth_y=u(.54, .66), mouth_w=u(.2, .33), lip_top=u(.02, .065), lip_low=u(.03, .085),
            lip=u(0, 1), lip_curve=u(-.05, .08),
            glasses=str(r.choice(["none", "round", "square"], p=[.7, .15, .15])),
            frame=FRAMES[r.integers(len(FRAMES))], frame_size=u(.21, .27),
            freckles=int(r.integers(14, 40)) if r.random() < .2 and tone < 5 else 0,
            mole=(u(-.5, .5), u(.2, .75)) if r.random() < .2 else None, blush=u(0, .35),
            hairline=u(-.72, -.52), volume=u(.04, .2), part=u(-.5, .5), curls=int(r.integers(11, 19)),
            earring=r.random() < .2)


@dataclass
class Look:
    """What changes from picture to picture: angles in radians, light and colours in [0, 1] RGB."""

    yaw: float = 0.0
    pitch: float = 0.0
    smile: float = .35
    gape: float = 0.0
    blink: float = 0.0
    brow_lift: float = 0.0
    gaze: tuple = (0.0, 0.0)
    light: tuple = (-.4, -.5)
    contrast: float = .35
    tint: tuple = (1.0, 1.0, 1.0)
    shirt: tuple = (.3, .45, .6)

    @staticmethod
    def random(r: np.random.Generator, strength: float = 1.0) -> Look:
        """A look drawn from `r`; `strength` 1 is the range the shipped models were trained on."""
        s = strength
        return Look(yaw=r.uniform(-.45, .45) * s, pitch=r.uniform(-.22, .22) * s, smile=r.uniform(-.3, 1),
                    gape=max(0., r.uniform(-.8, 1)) * s, blink=max(0., r.uniform(-.9, .6)) * s,
                    brow_lift=r.uniform(-.05, .06) * s, gaze=tuple(r.uniform(-.25, .25, 2) * s),
                    light=tuple(r.uniform(-.8, .8, 2)), contrast=r.uniform(.1, .6),
                    tint=tuple(1 + r.uniform(-.12, .1, 3) * s), shirt=tuple(r.uniform(.1, .9) + r.uniform(-.2, .2, 3)))


@dataclass
class Portrait:
    """image: uint8 [H, W, 3] RGB; box: x1 y1 x2 y2; landmarks: [5, 2] x, y in pixels, left eye, right eye,
    nose, left and right mouth corner as they stand in the image."""

    image: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray


def _cover(f: np.ndarray) -> np.ndarray:
    """Antialiased mask of {f < 0}: the value divided by its own slope is a distance in pixels."""
    gy, gx = np.gradient(f)
    return np.clip(.5 - f / (np.sqrt(gx * gx + gy * gy) + 1e-6), 0, 1)


class _Brush:
    """Paints implicit shapes, seen through a similarity, onto a float canvas [H, W, 3]."""

    def __init__(self, canvas: np.ndarray, face_to_pixel: np.ndarray, look: Look) -> None:
        self.canvas, self.look = canvas, look
        self.matrix = face_to_pixel
        self.unit = float(np.sqrt(abs(np.linalg.det(face_to_pixel[:, :2]))))
        inverse = np.linalg.inv(face_to_pixel[:, :2])
        yy, xx = np.mgrid[:canvas.shape[0], :canvas.shape[1]].astype(np.float32)
        dx, dy = xx - face_to_pixel[0, 2], yy - face_to_pixel[1, 2]
        self.x = (inverse[0, 0] * dx + inverse[0, 1] * dy).astype(np.float32)
        self.y = (inverse[1, 0] * dx + inverse[1, 1] * dy).astype(np.float32)

    def place(self, x: float, y: float, lift: float = 0.0) -> tuple[float, float, float]:
        """Where a point of the frontal face is seen under the look's yaw and pitch, and how much narrower."""
        z = .62 * np.sqrt(max(.05, 1 - (x / .95) ** 2 - (y / 1.3) ** 2)) + lift
        sy, cy = np.sin(self.look.yaw), np.cos(self.look.yaw)
        slant = np.clip(cy - .55 * sy * np.sign(x) * abs(x) / .5, .55, 1.15)
        return x * cy + z * sy, y * np.cos(self.look.pitch) + z * np.sin(self.look.pitch), slant

    def window(self, x: float, y: float, radius: float) -> tuple[slice, slice]:
        """The pixels within `radius` of a point: everything small is painted there only."""
        cx, cy = self.matrix[:, :2] @ (x, y) + self.matrix[:, 2]
        h, w = self.canvas.shape[:2]
        reach = radius * self.unit + 2
        lo = lambda c, n: int(np.clip(c - reach, 0, max(n - 2, 0)))
        hi = lambda c, n: int(np.clip(c + reach + 1, 2, n))
        return slice(lo(cy, h), hi(cy, h)), slice(lo(cx, w), hi(cx, w))

    def fill(self, mask: np.ndarray, colour: np.ndarray, where=(slice(None), slice(None))) -> None:
        part = self.canvas[where]
        part += mask[..., None] * (np.asarray(colour, np.float32) - part)

    def ellipse(self, x: float, y: float, a: float, b: float, colour, alpha: float = 1.0, tilt: float = 0.0,
                soft: bool = False) -> None:
        win = self.window(x, y, max(a, b) * (2.2 if soft else 1.1))
        u, v = self.x[win] - x, self.y[win] - y
        c, s = np.cos(tilt), np.sin(tilt)
        q = ((u * c + v * s) / a) ** 2 + ((v * c - u * s) / b) ** 2
        self.fill(alpha * (np.exp(-1.2 * q) if soft else _cover(q - 1)), colour, win)

    def light(self, nx: np.ndarray, ny: np.ndarray) -> np.ndarray:
        """Lambert shading of a surface whose normal is (nx, ny, √(1 − nx² − ny²)), about 1 on average."""
        lx, ly = self.look.light
        lz = .9
        nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0, 1))
        dot = np.clip((nx * lx + ny * ly + nz * lz) / np.sqrt(lx * lx + ly * ly + lz * lz), 0, 1)
        return 1 + self.look.contrast * (dot - .78)


def _outline(b: _Brush, t: dict) -> np.ndarray:
    """Implicit head: round above, a jaw of the person's own power below."""
    w = t["width"] * (1 + .04 * abs(np.sin(b.look.yaw)))
    x = np.abs(b.x - .1 * np.sin(b.look.yaw) * np.clip(b.y + .3, 0, 1)) / w
    y = b.y + .05
    up, down = np.clip(-y, 0, None) / .98, np.clip(y, 0, None) / (t["chin"] * (1 + .04 * b.look.gape) + .05)
    return x ** t["brow_bone"] + up ** 2.1 + down ** t["jaw"] * (1 + .25 * x) - 1


def _hair_shade(b: _Brush, t: dict) -> np.ndarray:
    angle = np.arctan2(b.x - t["part"] * .3, b.y + 1.2)
    strands = .07 * np.sin(angle * 46 + 3 * np.sin(b.y * 5)) + .05 * np.sin(angle * 83 + 1.3)
    shine = .28 * np.exp(-((np.hypot(b.x, b.y + .1) - .88) / .12) ** 2) * np.clip(-b.y, 0, 1)
    return (1 + strands + shine) * b.light(b.x / 1.25, (b.y + .2) / 1.5)


def _hair_back(b: _Brush, t: dict) -> None:
    style, vol, w = t["style"], t["volume"], t["width"]
    if style in ("bald", "buzz"):
        return
    x, y = b.x + .12 * np.sin(b.look.yaw), b.y + .14
    if style == "curly":
        angle = np.arctan2(y, x)
        f = np.hypot(x / (w + .24 + vol), y / (1.12 + vol)) - 1 - .045 * np.cos(t["curls"] * angle)
        f = np.where(y > .75, f + (y - .75) * 2, f)
    elif style in ("long", "bob"):
        end = 1.75 if style == "long" else .75 + vol
        flare = (w + .1 + vol) * (1 + .1 * np.clip(y, 0, 2))
        top = np.hypot(x / (w + .1 + vol), y / (1.02 + vol)) - 1
        f = np.where(y < 0, top, np.maximum(np.abs(x) / flare - 1, (y - end + .25 * (x / flare) ** 4) * 1.5))
    else:
        tall = .2 if style == "quiff" else 0
        f = np.hypot(x / (w + .05 + .35 * vol), np.where(y < 0, y / (1.0 + vol + tall), y / .55)) - 1
    if style == "bun":
        f = np.minimum(f, np.hypot(x / .36, (b.y + 1.25) / .32) - 1)
    b.fill(_cover(f), t["hair"] * .82 * _hair_shade(b, t)[..., None])


def _hair_front(b: _Brush, t: dict, head: np.ndarray) -> None:
    style, w = t["style"], t["width"]
    if style == "bald":
        return
    s = (b.x - .3 * np.sin(b.look.yaw)) / w
    y = b.y - .35 * np.sin(b.look.pitch)
    line = t["hairline"]
    temple = .55 * np.clip((np.abs(s) - .62) / .3, 0, 1) ** 2
    part = t["part"]
    if style == "fringe":
        edge = -.3 + .035 * np.cos(s * 14) + .12 * s * part + temple * .9
    elif style in ("long", "bob"):
        edge = line - .12 + .85 * np.abs(s - part * .5) ** 1.4 + temple
    elif style == "side":
        edge = line + .3 * np.clip((s - part) * (1 if part < 0 else -1), 0, 2) ** .8 + temple
    elif style == "curly":
        edge = line + .06 * np.cos(s * 17) + temple * 1.1
    elif style == "quiff":
        edge = line - .08 + .1 * s * s + .05 * np.cos(s * 9 + 4 * part) + temple * .8
    else:
        edge = line + .08 * s * s + temple * (.9 if style != "bun" else .5)
    grown = head - (.0 if style == "buzz" else .14)
    f = np.maximum(grown, (y - edge) * 1.6)
    shade = _hair_shade(b, t)
    b.fill(_cover(f) * (.62 if style == "buzz" else 1), t["hair"] * shade[..., None])
    if style != "buzz":
        shadow = _cover(head) * np.clip(1 - np.abs(y - edge - .03) / .1, 0, 1) * (y > edge) * .22
        b.fill(shadow, t["skin"] * .45)


def _skin(b: _Brush, t: dict, head: np.ndarray) -> None:
    skin, w = t["skin"], t["width"]
    shirt = np.asarray(b.look.shirt, np.float32)
    collar = np.hypot(b.x / 1.45, (b.y - 2.1) / .85) - 1
    b.fill(_cover(collar), shirt * b.light(b.x / 1.6, (b.y - 2) / 1.2)[..., None])
    neck = np.maximum(np.abs(b.x) / (w * .56 + .05 * np.clip(b.y - 1, 0, 1)) - 1, np.hypot(b.x / .5, (b.y - .9) / .62) - 1)
    b.fill(_cover(neck), skin * .8 * b.light(b.x / .8, b.y * 0)[..., None])
    for side in (-1, 1):
        x = side * (w + .01) - .16 * np.sin(b.look.yaw)
        b.ellipse(x, .1, t["ear"] * .62, t["ear"], skin * .93)
        b.ellipse(x, .1, t["ear"] * .3, t["ear"] * .6, skin * .72, .7)
        if t["earring"] and t["style"] not in ("long", "curly"):
            b.ellipse(x, .1 + t["ear"], .035, .035, (.95, .82, .35))
    shade = b.light(b.x / (w * 1.12), (b.y - .05) / 1.3)
    warm = 1 - .16 * np.clip(head + .35, 0, .35)[..., None] * np.array([.6, 1.1, 1.3], np.float32)
    b.fill(_cover(head), skin * shade[..., None] * warm)
    for side in (-1, 1):
        x, y, slant = b.place(side * .43, .36)
        b.ellipse(x, y, .15 * slant, .12, skin * (1, .62, .58), .25 + t["blush"], soft=True)


def _marks(b: _Brush, t: dict, seed: int) -> None:
    r = np.random.default_rng([seed, 11])
    for _ in range(t["freckles"]):
        x, y, _s = b.place(r.normal(0, .33), .22 + r.normal(0, .1))
        b.ellipse(x, y, .017, .015, t["skin"] * (.72, .58, .48), .75)
    if t["mole"] is not None:
        x, y, _s = b.place(*t["mole"])
        b.ellipse(x, y, .028, .028, t["skin"] * .3)


def _beard(b: _Brush, t: dict, head: np.ndarray) -> None:
    kind = t["beard"]
    if kind == "none":
        return
    mx, my, slant = b.place(0, t["mouth_y"], .05)
    x, y = (b.x - mx) / slant, b.y - my
    colour = t["hair"] * .8 * (1 + .07 * np.sin(b.x * 38 + 4 * b.y))[..., None]
    tache = np.maximum(np.hypot(x / (t["mouth_w"] + .06), (y + .075) / .075) - 1, -(y + .16) * 4)
    lips = np.hypot(x / (t["mouth_w"] * .95), (y - .02) / .1) - 1
    full = np.maximum(np.maximum(head + .02, .02 - y - .16 + .75 * np.clip(.42 - np.abs(x), 0, .42) - .33), -lips)
    if kind == "moustache":
        b.fill(_cover(tache), colour)
    elif kind == "goatee":
        ring = np.maximum(np.hypot(x / (t["mouth_w"] * .9), (y - .17) / .29) - 1, -lips)
        b.fill(_cover(np.maximum(np.minimum(ring, tache), head)), colour)
    else:
        cover = np.maximum(_cover(full), _cover(tache))
        b.fill(cover * (.3 if kind == "stubble" else .96), colour)


def _eyes(b: _Brush, t: dict) -> None:
    for side in (-1, 1):
        cx, cy, slant = b.place(side * t["eye_x"], 0, -.03)
        a = t["eye_w"] * slant
        h = t["eye_w"] * t["eye_h"] * (1 - .75 * b.look.blink)
        win = b.window(cx, cy, t["eye_w"] * 2)
        c, s = np.cos(t["eye_tilt"] * side), np.sin(t["eye_tilt"] * side)
        u, v = b.x[win] - cx, b.y[win] - cy
        u, v = (u * c + v * s) / a, (v * c - u * s) / h
        lens = np.abs(v) - np.clip(1 - u * u, 0, None) * np.where(v < 0, 1, .8) + np.clip(np.abs(u) - 1, 0, None)
        socket = np.hypot(u / 1.5, (v + .2) / 1.8)
        b.fill(.3 * np.exp(-2 * socket ** 2), t["skin"] * .5, win)
        white = _cover(lens)
        b.fill(white, (.97, .97, .96), win)
        gx, gy = b.look.gaze
        size = t["eye_w"] * t["iris_size"]
        ball = np.hypot(b.x[win] - cx - gx * a, b.y[win] - cy - gy * h + .05 * h) / size
        b.fill(white * _cover(ball - 1), t["iris"] * .55, win)
        b.fill(white * _cover(ball - .84), np.clip(t["iris"] * 1.15, 0, 1), win)
        b.fill(white * _cover(ball - .45), (.04, .04, .05), win)
        glint = np.hypot(b.x[win] - cx - gx * a + .3 * size, b.y[win] - cy - gy * h + .4 * size) / (size * .24)
        b.fill(white * _cover(glint - 1), (1, 1, 1), win)
        b.fill(white * np.clip(.3 - (v + .55) * .8, 0, .4), t["skin"] * .3, win)
        lid = np.abs(v + np.clip(1 - u * u, 0, None)) * h - t["lash"] * (1.15 - .3 * u * u)
        b.fill(_cover(np.maximum(lid, (np.abs(u) - 1.08) * .1)), (.1, .07, .07), win)
        crease = np.abs(v + 1.35 - .8 * u * u) * h - .008
        b.fill(t["eyelid"] * _cover(np.maximum(crease, (np.abs(u) - .95) * .1)), t["skin"] * .45, win)


def _brows(b: _Brush, t: dict) -> None:
    for side in (-1, 1):
        cx, cy, slant = b.place(side * (t["eye_x"] + .015), -t["brow_y"] - b.look.brow_lift, .0)
        win = b.window(cx, cy, .4)
        u = (b.x[win] - cx) * side / (t["brow_w"] * slant)
        v = b.y[win] - cy - t["brow_tilt"] * .13 * u + t["brow_arch"] * (1 - u * u)
        thick = t["brow_thick"] * np.clip(1.15 - .45 * u, .2, 1.5)
        b.fill(_cover(np.maximum(np.abs(v) - thick * np.sqrt(np.clip(1.02 - u * u, 0.01, 1)), (np.abs(u) - 1) * .2)),
               t["hair"] * t["brow_shade"] * .8, win)


def _nose(b: _Brush, t: dict) -> None:
    skin, w = t["skin"], t["nose_w"]
    x, y, _ = b.place(0, t["nose_y"], .16)
    bx, by, _ = b.place(0, t["nose_y"] - t["nose_len"], .02)
    lx = -np.sign(b.look.light[0]) or 1
    for k in np.linspace(0, 1, 6):
        px, py = bx + (x - bx) * k, by + (y - by) * k
        b.ellipse(px + lx * w * (.45 + .4 * k), py, w * .5, t["nose_len"] * .22, skin * .68, .16, soft=True)
        b.ellipse(px - lx * w * .15, py, w * .35, t["nose_len"] * .2, np.clip(skin * 1.25, 0, 1), .13, soft=True)
    b.ellipse(x, y + .02, w * 1.05, w * .62 * t["nose_round"], skin * .86, .85)
    b.ellipse(x, y - .012, w * .86, w * .6 * t["nose_round"], np.clip(skin * 1.06, 0, 1), .9)
    for side in (-1, 1):
        b.ellipse(x + side * w * .98, y + .012, w * .34, w * .36, skin * .84)
        b.ellipse(x + side * w * .48, y + .03 + w * .3 * t["nose_round"], w * .26, w * .14, skin * .36, .9)
    b.ellipse(x - .3 * lx * w, y - .04, w * .25, w * .2, (1, 1, 1), .3, soft=True)


def _mouth(b: _Brush, t: dict) -> tuple[tuple[float, float], tuple[float, float]]:
    """Paints the mouth and returns its two corners in face coordinates."""
    look = b.look
    cx, cy, slant = b.place(0, t["mouth_y"], .06)
    w = t["mouth_w"] * (1 + .16 * look.smile) * slant
    curve = t["lip_curve"] + .1 * look.smile
    win = b.window(cx, cy, t["mouth_w"] * 1.6)
    u, v = (b.x[win] - cx) / w, b.y[win] - cy + curve * ((b.x[win] - cx) / w) ** 2 - curve * .4
    edge = np.clip(1 - u * u, 0, None)
    open_ = .16 * look.gape * edge
    outside = np.clip(np.abs(u) - 1, 0, None) * .4
    dip = 1 - .25 * np.exp(-(u / .16) ** 2)
    colour = t["skin"] * (1 - .5 * t["lip"] * np.array([.25, .75, .65])) * np.array([.92, .66, .64])
    upper = np.maximum(-v - t["lip_top"] * np.sqrt(edge) * dip, v - .3 * open_) + outside
    lower = np.maximum(-v, v - open_ - t["lip_low"] * edge) + outside
    b.fill(_cover(np.minimum(upper, lower)), colour, win)
    b.fill(.25 * np.exp(-((v - open_ - t["lip_low"] * .55) / .018) ** 2 - (u / .4) ** 2), (1, .92, .9), win)
    if look.gape > .2:
        b.fill(_cover(np.maximum(-v, v - open_) + outside), (.3, .07, .08), win)
        b.fill(_cover(np.maximum(-v + .004, v - open_ * .42) + outside), (.96, .95, .92), win)
    else:
        b.fill(_cover(np.abs(v) - .011 + outside), colour * .42, win)
    corner = curve * .4 - curve
    for side in (-1, 1):
        b.ellipse(cx + side * w, cy + corner, .022, .022, t["skin"] * .5, .5)
    return (cx - w, cy + corner), (cx + w, cy + corner)


def _glasses(b: _Brush, t: dict) -> None:
    if t["glasses"] == "none":
        return
    power = 2 if t["glasses"] == "round" else 5
    middle = []
    for side in (-1, 1):
        cx, cy, slant = b.place(side * (t["eye_x"] + .02), .02, .06)
        a, h = t["frame_size"] * slant, t["frame_size"] * (.98 if power == 2 else .74)
        win = b.window(cx, cy, .42)
        q = (np.abs(b.x[win] - cx) / a) ** power + (np.abs(b.y[win] - cy) / h) ** power
        q = (q ** (1 / power) - 1) * min(a, h)
        b.fill(_cover(q) * .12, (.85, .93, 1), win)
        b.fill(_cover(np.abs(q) - .018), t["frame"], win)
        middle.append((cx - side * a, cy))
        ex = cx + side * a
        arm = np.maximum(np.abs(b.y - cy + .06) - .016, np.abs(b.x - ex - side * .09) - .1)
        b.fill(_cover(arm), t["frame"])
    (x0, y0), (x1, _) = middle
    bridge = np.maximum(np.abs(b.y - y0 + .05) - .017, np.abs(b.x - (x0 + x1) / 2) - abs(x1 - x0) / 2)
    b.fill(_cover(bridge), t["frame"])


def background(r: np.random.Generator, height: int, width: int, clutter: bool = False) -> np.ndarray:
    """Float canvas [H, W, 3]: a gradient of two colours; with `clutter`, shapes that are not faces."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = r.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * x / width + np.sin(angle) * y / height)[..., None]
    a, c = (v.mean() + .45 * (v - v.mean()) for v in r.uniform(.2, .98, (2, 3)))
    canvas = (a + (.55 * a + .45 * c - a) * (ramp - ramp.min()) / (np.ptp(ramp) + 1e-6)).astype(np.float32)
    for _ in range(int(r.integers(1, 7)) if clutter else 0):
        cx, cy = r.uniform(0, width), r.uniform(0, height)
        rx, ry = r.uniform(.05, .3, 2) * max(height, width)
        q = np.abs((x - cx) / rx) ** r.choice([2, 2, 8]) + np.abs((y - cy) / ry) ** 2 - 1
        colour = r.uniform(.1, 1, 3) if r.random() < .6 else SKINS[r.integers(len(SKINS))]
        canvas += (r.uniform(.15, .9) * _cover(q))[..., None] * (colour - canvas)
    return canvas


def paint(canvas: np.ndarray, person: Person, look: Look, face_to_pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paints a head onto a float canvas in place through the 2x3 matrix `face_to_pixel`; returns (box, landmarks)."""
    t = person.traits
    b = _Brush(canvas, face_to_pixel, look)
    head = _outline(b, t)
    _hair_back(b, t)
    _skin(b, t, head)
    _marks(b, t, person.seed)
    _nose(b, t)
    _beard(b, t, head)
    left_corner, right_corner = _mouth(b, t)
    _eyes(b, t)
    _hair_front(b, t, head)
    _brows(b, t)
    _glasses(b, t)
    canvas *= np.asarray(look.tint, np.float32)
    points = [b.place(-t["eye_x"], 0, -.03)[:2], b.place(t["eye_x"], 0, -.03)[:2],
              b.place(0, t["nose_y"], .16)[:2], left_corner, right_corner]
    to_pixel = lambda p: np.asarray(p) @ face_to_pixel[:, :2].T + face_to_pixel[:, 2]
    corners = to_pixel([(sx * t["width"], y) for sx in (-1, -.6, .6, 1) for y in (-.25, .35)]
                       + [(0, -.8), (0, t["chin"])])
    return np.concatenate([corners.min(0), corners.max(0)]).astype(np.float32), to_pixel(points).astype(np.float32)


def similarity(scale: float, roll: float, x: float, y: float) -> np.ndarray:
    """The 2x3 matrix that puts (0, 0) of the face at (x, y), one unit `scale` pixels long, turned by `roll` radians."""
    c, s = scale * np.cos(roll), scale * np.sin(roll)
    return np.array([[c, -s, x], [s, c, y]])


def finish(canvas: np.ndarray, r: np.random.Generator | None = None, noise: float = 0.0) -> np.ndarray:
    """Float canvas to uint8, with `noise` as the standard deviation of the grain in [0, 1]."""
    if r is not None and noise > 0:
        canvas = canvas + r.normal(0, noise, canvas.shape)
    return (np.clip(canvas, 0, 1) * 255 + .5).astype(np.uint8)


def portrait(seed: int, size: int = 256, look: Look | None = None, variant: int = 0, zoom: float = 1.0) -> Portrait:
    """One person in the middle of a square picture. `variant` changes the background and, unless `look` is
    given, the pose, the expression and the light; the same arguments always give the same picture."""
    r = np.random.default_rng([seed, variant, 3])
    look = look or Look.random(r, .7)
    canvas = background(r, size, size)
    roll = r.uniform(-.12, .12)
    box, points = paint(canvas, Person(seed), look, similarity(size * .36 * zoom, roll, size * .5, size * .5))
    return Portrait(finish(canvas), box, points)
