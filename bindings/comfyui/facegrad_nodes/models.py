"""The face models on ComfyUI's card: loaded when they are used, dropped when ComfyUI wants the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

import facegrad

from . import host

Network = TypeVar("Network")
#: The inputs at which the nodes take a network, by InsightFace's names of the tasks.
SOCKETS = {"detection": "detector", "recognition": "recogniser"}


class FaceModel(Generic[Network]):
    """A model that ComfyUI's memory management may unload at any time between two uses.

    The library's weights cannot be moved, so an unloaded model is made again at the next use.

    Args:
        make: makes the network on its device
        device: where it computes
        size: about how many bytes it takes
    """

    def __init__(self, make: Callable[[], Network], device: torch.device, size: int) -> None:
        self.device, self.size, self._make = device, size, make
        self._network: Network | None = None
        self._patcher = host.unloadable(self)

    def get(self) -> Network:
        """The network, in memory. ComfyUI makes room for it first, unless a training holds the card."""
        if self._patcher is not None and not host.in_training():
            host.load(self._patcher)
        return self.load()

    def load(self) -> Network:
        """The network, in memory, without asking ComfyUI for room."""
        if self._network is None:
            self._network = self._make()
        return self._network

    def drop(self) -> None:
        """Lets go of the memory. A loss that was made with the network keeps it until it is gone itself."""
        self._network = None

    @property
    def loaded(self) -> bool:
        """Whether it is in memory now."""
        return self._network is not None


def from_file(path: Path, device: torch.device, make: Callable[[], Network]) -> FaceModel[Network]:
    """A model from a file, loaded at once, so that the node that loads it refuses a wrong file."""
    model = FaceModel(make, device, path.stat().st_size)
    model.get()
    return model


def detector(value: Any) -> facegrad.Detector:
    """The detector behind a link: this pack's own, or the one whose file another pack's InsightFace object names."""
    network: facegrad.Detector = _network(value, facegrad.Detector, "detection")
    return network


def recogniser(value: Any) -> facegrad.Recogniser:
    """The recogniser behind a link; as `detector`."""
    network: facegrad.Recogniser = _network(value, facegrad.Recogniser, "recognition")
    return network


def release(value: Any, task: str) -> None:
    """Drops the network behind a link; it is read again at its next use."""
    if isinstance(value, FaceModel):
        value.drop()
    elif not isinstance(value, (facegrad.Detector, facegrad.Recogniser)):
        _from_insightface(value, object, task).drop()


#: What was made from the objects of other packs, by task, file and device.
_foreign: dict[tuple[str, str, str], FaceModel[Any]] = {}


def _network(value: Any, kind: type[Any], task: str) -> Any:
    if isinstance(value, kind):
        return value
    model = value if isinstance(value, FaceModel) else _from_insightface(value, kind, task)
    return model.get()


def _from_insightface(value: Any, kind: type[Any], task: str) -> FaceModel[Any]:
    """InsightFace's FaceAnalysis holds `models`, by task, each with the `model_file` that it was loaded from."""
    part = (getattr(value, "models", None) or {}).get(task)
    file = getattr(part, "model_file", None)
    if not file or not Path(file).is_file():
        raise ValueError(
            f"{SOCKETS[task]}: the object on this link ({type(value).__name__}) names no {task} model in a file that can be read; use Load Face Pack instead"
        )
    where = host.device("auto")
    key = (task, str(file), str(where))
    if key not in _foreign:
        sizes: dict[str, Any] = {}
        if task == "detection":
            width, height = getattr(part, "input_size", None) or (640, 640)
            sizes = {"det_sizes": [(int(width), int(height))]}
        _foreign[key] = from_file(Path(file), where, lambda: kind(file, device=where, **sizes))
    return _foreign[key]
