"""The example graphs in a real ComfyUI: as the page turns them into prompts, and run."""

from __future__ import annotations

import json
import shutil
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


def test_the_chain_runs_as_it_is_with_taef2_on_photographs(comfy, data):
    """The example's own widgets; only the pictures, the face models and the VAE are a user's."""
    import folder_paths

    approx, faces, photos = (comfy.folder / part for part in ("models/vae_approx", "models/insightface", "input"))
    for folder in (approx, faces, photos):
        folder.mkdir(parents=True, exist_ok=True)
    for part in ("encoder", "decoder"):
        (approx / f"taef2_{part}.pth").symlink_to(data / f"models/taef2_{part}.pth")
    for model in ("det_500m.onnx", "foamliu_mobilefacenet_128d_112.onnx"):
        (faces / model).symlink_to(data / "models" / model)
    for photo in ("single_astronaut.png", "C_obama_1.jpg"):
        shutil.copy(data / "photos" / photo, photos)  # ComfyUI refuses links out of its input folder.
    folder_paths.add_model_folder_path("vae_approx", str(approx))
    folder_paths.set_input_directory(str(photos))
    page = json.loads((FOLDER / "gradient_chain.json").read_text())
    graph = prompt(comfy, page)
    types = {key: node["class_type"] for key, node in graph.items()}
    one, other = (key for key, kind in types.items() if kind == "FacegradExamplePictures")
    graph[one] = {"class_type": "LoadImage", "inputs": {"image": "single_astronaut.png"}}
    graph[other] = {"class_type": "LoadImage", "inputs": {"image": "C_obama_1.jpg"}}
    (checkpoint,) = (key for key, kind in types.items() if kind == "CheckpointLoaderSimple")
    graph[checkpoint] = {"class_type": "VAELoader", "inputs": {"vae_name": "taef2"}}
    (pack,) = (key for key, kind in types.items() if kind == "FacegradLoadFacePack")
    graph[pack] = {
        "class_type": "FacegradLoadFaceDetector",
        "inputs": {"file": "det_500m.onnx", "det_sizes": "640, 320", "threshold": 0.5, "device": "auto"},
    }
    graph["recogniser"] = {
        "class_type": "FacegradLoadFaceRecogniser",
        "inputs": {"file": "foamliu_mobilefacenet_128d_112.onnx", "dtype": "f32", "device": "auto"},
    }
    for node in graph.values():
        for name, value in node["inputs"].items():
            if value == [checkpoint, 2]:
                node["inputs"][name] = [checkpoint, 0]
            elif value == [pack, 1]:
                node["inputs"][name] = ["recogniser", 0]
    by_type = {kind: key for key, kind in types.items()}
    wanted = {
        "decoded": ("FacegradDecodeOnTape", 1), "reference": ("FacegradFaceReference", 0), "gradient": ("FacegradGradientOfLoss", 0),
        "similarity": ("FacegradFaceLossOnTape", 2), "latent": ("VAEEncode", 0),
    }  # fmt: skip
    for name, (kind, output) in wanted.items():
        graph[f"keep {name}"] = {"class_type": "Keep", "inputs": {"value": [by_type[kind], output], "name": name}}
    graph["own"] = {"class_type": "VAEDecode", "inputs": {"samples": [by_type["VAEEncode"], 0], "vae": [checkpoint, 0]}}
    graph["judge"] = {
        "class_type": "FacegradFaceSimilarity",
        "inputs": {
            "image": ["own", 0],
            "reference": [by_type["FacegradFaceReference"], 0],
            "detector": [pack, 0],
            "recogniser": ["recogniser", 0],
        },
    }
    graph["found"] = {"class_type": "FacegradDetectFaces", "inputs": {"image": ["own", 0], "detector": [pack, 0]}}
    for name, key, output in (("own", "own", 0), ("judged", "judge", 0), ("faces", "found", 0)):
        graph[f"keep {name}"] = {"class_type": "Keep", "inputs": {"value": [key, output], "name": name}}
    done = comfy.run(graph)
    assert done.failed is None, done.failed
    kept = done.kept
    assert kept["latent"]["samples"].shape == (1, 128, 32, 32), "FLUX.2's packed latents"
    assert (kept["decoded"] - kept["own"]).abs().max() < 2e-3, "ComfyUI decodes the same picture"
    assert kept["similarity"] == pytest.approx(kept["judged"], abs=0.01)
    gradient = kept["gradient"]["samples"]
    assert gradient.shape == kept["latent"]["samples"].shape and gradient.isfinite().all()
    left, top, right, bottom = (round(side / 16) for side in kept["faces"].largest()[0].bbox)
    strength = gradient[0].norm(dim=0)
    inside = strength[top:bottom, left:right]
    assert inside.mean() > 5 * (strength.sum() - inside.sum()) / (strength.numel() - inside.numel()), "it acts on the face"
