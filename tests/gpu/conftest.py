"""The device that the suite runs on, and what is left out where it is no GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from on_device import device, pytest_addoption  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu(devices=1): needs so many GPUs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = torch.cuda.device_count() if config.getoption("device").startswith("cuda") else 0
    for item in items:
        mark = item.get_closest_marker("gpu")
        wanted = (mark.kwargs.get("devices", 1)) if mark else 0
        if wanted > here:
            item.add_marker(pytest.mark.skip(reason="needs a GPU" if wanted == 1 else f"needs {wanted} GPUs"))


@pytest.fixture(autouse=True)
def untouched(device: torch.device) -> Iterator[None]:  # noqa: F811
    """After every test the host's device, stream and flags are as they were."""
    before = state(device)
    yield
    assert state(device) == before, "a call changed the host's state"


def state(device: torch.device) -> tuple[object, ...]:  # noqa: F811
    """What is the host's on this thread and in this process."""
    flags = (
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.autograd.is_multithreading_enabled() if hasattr(torch.autograd, "is_multithreading_enabled") else None,
    )  # fmt: skip
    if device.type != "cuda":
        return flags
    return (*flags, torch.cuda.current_device(), torch.cuda.current_stream(device).cuda_stream)
