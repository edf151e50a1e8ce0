"""Schemas, faces and references, without ComfyUI."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import call, portrait
from texts import SPECIAL, english, written

import facegrad_nodes
from facegrad_nodes import faces, people, references, similarity
from facegrad_nodes.loaders import sizes
from facegrad_nodes.sockets import Faces

FOLDER = Path(__file__).resolve().parents[1]
PERSON, OTHER = 5_000_000, 5_000_001


SCHEMAS = [node.GET_SCHEMA() for node in facegrad_nodes.NODES]


@pytest.mark.parametrize(("node", "schema"), list(zip(facegrad_nodes.NODES, SCHEMAS)), ids=[schema.node_id for schema in SCHEMAS])
def test_schema_and_function_agree(node, schema):
    parameters = inspect.signature(node.execute).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        assert sorted(parameters) == sorted(put.id for put in schema.inputs)
        for put in schema.inputs:
            assert (parameters[put.id].default is inspect.Parameter.empty) is not put.optional, put.id
    assert schema.description.endswith(".") and schema.category.startswith("facegrad") and schema.search_aliases
    for put in schema.inputs:
        options = getattr(put, "options", None)
        assert not options or put.default is None or put.default in options
        assert options is None or all(isinstance(option, str) for option in options)


@pytest.mark.parametrize("schema", SCHEMAS, ids=[schema.node_id for schema in SCHEMAS])
def test_every_input_and_output_has_a_tooltip(schema):
    for put in [*schema.inputs, *schema.outputs]:
        assert put.tooltip and put.tooltip.endswith((".", ")", "R.")), put.id


@pytest.mark.parametrize("schema", SCHEMAS, ids=[schema.node_id for schema in SCHEMAS])
def test_every_node_has_a_help_page(schema):
    page = (FOLDER / f"web/docs/{schema.node_id}.md").read_text()
    assert page.startswith(f"# {schema.display_name}\n")


def language(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"locales/{name}/nodeDefs.json").read_text())


@pytest.mark.parametrize("name", ["en", "zh"])
def test_every_node_input_and_output_has_its_texts(name):
    """All languages have the same keys: those of the schemas, in their order."""
    texts = language(name)
    assert list(texts) == [schema.node_id for schema in SCHEMAS]
    for schema in SCHEMAS:
        node = texts[schema.node_id]
        assert list(node) == ["display_name", "description", "inputs", "outputs"], schema.node_id
        assert list(node["inputs"]) == [put.id for put in schema.inputs], schema.node_id
        assert list(node["outputs"]) == [str(at) for at in range(len(schema.outputs))], schema.node_id
        for put in [*node["inputs"].values(), *node["outputs"].values()]:
            assert list(put) == ["tooltip"] and put["tooltip"].strip(), schema.node_id


def test_the_english_texts_are_the_schemas_own():
    assert (FOLDER / "locales/en/nodeDefs.json").read_text() == written(english(SCHEMAS)), "run bindings/comfyui/tests/texts.py"


def test_the_chinese_texts_are_chinese():
    for node in language("zh").values():
        for text in [
            node["display_name"],
            node["description"],
            *(put["tooltip"] for part in ("inputs", "outputs") for put in node[part].values()),
        ]:
            assert any("\u4e00" <= mark <= "\u9fff" for mark in text), text


@pytest.mark.parametrize("name", ["en", "zh"])
def test_texts_are_messages_that_the_page_can_read(name):
    """Braces, @ and | stand in the page's messages for something else, unless they are written as literals."""
    for node in language(name).values():
        for text in [
            node["display_name"],
            node["description"],
            *(put["tooltip"] for part in ("inputs", "outputs") for put in node[part].values()),
        ]:
            bare = text
            for literal in SPECIAL.values():
                bare = bare.replace(literal, "")
            assert not any(mark in bare for mark in SPECIAL), text


