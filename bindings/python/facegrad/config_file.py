"""A configuration in a file, YAML or JSON."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Bytes of a file that can be a configuration.
LARGEST = 1 << 20


def read_mapping(path: str | bytes | os.PathLike[Any]) -> Mapping[str, Any]:
    """The keys of a file and their values. A file whose name ends in ``.json`` is JSON, every other one YAML.

    Raises:
        FileNotFoundError, PermissionError: there is no such file, or it may not be read
        ValueError: the file is no regular file, larger than 1 MiB, no text in UTF-8, not what its name says, or no mapping
        ImportError: the file is YAML, and PyYAML is missing
    """
    file = Path(os.fsdecode(path))
    # A pipe would be waited for, a device has no end.
    about = os.stat(file)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{file}: expected a file, got a folder, a pipe or a device")
    if about.st_size > LARGEST:
        raise ValueError(f"{file}: {about.st_size} bytes; a configuration has at most {LARGEST}")
    kind = "JSON" if file.suffix.lower() == ".json" else "YAML"
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if kind == "JSON" else _yaml(file, text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected a text in UTF-8; save it again in that encoding: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{file}: expected keys and values, got too many brackets inside each other") from error
    except ValueError as error:
        raise ValueError(f"{file}: expected {kind}, got text that breaks at: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: expected a mapping of keys, got {'an empty file' if content is None else type(content).__name__}")
    return content


def _yaml(file: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"reading {file} needs PyYAML: pip install pyyaml, or give a JSON file") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
