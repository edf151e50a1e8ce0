"""Crops images with a gradient as the method does: the target of a diptych, and a face by its box."""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: How far around the box the crop reaches: 1.2 times its longer side.
MARGIN = 1.2


def target_region(images: torch.Tensor, image_size: int | None) -> torch.Tensor:
    """The part of an image that is compared: the right half of a diptych (reference | target) ``[B,C,H,2·image_size]``.

    Args:
        images: ``[B,C,H,W]``
        image_size: width of one image, pixels; None: ``images`` are returned as they are

    Raises:
        ValueError: the width is neither ``image_size`` nor twice that
    """
    width = images.shape[-1]
    if image_size is None or width == image_size:
        return images
    if width == 2 * image_size:
        return images[..., image_size:]
    raise ValueError(
        f"image_size={image_size}: expected decoded images {image_size} wide, or {2 * image_size} for a diptych "
        f"(reference | target), got {width}; write image_size={width // 2} where these are diptychs, and leave it out where "
        "the whole image counts"
    )


def check_image_size(image_size: object) -> None:
    """Raises :class:`TypeError` for what is no width of an image: a device, where arguments are given in another order."""
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int)):
        raise TypeError(
            f"image_size: expected the width of one image in pixels, got {image_size!r}; write device={image_size!r} for a device"
        )


def crop_and_resize(image: torch.Tensor, bbox: Sequence[float], size: int) -> torch.Tensor:
    """Crops a square around the middle of a box, in whole pixels, and resizes it to ``[C,size,size]``. Its side is 1.2 times
    the box's longer side. Outside the image, pixels are mirrored. The gradient flows to ``image`` ``[C,H,W]``.

    Raises:
        ValueError: the box has no area inside the image, or the image is none
    """
    if image.dim() != 3:
        raise ValueError(f"image: expected [3,H,W], got {list(image.shape)}")
    height, width = image.shape[-2:]
    x1, y1, x2, y2 = (float(v) for v in bbox)
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
    if not (x2 > x1 and y2 > y1):
        raise ValueError(f"bbox: expected x1 < x2 and y1 < y2 inside the image of {width}x{height}, got {[float(v) for v in bbox]}")
    side = MARGIN * max(x2 - x1, y2 - y1)
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    # The method rounds towards zero.
    columns = _mirrored(int(middle_x - side / 2), int(middle_x + side / 2), width, image.device)
    rows = _mirrored(int(middle_y - side / 2), int(middle_y + side / 2), height, image.device)
    cut = image.index_select(-2, rows).index_select(-1, columns)
    resized = torch.nn.functional.interpolate(cut[None], size=(size, size), mode="bilinear", align_corners=False)
    return resized[0]


def _mirrored(start: int, end: int, length: int, device: torch.device) -> torch.Tensor:
    """The indices ``start``…``end`` of an axis. Those outside 0…``length`` − 1 are mirrored at its ends."""
    index = torch.arange(start, max(end, start + 1), device=device)
    if length == 1:
        return torch.zeros_like(index)
    period = 2 * (length - 1)
    index = index.remainder(period)
    return torch.where(index < length, index, period - index)
