"""Fixtures of the Python suite: what `tests/fixtures/make.py` wrote, and real data where it is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import facegrad

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = Path(os.environ.get("FACEGRAD_FIXTURES", ROOT / "target/fixtures"))
DATA = Path(os.environ.get("FACEGRAD_TEST_DATA", ROOT / "../shared/data"))
sys.path.insert(0, str(ROOT / "tests"))  # compare.py


@pytest.fixture(scope="session")
def chain() -> dict[str, torch.Tensor]:
    path = FIXTURES / "chain/chain.safetensors"
    assert path.exists(), f"{path} is missing; run `make fixtures`"
    return load_file(path)


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        assert not os.environ.get("CI"), f"{DATA} is missing: set FACEGRAD_TEST_DATA"
        pytest.skip(f"{DATA} is missing: set FACEGRAD_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def recogniser() -> facegrad.Recogniser:
    return facegrad.Recogniser(FIXTURES / "nets/small.safetensors")


@pytest.fixture()
def loss(recogniser: facegrad.Recogniser) -> facegrad.FaceLoss:
    return facegrad.FaceLoss({"face_align_mode": "kps"}, recogniser=recogniser)


def arguments(chain: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything of the fixture's batch but the images."""
    return {
        "references": chain["references"], "landmarks": chain["landmarks"],
        "reference_landmarks": chain["reference_landmarks"], "sample_weights": chain["weights"],
    }  # fmt: skip