def test_arcface_is_found():
    found = [schema.node_id for schema in SCHEMAS if "arcface" in schema.search_aliases]
    assert {"FacegradLoadFacePack", "FacegradFaceIdentityLoss", "FacegradFaceSimilarity", "FacegradSortBySimilarity"} <= set(found)


#: What saved graphs hold: node ids, and per node the widgets in their order. Both may only grow at their ends.
SAVED = {
    "FacegradLoadFacePack": ["pack", "det_sizes", "device"],
    "FacegradLoadFaceDetector": ["file", "det_sizes", "threshold", "device"],
    "FacegradLoadFaceRecogniser": ["file", "dtype", "device"],
    "FacegradVaeForFaceLoss": ["vae", "recompute", "slicing", "dtype", "device"],
    "FacegradLoadFaceReference": ["file"],
    "FacegradFaceReference": ["image", "detector", "recogniser"],
    "FacegradSaveFaceReference": ["reference", "name"],
    "FacegradDetectFaces": ["image", "detector"],
    "FacegradAlignedFaceCrops": ["image", "faces", "recogniser"],
    "FacegradFaceSimilarity": ["image", "reference", "detector", "recogniser"],
    "FacegradFaceIdentityLoss": [
        "model", "face_vae", "detector", "recogniser", "weight", "align_mode", "landmarks", "t_min", "t_max", "time_weight", "every_n_steps",
        "target_similarity", "reference", "reference_images", "data_types", "options",
    ],
    "FacegradFaceLossLog": ["log", "loss_map"],
    "FacegradPredictX0": ["prediction", "kind", "sigma", "device", "x_t"],
    "FacegradUnpackLatent": ["x0", "face_vae", "latent_format", "packing", "model"],
    "FacegradDecodeOnTape": ["vae_latent", "face_vae", "clamp"],
    "FacegradFaceLossOnTape": ["images", "reference", "detector", "recogniser", "weight", "align_mode"],
    "FacegradGradientOfLoss": ["loss"],
}  # fmt: skip
#: And the first outputs.
SAVED_OUTPUTS = {
    "FacegradLoadFacePack": 2, "FacegradFaceReference": 3, "FacegradDetectFaces": 4, "FacegradFaceSimilarity": 3, "FacegradFaceIdentityLoss": 2,
    "FacegradFaceLossLog": 3, "FacegradPredictX0": 2, "FacegradFaceLossOnTape": 4, "FacegradGradientOfLoss": 3,
}  # fmt: skip


def test_graphs_of_the_first_version_go_on_loading():
    by_id = {schema.node_id: schema for schema in SCHEMAS}
    for node, inputs in SAVED.items():
        assert [put.id for put in by_id[node].inputs][: len(inputs)] == inputs, node
        assert all(put.optional for put in by_id[node].inputs[len(inputs) :]), node
        assert len(by_id[node].outputs) >= SAVED_OUTPUTS.get(node, 1)


def test_detection_sizes_are_read_and_refused():
    assert sizes("640, 320") == [640, 320] and sizes("128") == [128]
    for wrong in ("", "100", "640x640", "-32", "0"):
        with pytest.raises(ValueError, match="multiples of 32"):
            sizes(wrong)


def test_faces_are_found_drawn_and_cut_out(detector, recogniser):
    image = torch.cat([portrait(PERSON), torch.full((1, 128, 128, 3), 0.5)])
    found, overlay, count, text = call(faces.DetectFaces, image=image, detector=detector)[:4]
    assert count == 1 and [len(one) for one in found.found] == [1, 0]
    assert json.loads(text)[0][0]["score"] > 0.5 and json.loads(text)[1] == []
    assert overlay.shape == image.shape and not torch.equal(overlay[0], image[0])
    (crops,) = call(faces.AlignedFaceCrops, image=image, faces=found, recogniser=recogniser)
    assert crops.shape == (1, 112, 112, 3) and 0 <= crops.min() and crops.max() <= 1
    with pytest.raises(ValueError, match="connect the image that Detect Faces got"):
        call(faces.AlignedFaceCrops, image=image[:1], faces=found, recogniser=recogniser)
    with pytest.raises(ValueError, match="faces: there is no face to crop"):
        call(faces.AlignedFaceCrops, image=image[1:], faces=Faces([[]], 128, 128), recogniser=recogniser)


