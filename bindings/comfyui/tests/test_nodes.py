"""Schemas, faces and references, without ComfyUI."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from conftest import call, portrait

import facegrad_nodes
from facegrad_nodes import faces, people, references
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
def test_every_node_has_a_help_page_and_chinese_texts(schema):
    page = (FOLDER / f"web/docs/{schema.node_id}.md").read_text()
    assert page.startswith(f"# {schema.display_name}\n")
    chinese = json.loads((FOLDER / "locales/zh/nodeDefs.json").read_text())[schema.node_id]
    assert chinese["display_name"] and chinese["description"]
    assert list(chinese["inputs"]) == [put.id for put in schema.inputs]
    assert list(chinese["outputs"]) == [str(at) for at in range(len(schema.outputs))]
    for text in [chinese["description"], *(put["tooltip"] for part in ("inputs", "outputs") for put in chinese[part].values())]:
        assert any("\u4e00" <= mark <= "\u9fff" for mark in text), text


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
    with pytest.raises(ValueError, match="no face to crop"):
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
    mean, scores, overlay = call(people.FaceSimilarity, image=images, reference=reference, detector=detector, recogniser=recogniser)
    assert scores[0] > 0.7 > 0.58 > scores[1] and scores[2] == -1
    assert mean == pytest.approx((scores[0] + scores[1]) / 2) and overlay[0].shape == images.shape


def test_where_no_picture_has_a_face_the_node_says_so(detector, recogniser):
    blank = torch.zeros(2, 128, 128, 3)
    with pytest.raises(ValueError, match="no face was found in any of the 2 reference"):
        call(people.FaceReference, image=blank, detector=detector, recogniser=recogniser)
    reference, *_ = call(people.FaceReference, image=portrait(PERSON), detector=detector, recogniser=recogniser)
    with pytest.raises(ValueError, match="no face was found in any of the 2 image"):
        call(people.FaceSimilarity, image=blank, reference=reference, detector=detector, recogniser=recogniser)


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
    with pytest.raises(ValueError, match="not a face reference"):
        references.load(foreign)


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
