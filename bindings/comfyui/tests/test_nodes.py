"""Schemas, faces and references, without ComfyUI."""

from __future__ import annotations

import inspect
import json
import math

import pytest
import torch
from conftest import portrait

import facegrad_nodes
from facegrad_nodes import faces, references
from facegrad_nodes.loaders import sizes
from facegrad_nodes.sockets import Faces

PERSON, OTHER = 5_000_000, 5_000_001


@pytest.mark.parametrize("node", facegrad_nodes.NODE_CLASS_MAPPINGS.values(), ids=facegrad_nodes.NODE_CLASS_MAPPINGS)
def test_schema_and_function_agree(node):
    inputs = node.INPUT_TYPES()
    required, optional = inputs["required"], inputs.get("optional", {})
    parameters = {name: p for name, p in inspect.signature(getattr(node, node.FUNCTION)).parameters.items() if name != "self"}
    assert list(parameters) == [*required, *optional]
    assert all(parameters[name].default is inspect.Parameter.empty for name in required)
    assert all(parameters[name].default is not inspect.Parameter.empty for name in optional)
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    assert node.DESCRIPTION.endswith(".") and node.CATEGORY.startswith("facegrad")
    for kind, *options in (required | optional).values():
        assert isinstance(kind, str) or (kind and all(isinstance(choice, str) for choice in kind))
        if options and "default" in options[0] and not isinstance(kind, str):
            assert options[0]["default"] in kind


def test_every_node_has_a_name_and_ids_do_not_change():
    assert facegrad_nodes.NODE_CLASS_MAPPINGS.keys() == facegrad_nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert sorted(facegrad_nodes.NODE_CLASS_MAPPINGS) == [
        "FacegradAlignedFaceCrops", "FacegradDecodeOnTape", "FacegradDetectFaces", "FacegradFaceIdentityLoss", "FacegradFaceLossLog",
        "FacegradFaceLossOnTape", "FacegradFaceReference", "FacegradFaceSimilarity", "FacegradGradientOfLoss", "FacegradLoadFaceDetector",
        "FacegradLoadFacePack", "FacegradLoadFaceRecogniser", "FacegradLoadFaceReference", "FacegradPredictX0", "FacegradSaveFaceReference",
        "FacegradUnpackLatent", "FacegradVaeForFaceLoss",
    ]  # fmt: skip


def test_detection_sizes_are_read_and_refused():
    assert sizes("640, 320") == [640, 320] and sizes("128") == [128]
    for wrong in ("", "100", "640x640", "-32", "0"):
        with pytest.raises(ValueError, match="multiples of 32"):
            sizes(wrong)


def test_faces_are_found_drawn_and_cut_out(detector, recogniser):
    image = torch.cat([portrait(PERSON), torch.full((1, 128, 128, 3), 0.5)])
    found, overlay, count, text = faces.DetectFaces().detect(image, detector)
    assert count == 1 and [len(one) for one in found.found] == [1, 0]
    assert json.loads(text)[0][0]["score"] > 0.5 and json.loads(text)[1] == []
    assert overlay.shape == image.shape and not torch.equal(overlay[0], image[0])
    (crops,) = faces.AlignedFaceCrops().crop(image, found, recogniser)
    assert crops.shape == (1, 112, 112, 3) and 0 <= crops.min() and crops.max() <= 1
    with pytest.raises(ValueError, match="connect the image that Detect Faces got"):
        faces.AlignedFaceCrops().crop(image[:1], found, recogniser)
    with pytest.raises(ValueError, match="no face to crop"):
        faces.AlignedFaceCrops().crop(image[1:], Faces([[]], 128, 128), recogniser)


def test_an_alpha_channel_does_no_harm(detector):
    image = torch.cat([portrait(PERSON), torch.ones(1, 128, 128, 1)], dim=-1)
    _, overlay, count, _ = faces.DetectFaces().detect(image, detector)
    assert count == 1 and overlay.shape == (1, 128, 128, 3)


def test_one_person_is_similar_and_another_is_not(detector, recogniser):
    looks = torch.cat([portrait(PERSON, 0), torch.zeros(1, 128, 128, 3), portrait(PERSON, 1)])
    reference, crops, count = faces.FaceReference().make(looks, detector, recogniser)
    assert count == 2 and crops.shape == (2, 112, 112, 3)
    assert reference.embedding.norm().item() == pytest.approx(1, abs=1e-5)
    images = torch.cat([portrait(PERSON, 2), portrait(OTHER, 2), torch.zeros(1, 128, 128, 3)])
    mean, scores, overlay = faces.FaceSimilarity().compare(images, reference, detector, recogniser)
    assert scores[0] > 0.7 > 0.58 > scores[1] and math.isnan(scores[2])
    assert mean == pytest.approx((scores[0] + scores[1]) / 2) and overlay.shape == images.shape


def test_where_no_picture_has_a_face_the_node_says_so(detector, recogniser):
    blank = torch.zeros(2, 128, 128, 3)
    with pytest.raises(ValueError, match="no face was found in any of the 2 reference"):
        faces.FaceReference().make(blank, detector, recogniser)
    reference, *_ = faces.FaceReference().make(portrait(PERSON), detector, recogniser)
    with pytest.raises(ValueError, match="no face was found in any of the 2 image"):
        faces.FaceSimilarity().compare(blank, reference, detector, recogniser)


def test_references_come_back_from_a_file(detector, recogniser, tmp_path):
    reference, *_ = faces.FaceReference().make(torch.cat([portrait(PERSON), portrait(PERSON, 1)]), detector, recogniser)
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
    reference, *_ = faces.FaceReference().make(portrait(PERSON), detector, recogniser)
    own, *_ = faces.FaceReference().make(portrait(PERSON), detector, judge)
    assert torch.allclose(references.embedding(reference, judge, judge.device), own.embedding, atol=1e-5)
    assert references.embedding(reference, recogniser, recogniser.device) is reference.embedding


def test_pictures_of_different_sizes_make_one_reference(detector, recogniser):
    small, *_ = faces.FaceReference().make(portrait(PERSON, size=96), detector, recogniser)
    large, *_ = faces.FaceReference().make(portrait(PERSON, size=160), detector, recogniser)
    from facegrad_nodes.sockets import Reference

    both = Reference(small.images + large.images, small.faces + large.faces, small.embedding, "none")
    images, landmarks = references.stacked(both)
    assert images.shape == (2, 3, 160, 160) and landmarks.shape == (2, 5, 2)
    want = torch.nn.functional.normalize(small.embedding + large.embedding, dim=0)
    assert torch.allclose(references.embedding(both, recogniser, recogniser.device), want, atol=1e-4)
