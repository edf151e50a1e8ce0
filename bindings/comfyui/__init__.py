"""ComfyUI's entry: the nodes of `facegrad_nodes`."""

import sys
from pathlib import Path

# In a checkout of facegrad the Python package lies beside this folder; elsewhere it is installed by pip.
_package = Path(__file__).resolve().parents[1] / "python"
if (_package / "facegrad").is_dir() and str(_package) not in sys.path:
    sys.path.append(str(_package))

from .facegrad_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS  # noqa: E402

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
