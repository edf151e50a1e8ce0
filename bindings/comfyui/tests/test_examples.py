"""The example graphs in a real ComfyUI: as the page turns them into prompts, and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
#: Those that need no checkpoint.
AT_ONCE = ["crop_and_mask_faces", "face_similarity", "sort_a_folder"]


def prompt(comfy, page: dict[str, Any]) -> dict[str, Any]:
    """A graph of the page in the API's form, as the page's own code makes it."""
    sources = {link[0]: [str(link[1]), link[2]] for link in page["links"]}
    made = {}
    for node in page["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        known = comfy.nodes[node["type"]].INPUT_TYPES()
        specs = {**known["required"], **known.get("optional", {})}
        assert [put["name"] for put in node["inputs"]] == list(specs), node["type"]
        for put in node["inputs"]:
            if "widget" in put:
                inputs[put["name"]] = next(values)
                if put["name"] in ("seed", "noise_seed"):
                    next(values)  # The page's own "control after generate".
            if put["link"] is not None:
                inputs[put["name"]] = sources[put["link"]]
        assert next(values, None) is None, f"{node['type']} has more widgets_values than widgets"
        made[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return made


def test_the_examples_are_those_that_are_tested():
    assert NAMES == ["crop_and_mask_faces", "face_similarity", "gradient_chain", "sort_a_folder", "train_lora_with_identity_loss"]
    assert all((FOLDER / f"{name}.jpg").is_file() for name in NAMES), "every example has its picture"


@pytest.mark.parametrize("name", NAMES)
def test_examples_open_on_the_canvas_and_say_which_pack_they_need(name):
    page = json.loads((FOLDER / f"{name}.json").read_text())
    assert page["version"] == 0.4 and page["nodes"] and page["links"]
    for node in page["nodes"]:
        if node["type"].startswith("Facegrad"):
            assert node["properties"]["cnr_id"] == "facegrad", node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap(name):
    """Even where the page's newer node style makes every node a third higher."""
    nodes = json.loads((FOLDER / f"{name}.json").read_text())["nodes"]
    boxes = [(node["id"], *node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    for at, (one, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[at + 1 :]:
            apart = right <= left2 or right2 <= left or bottom + 40 <= top2 or bottom2 + 40 <= top
            assert apart, (one, other)


@pytest.mark.parametrize("name", NAMES)
def test_examples_fit_the_nodes(comfy, name):
    """Inputs, widgets and links are those of the nodes as they are."""
    page = json.loads((FOLDER / f"{name}.json").read_text())
    types = {node["id"]: node for node in page["nodes"]}
    for node in prompt(comfy, page).values():
        known = comfy.nodes[node["class_type"]].INPUT_TYPES()
        specs = {**known["required"], **known.get("optional", {})}
        assert set(known["required"]) <= node["inputs"].keys(), node
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                source = comfy.nodes[types[int(value[0])]["type"]]
                assert source.RETURN_TYPES[value[1]] in str(specs[key][0]).split(","), (node["class_type"], key)
            elif specs[key][0] == "COMBO" and key != "ckpt_name":
                assert value in specs[key][1]["options"], (node["class_type"], key, value)


@pytest.mark.parametrize("name", AT_ONCE)
def test_examples_run_at_once(comfy, name):
    torch.manual_seed(1)
    done = comfy.run(prompt(comfy, json.loads((FOLDER / f"{name}.json").read_text())))
    assert done.failed is None, done.failed