def test_an_alpha_channel_does_no_harm(detector):
    image = torch.cat([portrait(PERSON), torch.ones(1, 128, 128, 1)], dim=-1)
    _, overlay, count, _ = call(faces.DetectFaces, image=image, detector=detector)[:4]
    assert count == 1 and overlay.shape == (1, 128, 128, 3)


def test_one_person_is_similar_and_another_is_not(detector, recogniser):
    looks = torch.cat([portrait(PERSON, 0), torch.zeros(1, 128, 128, 3), portrait(PERSON, 1)])
    reference, crops, count = call(people.FaceReference, image=looks, detector=detector, recogniser=recogniser)
    assert count == 2 and crops.shape == (2, 112, 112, 3)
    assert reference.embedding.norm().item() == pytest.approx(1, abs=1e-5)
    images = torch.cat([portrait(PERSON, 2), portrait(OTHER, 2), torch.zeros(1, 128, 128, 3)])
    mean, scores, overlay = call(similarity.FaceSimilarity, image=images, reference=reference, detector=detector, recogniser=recogniser)
    assert scores[0] > 0.7 > 0.58 > scores[1] and scores[2] == -1
    assert mean == pytest.approx((scores[0] + scores[1]) / 2) and overlay[0].shape == images.shape


def test_where_no_picture_has_a_face_the_node_says_so(detector, recogniser):
    blank = torch.zeros(2, 128, 128, 3)
    with pytest.raises(ValueError, match="image: no face was found in any of the 2 reference"):
        call(people.FaceReference, image=blank, detector=detector, recogniser=recogniser)
    reference, *_ = call(people.FaceReference, image=portrait(PERSON), detector=detector, recogniser=recogniser)
    with pytest.raises(ValueError, match="image: no face was found in any of the 2 image"):
        call(similarity.FaceSimilarity, image=blank, reference=reference, detector=detector, recogniser=recogniser)


def test_references_come_back_from_a_file(detector, recogniser, tmp_path):
    reference, *_ = call(
        people.FaceReference, image=torch.cat([portrait(PERSON), portrait(PERSON, 1)]), detector=detector, recogniser=recogniser
    )
    references.save(reference, tmp_path / "deep/person.safetensors")
    back = references.load(tmp_path / "deep/person.safetensors")
    assert back.faces == reference.faces and torch.equal(back.embedding, reference.embedding) and back.recogniser == reference.recogniser
    for kept, image in zip(back.images, reference.images):
        assert torch.equal(kept, image)  # 8-bit pictures lose nothing
    foreign = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="file: .*not a face reference"):
        references.load(foreign)
    with pytest.raises(ValueError, match="expected a file"):
        references.load(tmp_path / "deep")
    whole = (tmp_path / "deep/person.safetensors").read_bytes()
    face = b'\\"bbox\\"'
    assert face in whole
    for damaged in (b"", whole[:-1], whole[:100], whole.replace(face, b'\\"dbox\\"'), whole.replace(b"image.0", b"image.7")):
        foreign.write_bytes(damaged)
        with pytest.raises(ValueError, match="the face reference is damaged"):
            references.load(foreign)


