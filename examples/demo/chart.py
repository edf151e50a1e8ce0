"""The figure of docs/results.md: how alike every person's samples are to the person, with each training."""

from __future__ import annotations

from pathlib import Path

from sheet import GRID, INK, SHARP, SOFT, Pen

COLOURS = [(206, 92, 60), (40, 110, 190), (30, 140, 90)]
WIDE, HIGH, LEFT, TOP = 560, 250, 60, 66


def draw_chart(path: Path, panels: list[tuple[str, dict[str, dict[int, float]]]], limits: dict[int, float], low: float) -> None:
    """`panels`: a title and, by training, every person's similarity; up to three trainings. `limits`: by person the most that
    the decoder can draw. The axis goes from `low` to 1."""
    pen = Pen(LEFT + WIDE + 24, TOP + len(panels) * (HIGH + 70))
    names = list(panels[0][1])
    x = LEFT
    for name, colour in zip([*names, "the most that the decoder can draw"], [*COLOURS, SOFT]):
        pen.text(x, 14, name, 14, colour)
        x += 24 + 8 * len(name)
    for at, (title, arms) in enumerate(panels):
        top = TOP + at * (HIGH + 70)
        people = sorted({p for runs in arms.values() for p in runs})
        y = lambda v: top + HIGH * (1 - max(v, low)) / (1 - low)
        pen.text(LEFT, top - 26, title, 15, INK)
        for tick in range(round(10 * low), 11):
            pen.line([(LEFT, y(tick / 10)), (LEFT + WIDE, y(tick / 10))], GRID)
            pen.text(LEFT - 8, y(tick / 10), f"{tick / 10:.1f}", 12, SOFT, "rm")
        for k, person in enumerate(people):
            x = LEFT + WIDE * (k + .5) / len(people)
            pen.text(x, top + HIGH + 6, str(person), 12, SOFT, "ma")
            if person in limits:
                pen.line([(x - 22, y(limits[person])), (x + 22, y(limits[person]))], SOFT, 2)
            for arm, name in enumerate(names):
                if person in arms[name]:
                    dot(pen, x + 12 * (arm - 1), y(arms[name][person]), COLOURS[arm])
        pen.text(LEFT + WIDE, top + HIGH + 22, "person", 12, SOFT, "ra")
    pen.save(path)


def dot(pen: Pen, x: float, y: float, colour, radius: float = 5) -> None:
    pen.draw.ellipse([SHARP * (x - radius), SHARP * (y - radius), SHARP * (x + radius), SHARP * (y + radius)], fill=colour)
