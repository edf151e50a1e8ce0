"""The pictures that come with the nodes: drawn people, so that every example graph runs at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from PIL import Image

from .draw import from_pil
from .loaders import DRAWN_FOLDER
from .sockets import CATEGORY

PEOPLE = ["person 1", "person 2", "person 3", "everybody"]


def files(who: str) -> list[Path]:
    """The pictures of a person, or all."""
    number = "*" if who == PEOPLE[-1] else who.rsplit(" ", 1)[1]
    return sorted(DRAWN_FOLDER.glob(f"person_{number}_*.png"))


class ExamplePictures(io.ComfyNode):
    """Drawn people."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradExamplePictures",
            display_name="Example Pictures (drawn people)",
            category=CATEGORY,
            description="Drawn people, for trying the nodes without pictures of one's own. The face models for them are in Load Face Pack as drawn (demo); models for photographs do not know drawings.",
            search_aliases=["arcface", "demo", "sample pictures", "test image", "portrait"],
            inputs=[io.Combo.Input("who", options=PEOPLE, default=PEOPLE[0], tooltip="Whose pictures: three of each person.")],
            outputs=[io.Image.Output("images", tooltip="The pictures as one batch.")],
        )

    @classmethod
    def execute(cls, who: str) -> Any:
        return io.NodeOutput(torch.cat([from_pil(Image.open(path)) for path in files(who)]))
