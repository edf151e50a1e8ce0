"""A real ComfyUI in this process: its nodes, its execution engine, its trainer, on the CPU."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NODES = Path(__file__).resolve().parents[1]
ASSETS = NODES.parents[1] / "examples/demo_assets"


class Page:
    """What the executor believes to be the server."""

    client_id = None
    last_node_id = None
    last_prompt_id = None

    def send_sync(self, *_: Any) -> None:
        """Nobody listens."""


@dataclass
class Run:
    """What a queue entry came to: values that `Keep` nodes caught, or the message of the node that failed."""

    kept: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, Any] | None = None
    interrupted: bool = False


class ComfyUI:
    """The engine, with a queue of one."""

    def __init__(self, folder: Path) -> None:
        import execution
        import folder_paths
        import nodes

        self.nodes, self.folder = nodes.NODE_CLASS_MAPPINGS, folder
        folder_paths.models_dir = str(folder / "models")
        folder_paths.set_output_directory(str(folder / "output"))
        folder_paths.set_temp_directory(str(folder / "temp"))
        for pack in (folder / "models/insightface/models/drawn", folder / "elsewhere/faces/far"):
            pack.mkdir(parents=True)
            (pack / "det_500m.onnx").symlink_to(ASSETS / "detector.onnx")
            (pack / "w600k_mbf.onnx").symlink_to(ASSETS / "judge.onnx")
        # As ComfyUI does with its extra_model_paths.yaml, before it loads the nodes.
        (folder / "extra_model_paths.yaml").write_text("mine:\n  base_path: elsewhere\n  insightface: faces\n")
        at = importlib.util.spec_from_file_location("extra_config", Path(nodes.__file__).parent / "utils/extra_config.py")
        assert at is not None and at.loader is not None
        paths = importlib.util.module_from_spec(at)
        at.loader.exec_module(paths)
        paths.load_extra_path_config(str(folder / "extra_model_paths.yaml"))
        (folder / "models/insightface/recogniser.safetensors").symlink_to(ASSETS / "recogniser.safetensors")
        extras = Path(nodes.__file__).parent / "comfy_extras"
        for path, parent in (
            *((extras / f"nodes_{name}.py", "comfy_extras") for name in ("train", "dataset", "images", "mask", "rtdetr")),
            (NODES, "custom_nodes"),
        ):
            assert asyncio.run(nodes.load_custom_node(str(path), module_parent=parent)), f"{path} did not load"
        import stand_ins

        self.nodes.update(stand_ins.NODE_CLASS_MAPPINGS)
        self._stand_ins, self._execution = stand_ins, execution
        # The newer executor wants the bounds of its caches.
        bounds = {"cache_args": {"lru": 0, "ram": 0, "ram_inactive": 0}} if _takes(execution.PromptExecutor, "cache_args") else {}
        self._executor = execution.PromptExecutor(Page(), **bounds)
        self._count = 0

    @property
    def newer(self) -> bool:
        """Whether the trainer is the newer one, with buckets."""
        return "bucket_mode" in self.inputs("TrainLoraNode")

    def module(self, name: str) -> Any:
        """A module of the nodes as ComfyUI has loaded them."""
        return sys.modules[self.nodes["FacegradFaceIdentityLoss"].__module__.rsplit(".", 1)[0] + "." + name]

    def options(self, node: str, widget: str) -> list[str]:
        """What a widget lets a user choose, now."""
        self.nodes[node].GET_SCHEMA()
        return list(self.inputs(node)[widget][1]["options"])

    def inputs(self, node: str) -> dict[str, Any]:
        """The required inputs of a node as the page sees them."""
        return dict(self.nodes[node].INPUT_TYPES()["required"])

    def run(self, prompt: dict[str, Any]) -> Run:
        """Queues a graph in the API's form and waits for it."""
        self._count += 1
        self._stand_ins.KEPT.clear()
        valid = asyncio.run(self._execution.validate_prompt(str(self._count), prompt, None))
        assert valid[0], (valid[1], valid[3])
        self._executor.execute(prompt, str(self._count), {}, valid[2])
        run = Run(dict(self._stand_ins.KEPT))
        for event, data in self._executor.status_messages:
            run.failed = data if event == "execution_error" else run.failed
            run.interrupted = run.interrupted or event == "execution_interrupted"
        return run


def _takes(function: Any, name: str) -> bool:
    return name in inspect.signature(function).parameters


def start(folder: Path) -> ComfyUI:
    """ComfyUI from the checkout that COMFYUI_DIR names; skips where it names none."""
    checkout = os.environ.get("COMFYUI_DIR")
    if not checkout:
        pytest.skip("COMFYUI_DIR is not set: it names a checkout of ComfyUI, whose requirements this Python must have")
    assert (Path(checkout) / "nodes.py").is_file(), f"COMFYUI_DIR: {checkout} is not a checkout of ComfyUI"
    missing = [name for name in ("aiohttp", "einops", "torchsde", "transformers") if importlib.util.find_spec(name) is None]
    assert not missing, f"COMFYUI_DIR is set, but this Python lacks ComfyUI's requirements: {', '.join(missing)}"
    return ComfyUI(folder)
