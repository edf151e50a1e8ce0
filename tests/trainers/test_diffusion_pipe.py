"""tdrussell/diffusion-pipe: the way from its batch to its loss, without its models, which need a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ASSETS, HERE, Trainer, compare

FAMILIES = {"flux": "x0 = x_t - t·v", "z_image": "x0 = x_t + t·v", "qwen_image": "x0 = x_t - t·v", "sdxl": "x0 = (x_t - q·eps)/p"}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss(family: str, face: Path, tmp_path: Path):
    trainer = Trainer("diffusion-pipe")
    reports = []
    for given in ([], [face]):
        out = tmp_path / f"{len(given)}.json"
        trainer.call(HERE / "steps_diffusion_pipe.py", out, trainer.folder, family, ASSETS / "vae", *given)
        reports.append(json.loads(out.read_text()))
    compare("diffusion-pipe", f"{family}: prepare_inputs to loss_fn", *reports, FAMILIES[family])
    assert all(call["shape"][0] == 2 for call in reports[1]["calls"])
