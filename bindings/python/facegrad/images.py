"""Pictures from files, as every camera and editor writes them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".ppm"}


class ImageError(ValueError):
    """A picture that cannot be read; the text says which and why."""


def read_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """The picture as ``[3,H,W]`` uint8, RGB.

    EXIF's rotation is applied; 16 bits are scaled to 8, grey is repeated, transparent parts lie on white.

    Raises:
        ImageError: the file is missing, no picture, damaged, or larger than Pillow's limit of pixels
    """
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            # Pillow warns at half its limit and refuses at the limit; only the limit matters here.
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with pillow.open(path) as image:
                image.load()
                pixels = np.array(_rgb(image))
    except pillow.DecompressionBombError as error:
        raise ImageError(f"{path}: too large: {error}; scale it down") from error
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except pillow.UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture that Pillow knows") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: damaged or cut off: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def image_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files themselves, and the pictures in folders, by name.

    Raises:
        ImageError: a folder without pictures
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise ImageError(f"{path}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
        files += inside
    return files


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    pillow = _pillow()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files open as 32-bit integers too; what stays below 256 is 8-bit data.
        scale = 257.0 if values.max(initial=0) > 255 else 1.0
        image = pillow.fromarray(np.clip(np.round(values / scale), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow.alpha_composite(white, image)
    rgb: Image.Image = image.convert("RGB")
    return rgb


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are read with Pillow: pip install 'facegrad[tools]'") from error
    return Image
