"""Writes portraits of drawn people as PPM files, for hosts that read no other picture: FOLDER/<person>_<n>.ppm.

    python examples/demo_assets/pictures.py FOLDER [PEOPLE [PICTURES [SIZE]]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from faces import portrait

FIRST = 5_000_000  # people from this seed on were never shown to the shipped models in training


def write(path: Path, image: np.ndarray) -> None:
    """`image` is uint8 `[H,W,3]` RGB."""
    path.write_bytes(b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    people, pictures, size = [int(v) for v in sys.argv[2:]] + [2, 2, 192][len(sys.argv) - 2 :]
    folder.mkdir(parents=True, exist_ok=True)
    for person in range(people):
        for n in range(pictures):
            write(folder / f"{person}_{n}.ppm", portrait(FIRST + person, size=size, variant=n).image)
