"""The script that measures on a GPU, with tiny networks, and the script that counts operations, against torch's counter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from world import ROOT

sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "tests/fixtures")]
import counts
import decoder


def multiply_adds(run: object, *arguments: object, **named: object) -> float:
    """In 10⁹, as torch counts them; on the device `meta`, which computes nothing."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*arguments, **named)
    return counter.get_total_flops() / 2e9


def test_the_transformers_count_is_torchs() -> None:
    from diffusers import FluxTransformer2DModel

    size = 1024
    with torch.device("meta"):
        # FLUX.1 has 19 and 38 blocks, which are all alike.
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=2, guidance_embeds=True)
        tokens, text = (size // 16) ** 2, counts.TEXT_TOKENS
        given = {
            "hidden_states": torch.empty(1, tokens, 64), "encoder_hidden_states": torch.empty(1, text, 4096), "pooled_projections": torch.empty(1, 768),
            "timestep": torch.empty(1), "guidance": torch.empty(1), "img_ids": torch.empty(tokens, 3), "txt_ids": torch.empty(text, 3),
        }  # fmt: skip
        found = multiply_adds(model, **given)
    assert sum(counts.transformer(size, double=1, single=2)) == pytest.approx(found, rel=0.01)


def test_the_decoders_count_is_torchs() -> None:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
            layers_per_block=2, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
        found = multiply_adds(vae.decode, torch.empty(1, 16, 64, 64))
    assert sum(decoder.work_of(512, 128, window=False).values()) == pytest.approx(found, rel=0.01)


def test_the_recognisers_count_is_torchs() -> None:
    from iresnet import IResNet

    with torch.device("meta"):
        found = multiply_adds(IResNet((3, 4, 14, 3)).eval(), torch.empty(1, 3, 112, 112))
    assert counts.recogniser() == pytest.approx(found, rel=0.01)


def test_the_page_has_the_counts_of_the_script() -> None:
    assert counts.table([512, 1024], 128) in counts.PAGE.read_text(), "run: python benches/counts.py --write"


def test_a_dry_run_of_the_measurement() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    before = counts.PAGE.read_bytes()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benches/gpu.py"), "--dry", "--sizes", "64"], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    for name in ("without the loss", *counts.MODES.values()):
        assert f"| 64 | {name} |" in done.stdout
    assert counts.PAGE.read_bytes() == before, "a dry run writes nothing"
