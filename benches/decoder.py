"""Operations of FLUX.1's decoder, counted from its architecture."""

from __future__ import annotations

import math


def work_of(size: int, crop: int, window: bool, halo: int | None = None) -> dict[str, float]:
    """Multiply-adds of a forward pass in 10⁹, by where they are spent: what takes the time where nothing else disturbs. The
    backward pass takes as many: no weight has a gradient."""
    latent, side = size // 8, math.ceil((crop + 2) / 8) * 8
    # Name, channels in and out, convolutions of 3×3, whether it doubles the side: from the image back to the attention.
    blocks: list[tuple[str, int, int, int, bool]] = [("at 8x", 128, 3, 1, False)]
    for name, inputs, outputs in (("at 8x", 256, 128), ("at 4x", 512, 256), ("at 2x", 512, 512), ("at 1x", 512, 512)):
        blocks += [(name, outputs, outputs, 2, False)] * 2 + [(name, inputs, outputs, 2, False)]
        if name != "at 1x":
            blocks.append((name, inputs, inputs, 1, True))
    blocks.append(("mid block", 512, 512, 2, False))
    scale, spent = 8, {}
    for name, inputs, outputs, convs, doubles in blocks:
        needed = math.ceil((side + 2) / 2) * 2 if doubles else side + 2 * convs
        most = latent if halo is None else min(latent, math.ceil((crop + 2) / 8) + 2 * halo)
        pixels = min(needed, most * scale) if window else latent * scale
        kernels = 9 * (inputs * outputs + (convs - 1) * outputs**2) + (inputs * outputs if inputs != outputs and convs == 2 else 0)
        spent[name] = spent.get(name, 0.0) + pixels**2 * kernels / 1e9
        scale = scale // 2 if doubles else scale
        side = pixels // 2 if doubles else pixels
    tokens, queries = latent**2, (min(side, latent) if window else latent) ** 2
    spent["attention"] = (2 * queries * tokens * 512 + 4 * queries * 512**2) / 1e9
    spent["before it"] = tokens * 9 * (16 * 512 + 2 * 512**2) / 1e9
    return spent
