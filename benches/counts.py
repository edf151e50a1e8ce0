"""Multiply-adds of the loss in each of its modes against those of the training step that it is part of: FLUX.1's transformer
with a LoRA and checkpointing, FLUX.1's decoder, and an IResNet-50, at batch 1 with one face. These are counts, computed from
the architectures. They are not times: a GPU does not do every operation at the same speed.

    python benches/counts.py [--sizes 512 1024] [--pixels 128] [--write]       --write renews the table in docs/performance.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

PAGE = Path(__file__).resolve().parents[1] / "docs/performance.md"
TEXT_TOKENS = 512
MODES = {
    "eager": "eager PyTorch's way",
    "exact": "whole image",
    "recompute": "whole image, `recompute: blocks`",
    "window exact": "window, exact statistics",
    "window cached": "window, cached statistics",
    "rollout": "whole image and a rollout",
}


def transformer(
    size: int, width: int = 3072, double: int = 19, single: int = 38, joint: int = 4096, channels: int = 64
) -> tuple[float, float]:
    """A forward pass of FLUX.1's transformer in 10⁹: linear layers, and products of attention."""
    image = (size // 16) ** 2
    tokens, blocks = image + TEXT_TOKENS, double + single
    # A double block: three projections, one back, and an MLP of four times the width. A single block: 7 widths out, 5 back.
    linear = blocks * 12 * width**2 * tokens
    # The modulation of a block's streams, once per sample: six vectors for each stream, or three.
    linear += double * 12 * width**2 + single * 3 * width**2
    linear += width * (image * 2 * channels + TEXT_TOKENS * joint)
    return linear / 1e9, blocks * 2 * tokens**2 * width / 1e9


def training_step(size: int) -> float:
    """A LoRA's step with checkpointing in 10⁹. The weights are frozen, so that a linear layer's backward pass is one product,
    as its forward pass is; attention's backward pass is four products for two. Checkpointing adds a forward pass. The LoRA's
    own products are left out: at rank 16 they are less than 1 %."""
    linear, attention = transformer(size)
    return 3 * linear + 4 * attention


def recogniser(stages: tuple[int, ...] = (3, 4, 14, 3), widths: tuple[int, ...] = (64, 128, 256, 512), side: int = 112) -> float:
    """An IResNet's forward pass of one crop in 10⁹."""
    count, inputs = 9 * 3 * widths[0] * side**2, widths[0]
    for blocks, width in zip(stages, widths, strict=True):
        # The first convolution of a stage sees the larger map; a convolution of 1×1 stands beside the first block.
        count += 9 * inputs * width * side**2
        side //= 2
        count += 9 * width * width * side**2 + inputs * width * side**2
        count += (blocks - 1) * 2 * 9 * width * width * side**2
        inputs = width
    return (count + widths[-1] * side**2 * 512) / 1e9


def loss(size: int, pixels: int) -> dict[str, float]:
    """The loss with its gradient in every mode, in 10⁹. A frozen network's backward pass takes as many as its forward pass.
    Detection is left out: the places are known. Eager PyTorch has no cache and embeds the reference too."""
    from decoder import work_of

    whole = sum(work_of(size, pixels, window=False).values())
    exact, cached = (sum(work_of(size, pixels, window=True, halo=halo).values()) for halo in (None, 2))
    face = 2 * recogniser()
    linear, attention = transformer(size)
    forward = linear + attention
    return {
        "eager": 2 * whole + face + recogniser(),
        "exact": 2 * whole + face,
        "recompute": 3 * whole + face,
        "window exact": whole + 2 * exact + face,
        "window cached": 2 * cached + face,
        # The default goes down to a level that is even in [1/8, 1/2] of eight steps: 5, 6 or 7 predictions without a
        # gradient, then one with it, and the loss of that one too.
        "rollout": 6 * forward + training_step(size) + 2 * (2 * whole + face),
    }


def table(sizes: list[int], pixels: int) -> str:
    rows = ["| mode | " + " | ".join(f"{size}²: 10⁹ | of the step without it" for size in sizes) + " |", "|---|" + "---|---|" * len(sizes)]
    rows.append("| the training step without the loss | " + " | ".join(f"{training_step(size):,.0f} | " for size in sizes) + "|")
    counted = {size: loss(size, pixels) for size in sizes}
    for mode, name in MODES.items():
        cells = (f"{counted[size][mode]:,.0f} | {100 * counted[size][mode] / training_step(size):.1f} %" for size in sizes)
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def replace(name: str, text: str, page: Path = PAGE) -> None:
    """Puts `text` between the page's markers of that name."""
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = page.read_text()
    before, found, rest = whole.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} has no lines {start} and {end}")
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides of the images")
    parser.add_argument("--pixels", type=int, default=128, help="side of the face's crop")
    parser.add_argument("--write", action="store_true", help="renew the table in docs/performance.md")
    args = parser.parse_args()
    text = table(args.sizes, args.pixels)
    print(text)
    if args.write:
        replace("counts", text)


if __name__ == "__main__":
    main()
