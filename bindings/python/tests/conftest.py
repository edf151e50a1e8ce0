"""Fixtures of the Python suite: the device, what `tests/fixtures/make.py` wrote, and real data where it is there.

`--device cuda` runs the modules of `BEHAVIOUR` on a GPU, `--device pretended` proves without one that they could. What a
test of theirs has on the CPU alone is marked `host`.
"""

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
sys.path.insert(0, str(ROOT / "tests"))  # compare.py, on_device.py
sys.path.insert(0, str(ROOT / "tests/fixtures"))
import iresnet
from on_device import BEHAVIOUR, bounds, device, pytest_addoption  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "host(reason): has nothing to do with the device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another device than the CPU only what runs there."""
    if config.getoption("device") == "cpu":
        return
    left_out = [item for item in items if item.path.stem not in BEHAVIOUR or item.get_closest_marker("host")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


#: The arguments of a small AutoencoderKL.
SMALL = dict(
    block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4, norm_num_groups=32, layers_per_block=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def somewhere(request: pytest.FixtureRequest) -> None:
    """The device is there before anything that a test makes."""
    if request.config.getoption("device") != "cpu":
        request.getfixturevalue("device")


@pytest.fixture(scope="session")
def chain(device: torch.device) -> dict[str, torch.Tensor]:  # noqa: F811
    path = FIXTURES / "chain/chain.safetensors"
    assert path.exists(), f"{path} is missing; run `make fixtures`"
    return {name: tensor.to(device) for name, tensor in load_file(path).items()}


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        assert not os.environ.get("CI"), f"{DATA} is missing: set FACEGRAD_TEST_DATA"
        pytest.skip(f"{DATA} is missing: set FACEGRAD_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def recogniser(device: torch.device) -> facegrad.Recogniser:  # noqa: F811
    return facegrad.Recogniser(FIXTURES / "nets/small.safetensors", device=device)


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
def photos(data, device):  # noqa: F811
    def photo(name):
        image = read_image(data / f"photos/{name}")[None].float() / 255
        return torch.nn.functional.interpolate(image, (256, 256), mode="area").to(device)

    return photo("C_obama_1.jpg"), photo("C_obama_2.jpg")


@pytest.fixture(scope="session")
def weights(tmp_path_factory, device):  # noqa: F811
    """The file of a small network with arcface_torch's names, and the network."""
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    net = iresnet.seeded((1, 2, 2, 1), (8, 12, 16, 24), 64)
    torch.save(net.state_dict(), path)
    return path, net.eval().to(device)
