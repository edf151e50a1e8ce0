"""The licences of the crates that are linked into the library, as one text."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def text(root: Path, target: str) -> str:
    """Every crate that the library is linked from, with its licence and the licence files that it brings.

    Args:
        root: the folder of Cargo.toml
        target: the platform, such as ``x86_64-unknown-linux-gnu``
    """
    cargo = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", target]
    metadata = json.loads(subprocess.check_output(cargo, cwd=root))
    packages = {package["id"]: package for package in metadata["packages"]}
    seen: dict[str, str] = {}
    blocks = ["This library is linked from the crates below. libfacegrad_torch.so is compiled from parts of torch-sys's sources."]
    for package in sorted(linked(metadata), key=lambda id: packages[id]["name"]):
        found = packages[package]
        folder = Path(found["manifest_path"]).parent
        files = sorted(
            path
            for path in folder.iterdir()
            if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE"))
        )
        head = f"{found['name']} {found['version']}, {found['license']}, {found['repository'] or found['homepage'] or 'crates.io'}"
        texts = []
        for path in files:
            text = path.read_text(errors="replace").strip()
            texts.append(f"{path.name}: as that of {seen[text]} above" if text in seen else text)
            seen.setdefault(text, found["name"])
        blocks.append("\n\n".join([f"{'=' * 78}\n{head}", *texts]))
    return "\n\n".join(blocks) + "\n"


def linked(metadata: dict) -> set[str]:
    """The ids of the crates that are reached through normal dependencies, without the project's own."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    own = metadata["resolve"]["root"]
    reached, waiting = set(), [own]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in reached:
                reached.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    return reached - {own}
