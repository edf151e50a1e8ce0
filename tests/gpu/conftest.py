"""The device that the suite runs on, and what is left out where it is no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default=os.environ.get("FACEGRAD_TEST_DEVICE", "cpu"), help="cpu, cuda or cuda:N")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu(devices=1): needs so many GPUs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = torch.cuda.device_count() if config.getoption("device").startswith("cuda") else 0
    for item in items:
        mark = item.get_closest_marker("gpu")
        wanted = (mark.kwargs.get("devices", 1)) if mark else 0
        if wanted > here:
            item.add_marker(pytest.mark.skip(reason="needs a GPU" if wanted == 1 else f"needs {wanted} GPUs"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    wanted = torch.device(request.config.getoption("device"))
    if wanted.type == "cuda":
        assert torch.cuda.is_available(), "--device cuda: torch sees no GPU; `nvidia-smi` says whether the driver does"
        wanted = torch.device("cuda", wanted.index or 0)
    return wanted


@pytest.fixture(autouse=True)
def untouched(device: torch.device) -> Iterator[None]:
    """Numbers in whole float32, and after every test the host's device, stream and flags as they were."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before = state(device)
    yield
    after = state(device)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    assert after == before, "a call changed the host's state"


def state(device: torch.device) -> tuple[object, ...]:
    """What is the host's on this thread and in this process."""
    flags = (
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.autograd.is_multithreading_enabled() if hasattr(torch.autograd, "is_multithreading_enabled") else None,
    )  # fmt: skip
    if device.type != "cuda":
        return flags
    return (*flags, torch.cuda.current_device(), torch.cuda.current_stream(device).cuda_stream)
