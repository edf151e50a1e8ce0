"""The evaluator, ArcFaceLoss and its wrapper against insightface and the method."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import FIXTURES
from insightface.app import FaceAnalysis
from insightface.utils import face_align

import facegrad
from facegrad import packs
from facegrad.images import read_image

ROOT = FIXTURES / "evaluate"


@pytest.fixture(scope="module")
def pack(data):
    path = ROOT / "models/buffalo_sc"
    assert path.is_dir(), f"{path} is missing; run `make fixtures`"
    return path


@pytest.fixture(scope="module")
def photos(data, device):
    return {path.stem: read_image(path)[None].to(device) for path in sorted((data / "photos").iterdir())}


@pytest.fixture(scope="module")
def evaluator(pack, device):
    return facegrad.Evaluator(pack / "det_500m.onnx", pack / "w600k_mbf.onnx", det_sizes=(128, 640), device=device)


def test_face_analysis_on_the_same_pack_and_photographs(pack, data, evaluator, device):
    app = FaceAnalysis("buffalo_sc", root=str(ROOT), providers=["CPUExecutionProvider"])
    app.prepare(-1)
    for path in sorted((data / "photos").iterdir()):
        want = app.get(cv2.imread(str(path)))
        image = read_image(path)[None].to(device)
        got = evaluator.faces(image)[0]
        assert len(got) == len(want), path
        for face, other in zip(got, want):
            assert float(face.embedding.numpy() @ other.normed_embedding) >= 0.9995
            assert np.abs(np.array(face.bbox) - other.bbox).max() <= 0.5
        if got:
            crops = (evaluator.align(image, [got]) * 255).round().cpu().numpy()
            theirs = np.stack(
                [face_align.norm_crop(image[0].permute(1, 2, 0).cpu().numpy(), np.array(f.landmarks, np.float32)) for f in got]
            )
            assert np.abs(crops - theirs.transpose(0, 3, 1, 2)).mean() <= 1


def test_bytes_floats_and_a_batch_give_the_same(evaluator, photos):
    image = photos["multi2_couple"]
    batch = torch.cat([image, image.flip(3)])
    faces = evaluator.faces(batch)
    again = evaluator.faces(batch.float() / 255)
    assert [len(group) for group in faces] == [2, 2] == [len(group) for group in again]
    for one, other in zip(faces[0] + faces[1], again[0] + again[1]):
        assert one.bbox == other.bbox and torch.equal(one.embedding, other.embedding)


def test_arcface_loss_is_the_methods(pack, photos, caplog, device):
    loss = facegrad.ArcFaceLoss("buffalo_sc", root=ROOT, device=device)
    with torch.no_grad():
        value = loss(photos["C_obama_1"], photos["C_obama_2"].float() / 255)
    assert value.shape == () and 0.7 < 1 - value.item() < 0.85
    # The face that fills the frame is found by trying smaller sizes, as often as it is not asked not to.
    value, per_sample, mask = details = loss(photos["A_dad_1"], photos["A_dad_2"], return_details=True)
    assert details.report.counted == 1 and details.report.similarity == pytest.approx(1 - value.item(), abs=1e-6)
    assert per_sample.tolist() == pytest.approx([value.item()]) and mask.tolist() == [True]
    strict = facegrad.ArcFaceLoss("buffalo_sc", root=ROOT, retry_sizes=(), device=device)
    details = strict(photos["A_dad_1"], photos["A_dad_2"], return_details=True)
    assert details.loss.item() == 0 and details.report.samples[0].outcome == facegrad.Outcome.NO_REFERENCE_FACE
    assert np.isnan(details.report.similarity) and "no face was found in the reference" in caplog.text
    details = loss(photos["C_obama_1"], photos["noface_cat"], return_details=True)
    assert details.loss.item() == 0 and details.report.samples[0].outcome == facegrad.Outcome.NO_FACE


def test_the_wrapper_decodes_first(photos, device):
    image = photos["C_obama_1"].float() / 255
    wrapper = facegrad.FaceLossWrapper(lambda latents: latents + 0.5, "buffalo_sc", arcface_root=ROOT, device=device)
    plain = facegrad.ArcFaceLoss("buffalo_sc", root=ROOT, device=device)(photos["C_obama_2"], image)
    assert wrapper(photos["C_obama_2"], image - 0.5).item() == pytest.approx(plain.item(), abs=1e-4)

    class Vae(torch.nn.Module):
        """diffusers' interface around nothing: [−1, 1] out, scaled and shifted latents in."""

        class config:
            scaling_factor, shift_factor = 0.5, 0.1

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), device=device))

        def decode(self, x):
            return (x,)

    latents = (2 * image - 1 - 0.1) * 0.5
    wrapper = facegrad.FaceLossWrapper(Vae(), "buffalo_sc", arcface_root=ROOT, device=device)
    assert wrapper(photos["C_obama_2"], latents).item() == pytest.approx(plain.item(), abs=1e-4)
    assert not list(wrapper.parameters())
    with pytest.raises(TypeError, match="expected a diffusers VAE, a function"):
        facegrad.FaceLossWrapper(3, "buffalo_sc", arcface_root=ROOT, device=device)(photos["C_obama_2"], latents)