def test_files_devices_and_links_that_cannot_be_used_are_named_as_on_the_screen(detector, recogniser, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from conftest import ASSETS

    from facegrad_nodes import loaders

    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing at all")
    with pytest.raises(ValueError, match="file: .*broken.safetensors is not a face reference"):
        references.load(tmp_path / "broken.safetensors")
    find: dict[str, Any] = {"det_sizes": "128", "threshold": 0.5, "device": "cpu"}
    for name, node, more in (
        (tmp_path / "broken.onnx", loaders.LoadFaceDetector, find),
        (ASSETS / "judge.onnx", loaders.LoadFaceDetector, find),
        (ASSETS / "detector.onnx", loaders.LoadFaceRecogniser, {"dtype": "f32", "device": "cpu"}),
    ):
        monkeypatch.setattr(loaders.host, "file", lambda kind, file, name=name: name)
        with pytest.raises(ValueError, match=f"^file: .*{name.name}"):
            call(node, file=name.name, **more)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^device: cuda is chosen"):
        call(loaders.LoadFaceDetector, file="detector.onnx", **(find | {"device": "cuda"}))
    nothing = SimpleNamespace(models={"detection": SimpleNamespace(model_file="/nowhere.onnx")})
    for socket in ("detector", "recogniser"):
        parts = {"detector": detector, "recogniser": recogniser} | {socket: nothing}
        with pytest.raises(ValueError, match=f"^{socket}: the object on this link"):
            call(people.FaceReference, image=portrait(PERSON), **parts)


def test_another_recogniser_computes_the_embedding_anew(detector, recogniser):
    from conftest import ASSETS

    import facegrad

    judge = facegrad.Recogniser(ASSETS / "judge.onnx")
    reference, *_ = call(people.FaceReference, image=portrait(PERSON), detector=detector, recogniser=recogniser)
    own, *_ = call(people.FaceReference, image=portrait(PERSON), detector=detector, recogniser=judge)
    assert torch.allclose(references.embedding(reference, judge, judge.device), own.embedding, atol=1e-5)
    assert references.embedding(reference, recogniser, recogniser.device) is reference.embedding


def test_pictures_of_different_sizes_make_one_reference(detector, recogniser):
    small, *_ = call(people.FaceReference, image=portrait(PERSON, size=96), detector=detector, recogniser=recogniser)
    large, *_ = call(people.FaceReference, image=portrait(PERSON, size=160), detector=detector, recogniser=recogniser)
    from facegrad_nodes.sockets import Reference

    both = Reference(small.images + large.images, small.faces + large.faces, small.embedding, "none")
    images, landmarks = references.stacked(both)
    assert images.shape == (2, 3, 160, 160) and landmarks.shape == (2, 5, 2)
    want = torch.nn.functional.normalize(small.embedding + large.embedding, dim=0)
    assert torch.allclose(references.embedding(both, recogniser, recogniser.device), want, atol=1e-4)


def test_a_saved_reference_is_never_replaced_unasked(detector, recogniser, tmp_path, monkeypatch):
    monkeypatch.setattr(people.host, "references_folder", lambda: tmp_path)
    one, other = (call(people.FaceReference, image=portrait(who), detector=detector, recogniser=recogniser)[0] for who in (PERSON, OTHER))

    def save(reference, **more):
        (path,) = call(people.SaveFaceReference, reference=reference, name="anna", **more)
        return path

    assert save(one) == str(tmp_path / "anna.safetensors") == save(one), "the same person again is not saved twice"
    assert save(other) == str(tmp_path / "anna_2.safetensors") == save(other)
    assert references.load(tmp_path / "anna.safetensors").faces == one.faces
    third = references.Reference(one.images, one.faces, other.embedding, one.recogniser)
    with pytest.raises(FileExistsError, match="name: .*anna.safetensors is there already.*if_exists"):
        save(third, if_exists="refuse")
    assert save(third, if_exists="replace") == str(tmp_path / "anna.safetensors")
    assert torch.equal(references.load(tmp_path / "anna.safetensors").embedding, other.embedding)


def test_lists_of_pictures_of_several_sizes_are_judged_and_sorted(detector, recogniser, monkeypatch):
    monkeypatch.setattr(people.host, "preview", lambda picture: [])
    monkeypatch.setattr(people.host, "or_blocked", lambda values: values)
    one, other = (call(people.FaceReference, image=portrait(who), detector=detector, recogniser=recogniser)[0] for who in (PERSON, OTHER))
    images = [portrait(OTHER, 2), torch.zeros(1, 64, 96, 3), portrait(PERSON, 2, 160), portrait(PERSON, 1)]
    parts = {"detector": detector, "recogniser": recogniser}
    mean, scores, overlay = call(similarity.FaceSimilarity, image=images, reference=one, **parts)
    assert scores[1] == -1 and min(scores[2:]) > 0.7 > scores[0] and [len(batch) for batch in overlay] == [1] * 4
    assert mean == pytest.approx((scores[0] + scores[2] + scores[3]) / 3)

    def sort(**more):
        settings = {
            "min_similarity": 0.58,
            "best_n": 0,
            "sort": similarity.SORTED[0],
            "face": "most similar",
            "face_index": 0,
            "columns": 2,
        }
        return call(similarity.SortBySimilarity, image=images, **parts, **(settings | {"reference": one} | more))

    kept, scored, index, person, rejected, grid = sort()
    best = sorted((2, 3), key=lambda at: -scores[at])
    assert index == best and scored == pytest.approx([scores[at] for at in best]) and len(rejected) == 2 and person == [0, 0]
    assert torch.equal(kept[0], images[best[0]]) and grid.shape[0] == 1
    assert (
        sort(best_n=1)[2] == best[:1] and sort(sort=similarity.SORTED[1])[2] == best[::-1] and sort(sort=similarity.SORTED[2])[2] == [2, 3]
    )
    several = sort(reference=[one, other])
    assert dict(zip(several[2], several[3])) == {0: 1, 2: 0, 3: 0}, "every picture goes to the person that it shows"
    assert sort(min_similarity=1.0)[0] == [] and sort(face="largest", face_index=1)[0] == []


def two_people() -> torch.Tensor:
    """Two drawn people side by side, the larger one on the right, as IMAGE `[1,160,320,3]`."""
    scene = torch.full((1, 160, 320, 3), 0.5)
    scene[:, 16:144, 16:144] = portrait(PERSON, size=128)
    scene[:, :, 160:] = portrait(OTHER, size=160)
    return scene


def test_one_of_several_faces_is_chosen_by_order_number_box_or_mask(recogniser):
    from conftest import ASSETS

    import facegrad

    detector = facegrad.Detector(ASSETS / "detector.onnx", det_sizes=[320])
    scene = two_people()
    found, _, count, _, boxes, mask = call(faces.DetectFaces, image=scene, detector=detector)
    assert count == 2 and len(boxes[0]) == 2 and mask.shape == (1, 160, 320)
    persons = [call(people.FaceReference, image=portrait(who), detector=detector, recogniser=recogniser)[0] for who in (PERSON, OTHER)]

    def alike(person, **more):
        return call(similarity.FaceSimilarity, image=scene, reference=persons[person], detector=detector, recogniser=recogniser, **more)[0]

    largest, left = ([alike(who, **more) for who in (0, 1)] for more in ({}, {"order": "left to right"}))
    assert largest[1] > largest[0] + 0.2 and left[0] > left[1] + 0.2, "the largest face is the right one"
    assert [alike(who, face_index=1) for who in (0, 1)] == left
    images, box, masks, picked = call(faces.PickFace, image=scene, faces=found, order="left to right", face_index=0, margin=0.0)
    assert box[0]["x"] + box[0]["width"] < 160 and masks[0][0, :, 160:].sum() == 0 and picked[0].found[0][0].bbox[2] < 160
    for more in ({"bboxes": box[0]}, {"bboxes": box}, {"bboxes": [box]}, {"mask": masks[0]}):
        kept = call(faces.DetectFaces, image=scene, detector=detector, **more)[0]
        assert [face.bbox for face in kept.found[0]] == [picked[0].found[0][0].bbox], more
    with pytest.raises(ValueError, match="mask: expected 320x160"):
        call(faces.DetectFaces, image=scene, detector=detector, mask=torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="face_index: no image has a face with the number 7"):
        call(faces.PickFace, image=scene, faces=found, face_index=7)


def test_a_sample_is_found_by_its_content_whatever_its_number_format():
    from facegrad_nodes.matching import match

    torch.manual_seed(3)
    connected = [torch.randn(4, 8, 8), torch.randn(4, 8, 12), torch.randn(4, 8, 8)]
    connected.append(connected[0].clone())
    trained = [connected[2].bfloat16(), connected[0] * 0.18215, connected[3], connected[1]]
    assert match(connected, trained, lambda latent: latent * 0.18215) == [2, 0, 3, 1]
    with pytest.raises(ValueError, match="sample 0 of the training set is none of the 4 latents"):
        match(connected, [torch.randn(4, 8, 8)], lambda latent: latent)


def test_the_pack_is_not_published_without_its_repositorys_address(tmp_path):
    """The one field that only a maintainer can fill in."""
    import importlib.util
    import sys

    if sys.version_info < (3, 11):
        pytest.skip("tomllib is Python 3.11's")
    import tomllib

    at = importlib.util.spec_from_file_location("publish", FOLDER.parents[1] / "packaging/comfyui.py")
    assert at is not None and at.loader is not None
    publish = importlib.util.module_from_spec(at)
    at.loader.exec_module(publish)
    text = (FOLDER / "pyproject.toml").read_text()
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]
    version, own = project["version"], tomllib.loads(text)["project"]["urls"]["Repository"]
    without, filled = (
        text.replace(f'Repository = "{own}"', f'Repository = "{address}"') for address in ("", "https://example.org/facegrad")
    )
    source = tmp_path / "source"
    (source / "tests").mkdir(parents=True)
    (source / "pyproject.toml").write_text(without)
    with pytest.raises(SystemExit, match=r"project\.urls\.Repository: expected the address"):
        publish.make(source, tmp_path / "made", version)
    assert not (tmp_path / "made").exists()
    assert any("project.version" in line for line in publish.missing(filled, "9.9.9"))
    (source / "pyproject.toml").write_text(filled)
    publish.make(source, tmp_path / "made", version)
    made = tomllib.loads((tmp_path / "made/pyproject.toml").read_text())
    assert made["tool"]["comfy"]["Icon"] == f"https://example.org/facegrad/raw/v{version}/bindings/comfyui/icon.png"
    assert not (tmp_path / "made/tests").exists()
    assert "Repository" in (FOLDER.parents[1] / "RELEASE.md").read_text()


def test_the_pack_can_be_published_and_installed():
    """The registry's fields, and what ComfyUI's manager reads."""
    import sys

    if sys.version_info < (3, 11):
        pytest.skip("tomllib is Python 3.11's")
    import tomllib

    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    about, comfy = project["project"], project["tool"]["comfy"]
    assert "comfyui" not in about["name"].lower() and comfy["requires-comfyui"] and comfy["PublisherId"] and comfy["DisplayName"]
    assert any(line.startswith("Operating System ::") for line in about["classifiers"])
    assert (FOLDER / comfy["Icon"]).is_file() and (FOLDER / "LICENSE-MIT").is_file() and (FOLDER / "LICENSE-APACHE").is_file()
    assert (FOLDER / "requirements.txt").read_text().split() == about["dependencies"]
    assert (FOLDER / "LICENSE-MIT").read_text() == (FOLDER.parents[1] / "LICENSE-MIT").read_text()
    entry = (FOLDER / "__init__.py").read_text()
    assert "requirements.txt" in entry and 'WEB_DIRECTORY = "./web"' in entry
