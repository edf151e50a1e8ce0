"""Reads image files of all kinds that cameras and editors write."""

from __future__ import annotations

import logging
import os
import stat
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger("facegrad")

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".ppm"}


class ImageError(ValueError):
    """An image cannot be read. The text says which one and why."""


def read_image(path: str | bytes | os.PathLike[Any]) -> torch.Tensor:
    """The image as ``[3,H,W]`` uint8, RGB.

    EXIF's rotation is applied where it can be read. Samples are scaled from their own range to 8 bits: integers from 0 to
    the largest number of their type, floats as :func:`_scaled` says. Grey is repeated for the three channels. Transparent
    parts become white.

    Raises:
        ImageError: the file is missing, is no image, is damaged, or has more pixels than Pillow allows
    """
    pillow, name = _pillow(), shown(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{name}: expected a file, got a folder, a pipe or a device")
        with warnings.catch_warnings():
            # Pillow warns at half its limit and refuses at the limit; only the limit matters here. What it finds
            # wrong with metadata does not matter either.
            warnings.simplefilter("ignore")
            with pillow.open(os.fsdecode(path)) as image:
                image.load()
                pixels = np.array(_upright(_rgb(image, name), image))
    except ImageError:
        raise
    except pillow.DecompressionBombError as error:
        raise ImageError(f"{name}: too large: {error}; scale it down") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read: {error.strerror}") from error
    except pillow.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture that Pillow knows; save it as PNG or JPEG") from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large for the memory; scale it down") from error
    except Exception as error:
        # Pillow's parsers raise whatever they stumble over: struct.error, TypeError, KeyError, …
        raise ImageError(f"{name}: damaged or cut off: {error or type(error).__name__}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def shown(path: str | bytes | os.PathLike[Any]) -> str:
    """A path as text that can be printed and drawn, whatever bytes are in it."""
    return os.fsencode(path).decode(errors="replace")


def image_files(paths: Iterable[str | bytes | os.PathLike[Any]]) -> list[Path]:
    """The given files, and the images in the given folders in the order of their names. Links are followed.

    Raises:
        ImageError: a folder has no images, or cannot be read
    """
    files: list[Path] = []
    for path in (Path(os.fsdecode(path)) for path in paths):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        except OSError as error:
            raise ImageError(f"{shown(path)}: this folder may not be read: {error.strerror}") from error
        if not inside:
            raise ImageError(f"{shown(path)}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
        files += inside
    return files


def _rgb(image: Image.Image, name: str) -> Image.Image:
    pillow = _pillow()
    # Pillow has no way from these to the next step but through their neighbours.
    image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode in ("La", "RGBa") else image
    if image.mode.startswith("I") or image.mode == "F" or _signed(image):
        image = pillow.fromarray(_scaled(image, name))
    elif "transparency" in image.info and image.mode == "RGB" and max(image.info["transparency"]) > 255:
        # A transparent colour in 16 bits, which Pillow has cut to 8.
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow.alpha_composite(white, image)
    rgb: Image.Image = image.convert("RGB")
    return rgb


def _scaled(image: Image.Image, name: str) -> np.ndarray[Any, Any]:
    """Grey samples that are wider than 8 bits, signed or floating, as ``[H,W]`` uint8.

    A file of floats does not tell their range. If the largest is at most 16, the range is [0, 1], and the highlights of an
    image of high dynamic range are cut off. If it is at most 255, the range is that of 8 bits, and above that of 16 bits.
    """
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, posinf=0.0)
        largest = values.max(initial=0.0)
        full = 1.0 if largest <= 16 else 255.0 if largest <= 255 else 65535.0
        log.info("%s: floating-point samples up to %g are taken as 0 to %g", name, largest, full)
    else:
        bits, signed = _samples(image)
        if signed and bits == 8:
            values = np.asarray(image).view(np.int8).astype(np.float64)
        elif not signed:
            # Pillow keeps 32 unsigned bits in signed ones.
            values = np.where(values < 0, values + 2.0**32, values)
        full = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1
    scaled = np.clip(values / full, 0, 1)
    if _tag(image, 262) == 0:  # PhotometricInterpretation: white is zero, which Pillow sees to in 8 bits alone.
        scaled = 1 - scaled
    if isinstance(clear := image.info.get("transparency"), int):
        scaled[values == clear] = 1
    return np.round(scaled * 255).astype(np.uint8)


def _samples(image: Image.Image) -> tuple[int, bool]:
    """Bits of a grey integer sample, and whether it is signed."""
    if (bits := _tag(image, 258)) is not None:  # BitsPerSample
        return bits, _signed(image)
    # PNG, PGM and JPEG 2000 know unsigned samples alone; PGM's are scaled to 16 bits by Pillow.
    return 16, False


def _signed(image: Image.Image) -> bool:
    return image.mode in ("L", "I") and _tag(image, 339) == 2  # SampleFormat


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a TIFF's tag; None where the picture has none."""
    value = getattr(image, "tag_v2", {}).get(number)
    first = value[0] if isinstance(value, tuple) and value else value
    return int(first) if isinstance(first, (int, float)) else None


def _exif_orientation(block: object) -> int | None:
    """The orientation in an EXIF block, even if other entries are broken, at the first of which Pillow would stop."""
    if not isinstance(block, bytes):
        return None
    block = block.removeprefix(b"Exif\0\0")
    order = ">" if block.startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", block, at)
            if tag == 0x0112 and kind in (1, 3, 4):
                return int(struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], block, at + 8)[0])
    except struct.error:
        pass
    return None


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Rotates ``rgb`` as the metadata of ``image`` say. Metadata that cannot be read are ignored."""
    turns = _pillow().Transpose
    orientation: object = _exif_orientation(image.info.get("exif"))
    if orientation is None:
        try:
            orientation = image.getexif().get(0x0112)  # A TIFF's own tags, and XMP.
        except Exception:  # Pillow's parsers raise whatever they stumble over.
            return rgb
    by = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }  # fmt: skip
    turn = by.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are read with Pillow: pip install pillow") from error
    return Image
