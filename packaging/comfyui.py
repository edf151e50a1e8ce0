#!/usr/bin/env python3
"""Makes dist/comfyui, the folder that `comfy node publish` publishes to ComfyUI's registry: the ComfyUI nodes without their tests.

It refuses while a field is missing that the registry needs and that nobody but a maintainer can know.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "bindings/comfyui"
TARGET = ROOT / "dist/comfyui"
#: The registry shows an icon by its address, not from the folder.
ICON = 'Icon = "icon.png"'


def missing(text: str, version: str) -> list[str]:
    """What keeps a pack with this pyproject.toml from being published, as instructions.

    Args:
        version: of the Python package that the nodes need
    """
    project = tomllib.loads(text)["project"]
    found = []
    address = project.get("urls", {}).get("Repository", "")
    if not address.startswith("https://"):
        found.append(f"project.urls.Repository: expected the address of the public repository, https://…, got {address!r}; fill it in")
    if project["version"] != version:
        found.append(f"project.version: expected {version}, the version of the Python package, got {project['version']}; set it")
    return found


def make(source: Path, target: Path, version: str) -> None:
    """Copies the nodes to `target`, with the icon's address.

    Raises:
        SystemExit: something is missing
    """
    text = (source / "pyproject.toml").read_text()
    problems = missing(text, version)
    if problems:
        sys.exit(f"{source / 'pyproject.toml'} cannot be published:\n" + "\n".join(problems))
    address = tomllib.loads(text)["project"]["urls"]["Repository"].rstrip("/")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("tests", "__pycache__", ".*"))
    (target / "pyproject.toml").write_text(text.replace(ICON, f'Icon = "{address}/raw/v{version}/bindings/comfyui/icon.png"'))


if __name__ == "__main__":
    make(SOURCE, TARGET, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    print(f"{TARGET.relative_to(ROOT)} is ready: run `comfy node publish` there")