def test_people_are_found_one_to_one(evaluator, photos):
    couple = photos["multi2_couple"]
    woman, man = evaluator.faces(couple)[0]
    for name, face in (("woman", woman), ("man", man)):
        evaluator.set_reference(name, couple, torch.tensor([face.landmarks]))
    found = evaluator.find(torch.cat([couple, couple.flip(3)]), ["man", "woman"])
    assert [list(people) for people in found] == [["man", "woman"]] * 2
    assert found[0]["man"].bbox == man.bbox and found[0]["woman"].bbox == woman.bbox
    assert all(sample.similarity > 0.5 for people in found for sample in people.values())
    assert found[1]["man"].bbox[0] > found[1]["woman"].bbox[0] - 200
    # Of several faces the one nearest to the given place is compared.
    report = evaluator.compare(couple, reference_ids=["man"], landmarks=torch.tensor([man.landmarks]))
    assert report.samples[0].bbox == man.bbox and report.similarity > 0.99
    for name in ("woman", "man"):
        evaluator.remove_reference(name)
    with pytest.raises(facegrad.FacegradError, match='"man" was not registered'):
        evaluator.find(couple, ["man"])


def test_choices_and_sizes(pack, photos, device):
    def boxes(**keys):
        evaluator = facegrad.Evaluator(pack / "det_500m.onnx", pack / "w600k_mbf.onnx", device=device, **keys)
        return evaluator.compare(photos["multi2_couple"], photos["multi2_couple"]).samples[0].bbox

    faces = facegrad.Evaluator(pack / "det_500m.onnx", pack / "w600k_mbf.onnx", device=device).faces(photos["multi2_couple"])[0]
    area = [(f.bbox[2] - f.bbox[0]) * (f.bbox[3] - f.bbox[1]) for f in faces]
    assert boxes() == faces[0].bbox and boxes(face_choice="index", face_index=1) == faces[1].bbox
    assert boxes(face_choice="largest") == faces[int(np.argmax(area))].bbox
    assert boxes(min_size=1000) is None
    assert boxes(face_choice="index", face_index=5) is None


@pytest.mark.host("ONNX Runtime's providers are its own")
def test_a_missing_provider_or_engine_is_an_error(pack):
    files = pack / "det_500m.onnx", pack / "w600k_mbf.onnx"
    with pytest.raises(facegrad.FacegradError, match="CUDAExecutionProvider is not in this ONNX Runtime"):
        facegrad.Evaluator(*files, providers=["cuda"])
    with pytest.raises(facegrad.FacegradError, match="did you mean `cuda`"):
        facegrad.Evaluator(*files, providers=["cudaa"])
    assert "Cpu" in facegrad.Evaluator(*files, providers=["cpu"]).description["recogniser"]
    assert "libtorch" in facegrad.Evaluator(*files, engine="torch").description["recogniser"]


@pytest.mark.host("paths alone")
@pytest.mark.parametrize(
    "where", ["models/buffalo_sc", "buffalo_sc", "", "models/buffalo_sc/buffalo_sc", "models/insightface/models/buffalo_sc"]
)
def test_packs_are_found_in_every_layout(tmp_path, where):
    folder = tmp_path / where
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("det_500m.onnx", "w600k_mbf.onnx"):
        (folder / name).touch()
    assert packs.find_pack("buffalo_sc", tmp_path) == packs.Files(folder / "det_500m.onnx", folder / "w600k_mbf.onnx")


@pytest.mark.host("paths alone")
def test_a_missing_pack_lists_where_and_what(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        facegrad.ArcFaceLoss(root=tmp_path)
    text = str(caught.value)
    for part in ("det_10g.onnx and w600k_r50.onnx", str(tmp_path / "models/buffalo_l"), "download buffalo_l", "`root`"):
        assert part in text
    with pytest.raises(FileNotFoundError, match="expected one of buffalo_l, antelopev2"):
        facegrad.ArcFaceLoss("buffalo_x", root=tmp_path)


def test_a_damaged_model_says_so(tmp_path, pack, device):
    shutil.copy(pack / "det_500m.onnx", tmp_path)
    (tmp_path / "w600k_mbf.onnx").write_bytes(b"not a model")
    with pytest.raises(facegrad.FacegradError, match="w600k_mbf.onnx"):
        facegrad.ArcFaceLoss("buffalo_sc", root=tmp_path, device=device)
