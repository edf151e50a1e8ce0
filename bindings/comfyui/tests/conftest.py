"""Fixtures of the nodes' suite: the repository's own small networks and drawings, and a real ComfyUI where there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ASSETS = ROOT / "examples/demo_assets"
sys.path[:0] = [str(HERE), str(HERE.parent), str(ASSETS), str(ROOT / "bindings/python"), str(ROOT / "tests")]
#: The nodes' schema is ComfyUI's: the real one where there is a ComfyUI, else what `outside` has of it.
sys.path.insert(0, os.environ.get("COMFYUI_DIR") or str(HERE / "outside"))
if "COMFYUI_DIR" in os.environ:
    import comfy.cli_args

    comfy.cli_args.args.cpu = True

import faces as drawings

import facegrad

# Networks this small only wait for each other's threads.
torch.set_num_threads(1)
SIZE = 128


def portrait(person: int, look: int = 0, size: int = SIZE) -> torch.Tensor:
    """A drawn person as IMAGE `[1,H,W,3]`."""
    views = [drawings.Look(smile=0.5), drawings.Look(smile=-0.1, yaw=0.15), drawings.Look(smile=0.9, light=(0.4, -0.3))]
    return torch.from_numpy(drawings.portrait(person, size, views[look]).image.copy()).float()[None] / 255


def call(node: Any, **given: Any) -> tuple[Any, ...]:
    """A node's outputs. A node that takes lists gets a list of one where it is given something else."""
    if node.GET_SCHEMA().is_input_list:
        given = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return tuple(node.execute(**given).args)


@pytest.fixture(scope="session")
def detector() -> facegrad.Detector:
    return facegrad.Detector(ASSETS / "detector.onnx", det_sizes=[128])


@pytest.fixture(scope="session")
def recogniser() -> facegrad.Recogniser:
    return facegrad.Recogniser(ASSETS / "recogniser.safetensors")


@pytest.fixture(scope="session")
def data() -> Path:
    """Real models and photographs."""
    folder = Path(os.environ.get("FACEGRAD_TEST_DATA", ROOT / "../shared/data"))
    if not folder.is_dir():
        assert not os.environ.get("CI"), f"{folder} is missing: set FACEGRAD_TEST_DATA"
        pytest.skip(f"{folder} is missing: set FACEGRAD_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory):
    from inside import start

    return start(tmp_path_factory.mktemp("comfyui"))
