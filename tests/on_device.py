"""The device that a suite runs on: `--device cpu` (the default), `cuda`, `cuda:N`, or `pretended` (pretended.py). A
conftest takes what it needs from here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pretended
import pytest
import torch
from compare import relative

#: The modules of bindings/python/tests whose tests say where their tensors and networks are.
BEHAVIOUR = (
    "test_evaluate",
    "test_faults",
    "test_graph",
    "test_host_vae",
    "test_loss",
    "test_models",
    "test_rollout",
    "test_sampler",
    "test_step",
    "test_surface",
    "test_trainer_adapters",
    "test_trainer_face",
    "test_trainer_rollouts",
    "test_trainers",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default=os.environ.get("FACEGRAD_TEST_DEVICE", "cpu"), help="cpu, cuda, cuda:N or pretended")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where tensors and networks belong. Numbers are whole float32 there."""
    asked = request.config.getoption("device")
    if asked == "pretended":
        with pretended.gpu() as gpu:
            yield gpu
        return
    wanted = torch.device(asked)
    if wanted.type == "cuda":
        assert torch.cuda.is_available(), "--device cuda: torch sees no GPU; `nvidia-smi` says whether the driver does"
        wanted = torch.device("cuda", wanted.index or 0)
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield wanted
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@dataclass(frozen=True)
class Bounds:
    """How far numbers may be off, relative to what was expected."""

    #: A loss, and a gradient as a whole, from PyTorch's in 64 bits on the CPU.
    value: float
    gradient: float
    #: What is computed twice. On a GPU sums of many threads come in another order every time.
    again: float

    def same(self, got: torch.Tensor, want: torch.Tensor) -> bool:
        """Whether both are one result, computed twice."""
        if self.again == 0 or not bool(want.any()):
            return torch.equal(got, want)
        return got.dtype == want.dtype and relative(got, want) <= self.again


@pytest.fixture(scope="session")
def bounds(request: pytest.FixtureRequest) -> Bounds:
    if request.config.getoption("device").startswith("cuda"):
        return Bounds(value=1e-4, gradient=1e-3, again=1e-4)
    return Bounds(value=1e-5, gradient=1e-5, again=0.0)
