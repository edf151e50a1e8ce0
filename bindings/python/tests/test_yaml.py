"""The method's keys as a trainer's file has them: each counts, or is refused with what to write instead."""

from __future__ import annotations

import logging

import iresnet
import pytest
import torch
import yaml
from conftest import Duck

import facegrad


@pytest.fixture()
def run(root, weights, photos, tmp_path):
    """The value of a step with a file of these keys below `model`."""
    a, b = photos

    def run(section="model", top=None, text=None, **keys):
        keys = {"arcface_root": str(root), "arcface_weights": str(weights[0]), "arcface_model": None, "face_loss_weight": 1.0, **keys}
        keys = {"prediction": {"kind": "sample"}, **keys}
        path = tmp_path / "train.yaml"
        content = {**(top or {}), **({section: keys} if section else keys)}
        path.write_text(text if text is not None else yaml.safe_dump(content, sort_keys=False))
        face = facegrad.FaceIdentityLoss(path, vae=Duck(), device="cpu")
        prediction = ((b * 2 - 1) * 0.5).requires_grad_()
        value, report = face(prediction=prediction, x_t=torch.zeros_like(prediction), t=[0.4], references=a, data_types=["person"])
        return value, report, prediction

    return run


def test_the_score_is_arcfacelosss_own(run, root, weights, photos, caplog):
    """`face_loss_type: non_differentiable` is InsightFace's score, in ONNX Runtime where it can run the recogniser."""
    a, b = photos
    latents = (b * 2 - 1) * 0.5
    want = facegrad.FaceLossWrapper(Duck(), "my_pack", None, root)(a, latents).item()
    file = str(root / "models/my_pack/b_who.onnx")
    for keys in ({"arcface_model": "my_pack", "arcface_weights": None}, {"arcface_weights": file}):
        with caplog.at_level(logging.INFO, "facegrad"):
            value, report, prediction = run(face_loss_type="non_differentiable", **keys)
        assert value.item() == pytest.approx(want, abs=1e-6) and not value.requires_grad and prediction.grad is None
        assert report.samples[0].alignment == facegrad.Alignment.KPS and report.counted == 1
        assert "the score of ONNX on ONNX Runtime" in caplog.text
        caplog.clear()
    # It keeps the loss's weights and gates.
    weighted, *_ = run(face_loss_type="non_differentiable", arcface_weights=file, face_loss_weight=0.5, use_t_aware_weighting=True)
    assert weighted.item() == pytest.approx(0.5 * 0.6 * want, rel=1e-5)
    gated, report, _ = run(face_loss_type="non_differentiable", arcface_weights=file, t_max=0.3)
    assert gated.item() == 0 and report.samples[0].outcome == facegrad.Outcome.TIME
    # Weights that ONNX Runtime cannot read run on libtorch, and the log says so.
    with caplog.at_level(logging.INFO, "facegrad"):
        value, *_ = run(face_loss_type="non_differentiable")
    own = facegrad.Evaluator(root / "models/my_pack/a_finder.onnx", weights[0]).compare((latents / 0.5 / 2 + 0.5).clamp(0, 1), a)
    assert value.item() == pytest.approx(own.mean_distance, abs=1e-6) and "the score of IResNet[1, 2, 2, 1] on libtorch" in caplog.text


def test_a_score_remembers_people_and_can_be_made_again(root, photos):
    a, b = photos
    config = {"face_loss_type": "non_differentiable", "arcface_model": "my_pack", "face_loss_weight": 1.0, "prediction": {"kind": "sample"}}
    face = facegrad.FaceIdentityLoss(config, vae=Duck(), device="cpu", root=root)
    latents = (b * 2 - 1) * 0.5
    want, _ = face(prediction=latents, references=a)
    face.set_reference("she", a)
    other = face.again(face_loss_weight=2.0)
    assert other(prediction=latents, reference_ids=["she"])[0].item() == pytest.approx(2 * want.item(), rel=1e-5)


def test_a_score_has_no_levels(run):
    with pytest.raises(ValueError, match="compares embeddings alone; leave use_multiscale_face_loss"):
        run(face_loss_type="non_differentiable", use_multiscale_face_loss=True)
    with pytest.raises(facegrad.FacegradError, match="compares embeddings alone"):
        run(face_loss_type="non_differentiable", levels={"embedding": 1.0, "layer1": 1.0})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("use_face_los", "use_face_loss"), ("face_loss_weigth", "face_loss_weight"), ("Face_Loss_Weight", "face_loss_weight"),
        ("usefaceloss", "use_face_loss"), ("faceloss_weight", "face_loss_weight"), ("arc_face_root", "arcface_root"),
        ("t_aware_weighting", "use_t_aware_weighting"), ("multi_scale_layer_weights", "multiscale_layer_weights"),
        ("use_multi_scale_face_loss", "use_multiscale_face_loss"),
    ],
)  # fmt: skip
def test_a_misspelt_key_in_a_file_is_not_taken_for_the_trainers(run, key, meant):
    with pytest.raises(ValueError, match=f"unknown key `{key}` \\(did you mean `{meant}`"):
        run(**{key: 1})


