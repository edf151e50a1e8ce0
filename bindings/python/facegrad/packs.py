"""Finds models where InsightFace's users have them: ``~/.insightface/models/<pack>/*.onnx``."""

from __future__ import annotations

import os
from pathlib import Path

PACKS = ("buffalo_l", "antelopev2", "buffalo_m", "buffalo_s", "buffalo_sc")
DETECTORS = ("det_10g.onnx", "scrfd_10g_bnkps.onnx", "det_2.5g.onnx", "scrfd_2.5g_bnkps.onnx", "det_500m.onnx", "scrfd_500m_bnkps.onnx")
RECOGNISERS = {"r50": ("w600k_r50.onnx",), "r100": ("glintr100.onnx",), None: ("w600k_r50.onnx", "glintr100.onnx", "w600k_mbf.onnx")}


def folders(root: str | os.PathLike[str] | None) -> list[Path]:
    """The folders that may hold a pack's files; an antelopev2 that was unzipped into itself counts."""
    base = Path(root).expanduser() if root is not None else Path("~/.insightface").expanduser()
    bases = [base, base / "models"]
    packs = [b / pack for b in bases for pack in PACKS]
    return [*bases, *packs, *(pack / pack.name for pack in packs)]


def _find(root: str | os.PathLike[str] | None, names: tuple[str, ...], what: str, argument: str) -> Path:
    for folder in folders(root):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    base = folders(root)[0]
    raise FileNotFoundError(
        f"no {what} ({', '.join(names)}) in {base}, {base}/models or a pack below them; unzip InsightFace's buffalo_l.zip "
        f"(https://github.com/deepinsight/insightface/releases/tag/v0.7) there, or give `{argument}`"
    )


def find_detector(root: str | os.PathLike[str] | None = None) -> Path:
    """The detector of the first pack that has one."""
    return _find(root, DETECTORS, "face detector", "detector")


def find_recogniser(root: str | os.PathLike[str] | None = None, model_name: str | None = None) -> Path:
    """The recogniser of a pack: ``w600k_r50.onnx`` for r50, ``glintr100.onnx`` for r100."""
    names = RECOGNISERS.get(model_name)
    if names is None:
        raise FileNotFoundError(f"no pack holds a recogniser {model_name!r}; give `pretrained_path`")
    return _find(root, names, "recogniser", "pretrained_path")
