"""Fixtures of the Python suite: what `tests/fixtures/make.py` wrote, and real data where it is there."""

from __future__ import annotations

import os
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import facegrad
from facegrad.images import read_image

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = Path(os.environ.get("FACEGRAD_FIXTURES", ROOT / "target/fixtures"))
DATA = Path(os.environ.get("FACEGRAD_TEST_DATA", ROOT / "../shared/data"))
sys.path.insert(0, str(ROOT / "tests"))  # compare.py
sys.path.insert(0, str(ROOT / "tests/fixtures"))
import iresnet


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


class Duck:
    """What the method asks of a VAE: `decode` and `config`, and nothing else. Its picture is the latents' own."""

    class config:
        scaling_factor = 0.5

    def decode(self, latents):
        return types.SimpleNamespace(sample=latents)


@pytest.fixture(scope="session")
def root(data, tmp_path_factory):
    """InsightFace's folder with a pack of one's own in it."""
    folder = tmp_path_factory.mktemp("insightface")
    pack = folder / "models/my_pack"
    pack.mkdir(parents=True)
    shutil.copy(data / "models/det_500m.onnx", pack / "a_finder.onnx")
    shutil.copy(data / "models/foamliu_mobilefacenet_128d_112.onnx", pack / "b_who.onnx")
    # The method's own detector and weights, by their usual names.
    shutil.copy(data / "models/det_500m.onnx", folder / "models/det_500m.onnx")
    return folder


@pytest.fixture(scope="session")
def photos(data):
    def photo(name):
        image = read_image(data / f"photos/{name}")[None].float() / 255
        return torch.nn.functional.interpolate(image, (256, 256), mode="area")

    return photo("C_obama_1.jpg"), photo("C_obama_2.jpg")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A small network with arcface_torch's names."""
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    net = iresnet.seeded((1, 2, 2, 1), (8, 12, 16, 24), 64)
    torch.save(net.state_dict(), path)
    return path, net.eval()
