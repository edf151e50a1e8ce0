"""Finds the demo's three models: the shipped ones, or those of an InsightFace pack the user already has."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

DETECTORS = ("det_10g.onnx", "scrfd*.onnx", "det_*.onnx")
RECOGNISERS = ("w600k_r50.onnx", "glintr100.onnx", "w600k_*.onnx", "*mobilefacenet*.onnx", "*arcface*.onnx", "*r50*.onnx", "*r100*.onnx")


@dataclass
class Models:
    """`independent` tells whether the judge is another network than the recogniser."""

    detector: Path
    recogniser: Path
    judge: Path
    independent: bool
    det_sizes: list[int]


def _matches(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        found += [p for p in sorted(folder.glob(pattern)) if p not in found]
    return found


def find_models(folder: Path | None, assets: Path) -> Models:
    """The models in `folder` (or a folder inside it, as antelopev2's archive nests one); without it the shipped ones."""
    if folder is None:
        models = Models(assets / "detector.onnx", assets / "recogniser.safetensors", assets / "judge.onnx", True, [192])
        for path in (models.detector, models.recogniser, models.judge):
            if not path.is_file():
                sys.exit(f"{path} is missing; restore it with `git checkout -- {assets}`.")
        return models
    if not folder.is_dir():
        sys.exit(f"--models {folder} is not a folder. It should be an InsightFace pack, e.g. ~/.insightface/models/buffalo_l.")
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        detectors, recognisers = _matches(place, DETECTORS), _matches(place, RECOGNISERS)
        recognisers = [p for p in recognisers if p not in detectors]
        if detectors and recognisers:
            judge = recognisers[1] if len(recognisers) > 1 else recognisers[0]
            return Models(detectors[0], recognisers[0], judge, len(recognisers) > 1, [128, 640])
    sys.exit(f"{folder} holds no pair of a detector ({', '.join(DETECTORS)}) and a recogniser ({', '.join(RECOGNISERS[:3])}).")
