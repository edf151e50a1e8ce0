"""What a user of the method's classes writes in another way works, or is refused with what to write instead."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from conftest import Duck

import facegrad


@pytest.fixture(scope="module")
def loss(root, weights):
    return facegrad.DifferentiableFaceLoss(None, weights[0], "cpu", root=root)


def test_det_size_as_people_write_it(root, weights):
    def sizes(det_size):
        return facegrad.DifferentiableFaceLoss(None, weights[0], "cpu", det_size, root).detector.description.split(";")[1]

    assert sizes((np.int64(640), np.int32(480))).startswith(" sizes [640x480]")
    assert sizes([640, 640]).startswith(" sizes [640]") and sizes([640, 320]).startswith(" sizes [640, 320]")
    for bad in ("640", 640.0, (640, 640, 3), (640.0, 640.0), None):
        with pytest.raises(ValueError, match="expected a side in whole pixels, a pair"):
            sizes(bad)


def test_accelerates_device_without_a_gpu_is_the_cpu(root, weights):
    """With several processes, `accelerator.device` is `cpu:0`."""
    device = torch.device("cpu", 0)
    picture = torch.rand(1, 3, 112, 112, device=device)
    embed = facegrad.Recogniser(weights[0], device=device).embed
    assert torch.equal(embed(picture), facegrad.Recogniser(weights[0]).embed(picture))
    assert facegrad.DifferentiableFaceLoss(None, weights[0], device, root=root).detector.description
    detector = facegrad.Detector(root / "models/det_500m.onnx", det_sizes=[128], device=device)
    facegrad.FaceLoss({}, recogniser=facegrad.Recogniser(weights[0]), detector=detector)


def test_arguments_by_the_names_of_other_classes_are_refused_with_the_name_here(root, weights):
    path = str(weights[0])
    for made, text in [
        (lambda: facegrad.DifferentiableFaceLoss(arcface_weights_path=path), r"write pretrained_path='"),
        (lambda: facegrad.DifferentiableFaceLoss(None, path, ctx_id=-1), r'write device="cpu" for -1'),
        (lambda: facegrad.DifferentiableFaceLoss(None, path, detektor=1), r"did you mean `detector`"),
        (lambda: facegrad.DifferentiableFaceLossWrapper(Duck(), pretrained_path=path), "write arcface_weights_path='"),
        (lambda: facegrad.DifferentiableFaceLossWrapper(Duck(), path, "r50", "cpu"), "write device='cpu' for a device"),
        (lambda: facegrad.ArcFaceLoss("my_pack", -1, root=root, det_thresh=0.4), "write threshold=0.4"),
        (lambda: facegrad.ArcFaceLoss("my_pack", -1, root=root, align_mode="bbox"), "the score aligns by landmarks"),
        (lambda: facegrad.FaceLossWrapper(Duck(), "my_pack", arcface_root=root, det_thresh=0.4), "write threshold=0.4"),
        (lambda: facegrad.FaceLossWrapper(Duck(), "my_pack", "cpu", root), "the width of one image in pixels, got 'cpu'"),
        (lambda: facegrad.FaceLossWrapper(None, "my_pack", arcface_root=root), "expected a diffusers VAE, .* got NoneType"),
        (lambda: facegrad.ArcFaceLoss(None, root=root), "expected a pack's name, such as buffalo_l"),
        (lambda: facegrad.ArcFaceLoss("my_pack", root=root, providers="cpu"), r"write \['cpu'\]"),
    ]:
        with pytest.raises(TypeError, match=text):
            made()


def test_execution_providers_by_onnxruntimes_own_names(root, photos):
    score = facegrad.ArcFaceLoss("my_pack", -1, root=root, providers=["CPUExecutionProvider"])
    assert "ONNX Runtime" in score.evaluator.description["recogniser"] and score(*photos).item() > 0
    with pytest.raises(facegrad.FacegradError, match="cuda|CUDA"):
        facegrad.ArcFaceLoss("my_pack", -1, root=root, providers=["CUDAExecutionProvider"])


def test_a_packs_name_is_a_recogniser_with_a_gradient(root, photos):
    a, b = photos
    gen = b.clone().requires_grad_()
    loss = facegrad.DifferentiableFaceLoss("my_pack", device="cpu", root=root, align_mode="kps")
    value = loss(a, gen)
    value.backward()
    score = facegrad.ArcFaceLoss("my_pack", -1, root=root)
    assert value.item() == pytest.approx(score(a, b).item(), abs=5e-3) and gen.grad.abs().max() > 0
    assert (loss.embedding_dim, loss.face_size) == (score.embedding_dim, score.face_size) == (128, 112)


def test_what_is_no_tensor_of_the_right_shape_is_named(loss, root, photos):
    a, b = photos
    score = facegrad.ArcFaceLoss("my_pack", -1, root=root)
    for made, text in [
        (lambda: loss.detect_faces(a.numpy()), r"expected a torch.Tensor \[B,3,H,W\], got ndarray"),
        (lambda: loss.detect_faces(a[0]), r"got \[3, 256, 256\]"),
        (lambda: loss.crop_and_resize_face(a, [1, 1, 9, 9]), r"expected \[3,H,W\], got \[1, 3, 256, 256\]"),
        (lambda: loss.extract_embedding(torch.rand(1, 3, 112, 112)), r"expected one crop \[3,S,S\]"),
        (lambda: loss.recognizer(torch.rand(1, 3, 96, 96)), r"expected crops \[B,3,112,112\], got \[1, 3, 96, 96\]"),
        (lambda: score(a.numpy(), b.numpy()), "expected a torch.Tensor, got ndarray"),
        (lambda: score.extract_embedding(a), r"expected a torch.Tensor \[3,H,W\]"),
    ]:
        with pytest.raises((TypeError, ValueError), match=text):
            made()
    assert loss.recognizer(torch.rand(0, 3, 112, 112)).shape == (0, 64)


def test_modules_are_moved_copied_and_saved_as_torch_does(loss, root, weights, photos):
    a, b = photos
    want = loss(a, b).item()
    wrapper = facegrad.DifferentiableFaceLossWrapper(Duck(), weights[0], None, 256, "cpu", root)
    for module in (loss, loss.recognizer, wrapper, facegrad.ArcFaceLoss("my_pack", -1, root=root)):
        for same in (
            module.half(),
            module.bfloat16(),
            module.to(torch.float16),
            module.float().cpu(),
            module.train(),
            module.eval(),
            module.requires_grad_(),
        ):
            assert same is module
        assert not list(module.parameters()) and not module.state_dict()
        module.load_state_dict(module.state_dict())
        with pytest.raises(TypeError, match="cannot be .*pickled; make it where it is used"):
            pickle.dumps(module)
        if not torch.cuda.is_available():
            with pytest.raises((RuntimeError, AssertionError)):
                module.cuda()
    # A model that holds the loss can be copied, as for an average of its weights: the frozen networks are shared.
    other = copy.deepcopy(torch.nn.ModuleDict({"loss": loss}))["loss"]
    assert other is not loss and other.recogniser is loss.recogniser and other(a, b).item() == pytest.approx(want, abs=1e-6)
    assert loss(a, b).item() == pytest.approx(want, abs=1e-6)


def test_a_copy_of_a_loss_knows_its_people_and_no_later_ones(loss, photos):
    a, b = photos
    loss.loss.set_reference("she", a)
    other = copy.deepcopy(loss.loss)
    loss.loss.remove_reference("she")
    value, report = other(b, reference_ids=["she"])
    assert report.counted == 1 and value.item() > 0
    with pytest.raises(facegrad.FacegradError, match="was not registered"):
        loss.loss(b, reference_ids=["she"])


def test_weights_of_another_shape_are_named_without_a_file_that_nobody_wrote(weights):
    state = weights[1].state_dict()
    net = facegrad.IResNet()
    for content, text in [
        ({}, "got nothing"), ({"epoch": 3}, "got epoch"), (dict(list(state.items())[:9]), "^state_dict: "), ([1], "expected tensors by name"),
    ]:  # fmt: skip
        with pytest.raises((ValueError, TypeError, facegrad.FacegradError), match=text) as refused:
            net.load_state_dict(content)
        assert "/tmp" not in str(refused.value)
    with pytest.raises(ValueError, match="leave strict out"):
        net.load_state_dict(state, strict=False)


def test_arcface_torchs_constructors_arguments(weights):
    assert facegrad.iresnet50(False, fp16=True).recogniser is None
    assert facegrad.iresnet100(pretrained=False, progress=True).recogniser is None
    with pytest.raises(ValueError, match='ships no weights; write iresnet50\\("backbone.pth"\\)'):
        facegrad.iresnet50(pretrained=True)
    with pytest.raises(TypeError, match="no argument `num_features`: the weights tell"):
        facegrad.iresnet50(num_features=256)
    assert facegrad.IResNet(weights[0], dtype=torch.bfloat16).recogniser.description.endswith("bf16")


def test_the_score_of_latents_takes_a_vae_of_the_library_and_both_names_of_x0(root, photos, data):
    a, b = photos
    latents = (b * 2 - 1) * 0.5
    score = facegrad.FaceLossWrapper(Duck(), "my_pack", None, root)
    want = score(a, latents).item()
    assert score(a, torch.zeros_like(latents), x0_latents=latents, t=torch.tensor([0.3])).item() == want
    library = facegrad.FaceLossWrapper(facegrad.Vae(Duck()), "my_pack", None, root)
    assert library(a, latents).item() == pytest.approx(want, abs=1e-6)
    files = facegrad.FaceLossWrapper(data / "models/taef2_decoder.pth", "my_pack", None, root)
    assert files.decode_latents(torch.zeros(1, 32, 4, 4)).shape == (1, 3, 32, 32)


def test_the_wrapper_has_the_multi_level_loss_too(loss, root, photos, weights):
    a, b = photos
    wrapper = facegrad.DifferentiableFaceLossWrapper(Duck(), weights[0], None, 256, "cpu", root)
    latents = ((b * 2 - 1) * 0.5).requires_grad_()
    value, layers, mask = wrapper.forward_multiscale(a, latents, return_details=True)
    value.backward()
    assert value.item() == pytest.approx(loss.forward_multiscale(a, b).item(), abs=1e-4)
    assert mask.all() and list(layers)[-1] == "embedding" and latents.grad.abs().max() > 0


def test_pictures_of_a_function_that_are_not_in_0_to_1_are_told_once(caplog):
    vae = facegrad.Vae(lambda z: z[:, :3] * 2 - 1)
    with caplog.at_level(logging.WARNING, "facegrad"):
        for _ in range(2):
            vae.decode(torch.zeros(1, 4, 8, 8))
    assert caplog.text.count("RGB in [0, 1] is expected; a VAE's own output needs (x + 1) / 2") == 1


def test_numbers_of_numpy_and_torch_in_a_configuration(recogniser):
    config = {"face_loss_weight": np.float32(0.5), "t_max": torch.tensor(0.5), "face_types": ("person",), "face_align_mode": "kps"}
    told = facegrad.FaceLoss(config, recogniser=recogniser).description["settings"]
    assert (told["face_loss_weight"], told["t_max"], told["face_types"]) == (0.5, 0.5, ["person"])
    with pytest.raises(ValueError, match="t_max: expected finite numbers, got nan"):
        facegrad.FaceLoss({"t_max": float("nan")}, recogniser=recogniser)


def test_a_path_given_to_a_loss_as_a_network_is_refused_with_what_loads_it(recogniser):
    with pytest.raises(TypeError, match=r"detector: expected a facegrad.Detector, got str; load a file with facegrad.Detector\(path\)"):
        facegrad.FaceLoss({}, detector="det_10g.onnx", recogniser=recogniser)