def test_a_trainers_own_keys_are_left_alone(run):
    plain, *_ = run()
    theirs = (
        "loss_type",
        "loss_weight",
        "align_mode",
        "use_ema",
        "multiscale",
        "t_weighting",
        "weights",
        "model_name",
        "image_size",
        "use_mask_loss",
        "arch",
    )
    value, *_ = run(top={"lr": 1e-4, "loss_weight": 2}, **dict.fromkeys(theirs, 3))
    assert value.item() == plain.item()


def test_keys_in_the_wrong_section_are_named(run):
    with pytest.raises(ValueError, match="arcface_root is below `train`; write the loss's keys below `model` or at the top"):
        run(section="train")
    with pytest.raises(
        ValueError,
        match="face_loss_weight is below `model` and face_align_mode at the top|arcface_root is below `model` and face_align_mode at the top",
    ):
        run(top={"face_align_mode": "kps"})
    # A section `model` that has none of them does not hide those at the top.
    plain, *_ = run()
    value, *_ = run(section=None, top={"model": {"name": "flux"}})
    assert value.item() == plain.item()


def test_values_as_yaml_writes_them(run):
    plain, *_ = run()
    assert run(face_loss_weight=None, face_loss_type=None, face_align_mode=None, use_face_loss=None)[0].item() == pytest.approx(
        0.1 * plain.item(), rel=1e-5
    )
    # PyYAML takes 1e-1 for a text.
    assert run(face_loss_weight="1e-1")[0].item() == pytest.approx(0.1 * plain.item(), rel=1e-5)
    for keys, text in [
        ({"multiscale_layer_weights": {"layer1": "a"}}, "layer1: expected a number, got 'a'"),
        ({"multiscale_layer_weights": {"layer1": None}}, "layer1: expected a number, got None"),
        ({"arcface_model": "resnet50"}, "expected r18, r34, r50, r100, r200 beside arcface_weights, got 'resnet50'"),
        ({"face_loss_type": "nondifferentiable"}, "did you mean `non_differentiable`"),
        ({"text": "- a"}, "expected a mapping of keys, got list"),
        ({"text": ""}, "got an empty file"),
        ({"text": "a: [b"}, "train.yaml: expected YAML, got text that breaks at"),
    ]:
        with pytest.raises((ValueError, facegrad.FacegradError), match=text):
            run(**keys)


def test_a_pack_in_the_yaml_gives_both_networks(run, root):
    value, *_ = run(arcface_model="my_pack", arcface_weights=None, face_align_mode="kps")
    other, *_ = run(arcface_weights=str(root / "models/my_pack/b_who.onnx"), face_align_mode="kps")
    assert value.requires_grad and value.item() == pytest.approx(other.item(), rel=1e-6)
    with pytest.raises(FileNotFoundError, match="the pack no_such_pack was not found"):
        run(arcface_model="no_such_pack", arcface_weights=None)
    with pytest.raises(TypeError, match="expected a mapping of keys or the path of a YAML or JSON file, got list"):
        facegrad.FaceIdentityLoss(["a"])


#: The example and the table of the method's document, as they stand there.
DOCUMENT = """
model:
  use_face_loss: true              # 启用人脸损失
  face_loss_weight: 0.1            # 损失权重
  face_align_mode: "bbox"          # "bbox" 或 "kps" (关键点对齐)
  face_loss_type: "differentiable" # 使用可微分版本
  arcface_weights: "path/to/backbone.pth"
  arcface_model: "r50"             # r50 或 r100
"""
COUNTS = {"person": True, "person_head": True, "person_hair": False, "landscape": False}


def test_the_documents_yaml_and_its_table_of_data_types(root, photos, tmp_path):
    a, b = photos
    torch.save(iresnet.seeded((3, 4, 14, 3), (8, 12, 16, 24), 32).state_dict(), tmp_path / "backbone.pth")
    path = tmp_path / "train.yaml"
    path.write_text(DOCUMENT.replace("path/to/backbone.pth", str(tmp_path / "backbone.pth")), encoding="utf-8")
    face = facegrad.FaceIdentityLoss(path, vae=Duck(), device="cpu", root=root)
    # As the document trains: x_t = (1 − t)·x_0 + t·x_1, and the model predicts x_1 − x_0.
    x_0, x_1, t = (b * 2 - 1) * 0.5, torch.randn_like(b), 0.3
    v = (x_1 - x_0).requires_grad_()
    value, report = face(x_t=(1 - t) * x_0 + t * x_1, prediction=v, t=[t], references=a, data_types=["person"])
    value.backward()
    distance = facegrad.DifferentiableFaceLoss("r50", tmp_path / "backbone.pth", "cpu", root=root)(a, b)
    assert value.item() == pytest.approx(0.1 * distance.item(), rel=1e-2) and v.grad.abs().max() > 0
    assert report.samples[0].alignment == facegrad.Alignment.BBOX
    batch = len(COUNTS)
    _, report = face(
        x_t=x_0.expand(batch, -1, -1, -1), prediction=torch.zeros(batch, *x_0.shape[1:]), t=0.0, references=a, data_types=list(COUNTS)
    )
    assert [sample.outcome == facegrad.Outcome.COUNTED for sample in report.samples] == list(COUNTS.values())
