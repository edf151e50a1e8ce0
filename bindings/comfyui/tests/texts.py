"""Writes locales/en from the nodes' schemas: `python bindings/comfyui/tests/texts.py`. The page takes a language's texts from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[1] / "locales"
#: Marks that have a meaning of their own in the page's messages (vue-i18n), and how they are written as themselves.
SPECIAL = {mark: "{'" + mark + "'}" for mark in "{}@|"}


def escaped(text: str) -> str:
    """A text as the page's message."""
    return "".join(SPECIAL.get(mark, mark) for mark in text)


def english(schemas: list[Any]) -> dict[str, Any]:
    """`nodeDefs.json` of the schemas' own texts."""
    return {
        schema.node_id: {
            "display_name": escaped(schema.display_name),
            "description": escaped(schema.description),
            "inputs": {put.id: {"tooltip": escaped(put.tooltip)} for put in schema.inputs},
            "outputs": {str(at): {"tooltip": escaped(put.tooltip)} for at, put in enumerate(schema.outputs)},
        }
        for schema in schemas
    }


def written(texts: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(texts, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    import conftest  # noqa: F401 - makes the nodes importable

    import facegrad_nodes

    (LOCALES / "en").mkdir(exist_ok=True)
    (LOCALES / "en/nodeDefs.json").write_text(written(english([node.GET_SCHEMA() for node in facegrad_nodes.NODES])))
