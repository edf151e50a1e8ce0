"""All that is taken from ComfyUI. Everything else in this package works without it.

Imports happen when they are needed: schemas and mathematics are tested where there is no ComfyUI.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("facegrad")

#: Under this key the trainer's wrappers lie on a model.
KEY = "facegrad"


def present() -> bool:
    """Whether this process runs inside ComfyUI."""
    return importlib.util.find_spec("folder_paths") is not None


def _module(name: str) -> Any:
    return importlib.import_module(name)


def add_folders() -> None:
    """Makes `insightface` and `face_references` known, so that `extra_model_paths.yaml` can name more of them."""
    if not present():
        return
    paths = _module("folder_paths")
    paths.add_model_folder_path("insightface", str(Path(paths.models_dir) / "insightface"))
    paths.add_model_folder_path("face_references", str(Path(paths.models_dir) / "face_references"))
    paths.add_model_folder_path("face_references", str(references_folder()))


def models_folder(kind: str) -> Path:
    """ComfyUI's own folder of one kind of model."""
    return Path(_module("folder_paths").models_dir) / kind


def roots(kind: str) -> list[Path]:
    """The folders of one kind of model; none outside ComfyUI."""
    if not present():
        return []
    paths = _module("folder_paths")
    known = paths.folder_names_and_paths.get(kind)
    return [Path(folder) for folder in known[0]] if known else []


def files(kind: str, suffixes: Sequence[str]) -> list[str]:
    """Files of one kind of model, named relative to their folder, sorted."""
    found: set[str] = set()
    for root in roots(kind):
        seen = set()
        for folder, below, names in os.walk(root, followlinks=True):
            # A link to a folder above would never end.
            real = os.path.realpath(folder)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            found.update((Path(folder) / name).relative_to(root).as_posix() for name in names if Path(name).suffix.lower() in suffixes)
    return sorted(found)


def file(kind: str, name: str) -> Path:
    """The file that `files` gave this name."""
    for root in roots(kind):
        if (root / name).is_file():
            return root / name
    looked = ", ".join(map(str, roots(kind))) or "no folder"
    raise FileNotFoundError(f"file: {name} was not found below {looked}; put it there and refresh the node list (R)")


def references_folder() -> Path:
    """Where references are saved."""
    return Path(_module("folder_paths").get_output_directory()) / "face_references"


def device(choice: str) -> torch.device:
    """The device of a loader's choice; `auto` is the one that ComfyUI computes on.

    Raises:
        ValueError: there is no such device
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda is chosen, but torch sees no CUDA GPU here; choose auto or cpu")
    if choice != "auto":
        return torch.device(choice)
    if not present():
        return torch.device("cpu")
    own = torch.device(_module("comfy.model_management").get_torch_device())
    # The library computes on CUDA and on the CPU.
    return own if own.type == "cuda" else torch.device("cpu")


def interrupt_if_cancelled() -> None:
    """Raises where the user pressed cancel: the older trainer's loop does not look itself."""
    _module("comfy.model_management").throw_exception_if_processing_interrupted()


def progress_bar(total: int) -> Any:
    """ComfyUI's progress bar of the node that is running."""
    return _module("comfy.utils").ProgressBar(total)


def in_training() -> bool:
    """Whether ComfyUI's trainer holds the card."""
    return present() and bool(getattr(_module("comfy.model_management"), "in_training", False))


def unloadable(model: Any) -> Any:
    """What ComfyUI's memory management keeps in its list for a face model; None outside ComfyUI.

    Args:
        model: has `size` in bytes, `device`, `loaded`, `load()` and `drop()`
    """
    if not present():
        return None
    cpu, device, size, owner = torch.device("cpu"), model.device, model.size, weakref.ref(model)

    class Unloadable(_module("comfy.model_patcher").ModelPatcher):  # type: ignore[misc]
        """A ModelPatcher whose loading and unloading are the face model's."""

        def loaded_size(self) -> int:
            return size if self._loaded() else 0

        def model_dtype(self) -> None:
            return None

        def current_loaded_device(self) -> torch.device:
            return device if self._loaded() else cpu

        def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
            before = self.loaded_size()
            kept = owner()
            if kept is not None:
                kept.load()
            return self.loaded_size() - before

        def partially_unload(self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False) -> int:
            return 0  # All or nothing: ComfyUI goes on with `detach`.

        def detach(self, unpatch_all: bool = True) -> Any:
            kept = owner()
            if kept is not None:
                kept.drop()
            return self.model

        def _loaded(self) -> bool:
            kept = owner()
            return kept is not None and kept.loaded

    return Unloadable(torch.nn.Module(), device, cpu, size=size)


def load(patcher: Any) -> None:
    """Loads what `unloadable` made, after ComfyUI has made room for it."""
    _module("comfy.model_management").load_models_gpu([patcher])


def add_wrappers(model: Any, sampler_sample: Any, predict_noise: Any) -> Any:
    """A clone of a MODEL that carries the two wrappers."""
    kinds = _module("comfy.patcher_extension").WrappersMP
    if any(key == KEY for wrappers in model.wrappers.values() for key, kept in wrappers.items() if kept):
        raise ValueError(
            "the model already carries a Face Identity Loss. One is enough: connect the model from before the other node, "
            "or raise that node's weight; several persons go in as reference images, one for each training image"
        )
    clone = model.clone()
    clone.add_wrapper_with_key(kinds.SAMPLER_SAMPLE, KEY, sampler_sample)
    clone.add_wrapper_with_key(kinds.PREDICT_NOISE, KEY, predict_noise)
    return clone


def or_blocked(values: list[Any]) -> list[Any]:
    """A list for a list output. Where it is empty, what comes after the output does not run."""
    if values or not present():
        return values
    return [_module("comfy_execution.graph_utils").ExecutionBlocker(None)]


def running_node() -> str | None:
    """The id of the node that runs now."""
    context = _module("comfy_execution.utils").get_executing_context() if present() else None
    return context.node_id if context else None


def show_text(text: str, node: str | None) -> None:
    """Shows a line on a node while it runs; nothing where there is no page."""
    server = getattr(_module("server").PromptServer, "instance", None) if node else None
    if server is not None:
        server.send_progress_text(text, node)


def preview(images: torch.Tensor) -> list[dict[str, str]]:
    """Writes IMAGE `[B,H,W,3]` to ComfyUI's temporary folder and returns what the page needs to show it."""
    from .draw import to_pil

    paths = _module("folder_paths")
    folder, name, counter, subfolder, _ = paths.get_save_image_path(
        "facegrad", paths.get_temp_directory(), images.shape[2], images.shape[1]
    )
    shown = []
    for offset, image in enumerate(images):
        file_name = f"{name}_{counter + offset:05}_.png"
        to_pil(image).save(Path(folder) / file_name, compress_level=1)
        shown.append({"filename": file_name, "subfolder": subfolder, "type": "temp"})
    return shown
