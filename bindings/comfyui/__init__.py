"""ComfyUI's entry: the nodes of `facegrad_nodes`."""

import importlib.util
import sys
from pathlib import Path

# In a checkout of facegrad the Python package lies beside this folder; elsewhere it is installed by pip.
_package = Path(__file__).resolve().parents[1] / "python"
if (_package / "facegrad").is_dir() and str(_package) not in sys.path:
    sys.path.append(str(_package))

if importlib.util.find_spec("facegrad") is None:
    raise ImportError(
        "The Python package facegrad is missing. Install this pack's requirements with ComfyUI's own Python: "
        f"{sys.executable} -m pip install -r {Path(__file__).resolve().parent / 'requirements.txt'}"
    )

from .facegrad_nodes import comfy_entrypoint

#: Help pages, and what shows text and warnings on the nodes.
WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
