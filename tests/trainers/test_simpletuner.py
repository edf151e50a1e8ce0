"""bghira/SimpleTuner: the steps of its model classes, called as its trainer calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ASSETS, HERE, Trainer, compare

#: SimpleTuner turns what Z-Image and Lumina 2 predict.
FAMILIES = ("flux", "z_image", "lumina2")


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    found = Trainer("SimpleTuner")
    found.path = [found.folder]
    return found


@pytest.mark.parametrize("options", ["", "bf16", "rollouts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_step(trainer: Trainer, family: str, options: str, face: Path, tmp_path: Path):
    section = json.loads(face.read_text())["face_loss"] | ({"rollouts": {"steps": 2, "levels": [0.3, 0.3], "min_score": 0.0}} if options == "rollouts" else {})
    (tmp_path / "face.json").write_text(json.dumps({"face_loss": section}))
    reports = []
    for given in [[], [tmp_path / "face.json"]]:
        out = tmp_path / f"{len(given)}.json"
        trainer.call(HERE / "steps_simpletuner.py", out, family, ASSETS / "vae", *given, *(["bf16"] if options == "bf16" else []))
        reports.append(json.loads(out.read_text()))
    compare("SimpleTuner", f"{family}: model_predict to auxiliary_loss{', ' if options else ''}{options}", *reports, "x0 = x_t - t·v", options == "bf16")
    if options == "rollouts":
        assert all(call["logs"]["rollout/predictions_without_gradient"] == 2 for call in reports[1]["calls"])
