"""As much of ComfyUI's V3 schema as the nodes use, for tests where there is no ComfyUI: it holds what a schema says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Input(SimpleNamespace):
    def __init__(self, id: str, *_: Any, **given: Any) -> None:
        super().__init__(id=id, **{"tooltip": None, "optional": False, "options": None, "default": None} | given)


class Output(SimpleNamespace):
    def __init__(self, id: str, display_name: str | None = None, tooltip: str | None = None, is_output_list: bool = False) -> None:
        super().__init__(id=id, display_name=display_name or id, tooltip=tooltip, is_output_list=is_output_list)


def custom(kind: str) -> Any:
    """A socket type."""
    return type(
        kind,
        (),
        {"io_type": kind, "Input": type("Input", (Input,), {"io_type": kind}), "Output": type("Output", (Output,), {"io_type": kind})},
    )


class Schema(SimpleNamespace):
    def __init__(self, **given: Any) -> None:
        super().__init__(**{"is_input_list": False, "is_output_node": False, "search_aliases": []} | given)


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyNode:
    @classmethod
    def GET_SCHEMA(cls) -> Any:
        return cls.define_schema()  # type: ignore[attr-defined]


class ComfyExtension:
    """What an entry point returns."""


_KINDS = ("Image", "Mask", "Latent", "Model", "Vae", "BoundingBox", "Combo", "Float", "Int", "String", "Boolean")
io = SimpleNamespace(
    Custom=custom,
    MultiType=custom("MULTI"),
    Schema=Schema,
    NodeOutput=NodeOutput,
    ComfyNode=ComfyNode,
    **{kind: custom(kind.upper()) for kind in _KINDS},
)
