"""The method's own code on facegrad: every line of a user's script or YAML works, or is refused with what to write instead."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import types

import iresnet
import numpy as np
import pytest
import torch
import yaml
from compare import relative
from conftest import FIXTURES, ROOT, SMALL, Duck, arguments
from diffusers import AutoencoderKL
from torch.utils._python_dispatch import _disable_current_modes

import facegrad
from facegrad.method import LEVELS


@pytest.fixture(scope="module")
def loss(root, weights, device):
    return facegrad.DifferentiableFaceLoss(None, weights[0], str(device), root=root)


def test_the_constructors_are_frozen_recognisers(weights, device, bounds):
    path, net = weights
    x = torch.rand(2, 3, 112, 112, device=device) * 2 - 1
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    frozen = facegrad.IResNet(path, device=device).eval().to(torch.bfloat16)
    grad = torch.randn(2, 64, device=device)
    got, want = frozen(ours), net(theirs)
    assert torch.allclose(got, want, atol=1e-4, rtol=1e-4)
    got.backward(grad)
    want.backward(grad)
    assert relative(ours.grad, theirs.grad) <= max(1e-4, bounds.gradient)
    assert not list(frozen.parameters())
    loaded = facegrad.IResNet(device=device)
    with pytest.raises(RuntimeError, match="no weights yet"):
        loaded(x)
    loaded.load_state_dict(torch.load(path))
    assert torch.allclose(loaded(x), got, atol=bounds.value)
    features = frozen.forward_multiscale(x)
    assert list(features) == list(LEVELS) and features["layer4"].shape[2:] == (7, 7)
    with pytest.raises(facegrad.FacegradError, match='the config says "r50"'):
        facegrad.iresnet50(path, device=device)
    with pytest.raises(facegrad.FacegradError, match='the config says "r100"'):
        facegrad.iresnet100(device=device).load_state_dict(torch.load(path))
    with pytest.raises(TypeError, match="IResNet\\(.backbone.pth.\\)"):
        facegrad.IResNet(object(), [3, 4, 14, 3])


def test_details_are_three_values(loss, photos):
    a, b = photos
    value, per_sample, mask = loss(torch.cat([a, torch.zeros_like(a)]), torch.cat([b, b]), return_details=True)
    assert mask.tolist() == [True, False] and mask.dtype == torch.bool
    assert per_sample.tolist() == pytest.approx([value.item(), 0])


def test_the_parts_of_the_method_are_there(loss, photos, weights):
    a, b = photos
    info, none = loss.detect_faces(torch.cat([b, torch.zeros_like(b)]))
    assert none is None and info["bbox"].shape == (4,) and info["kps"].shape == (5, 2) and info["bbox"].dtype.kind == "i"
    image = b[0].clone().requires_grad_()
    face = loss.crop_and_resize_face(image, info["bbox"])
    assert face.shape == (3, loss.face_size, loss.face_size)
    embedding = loss.extract_embedding(loss.preprocess_face(face))
    with torch.no_grad():
        want = weights[1](face[None] * 2 - 1)[0]
    assert torch.allclose(embedding, want, atol=1e-3, rtol=1e-3)
    embedding.sum().backward()
    assert image.grad.abs().max() > 0
    assert isinstance(loss.recognizer, facegrad.IResNet) and loss.to(torch.float16).eval() is loss
    # A box beyond the picture is mirrored, as the method pads.
    corner = loss.crop_and_resize_face(b[0], np.array([-30, -20, 60, 50]))
    assert corner.isfinite().all()
    with pytest.raises(ValueError, match="inside the image"):
        loss.crop_and_resize_face(b[0], [300, 300, 310, 310])


def test_levels_are_pytorchs(chain, weights, device, bounds):
    """Value and gradient of the weighted cosine distances, against eager PyTorch on the same crops."""
    path, net = weights
    config = {"face_align_mode": "kps", "levels": LEVELS, "face_loss_weight": 1.0}
    recogniser = facegrad.Recogniser(path, device=device)
    loss = facegrad.FaceLoss(config, recogniser=recogniser)
    images = chain["images"].clone().requires_grad_()
    value, report = loss(images, **arguments(chain))
    value.backward()
    # What one level is worth alone adds up to the whole.
    total, gradient = 0.0, torch.zeros_like(images)
    for at, (name, weight) in enumerate(LEVELS.items()):
        one = facegrad.FaceLoss({**config, "levels": {name: weight}}, recogniser=recogniser)
        alone = chain["images"].clone().requires_grad_()
        part, told = one(alone, **arguments(chain))
        part.backward()
        total, gradient = total + part.item(), gradient + alone.grad
        assert told.level_distances[0] == pytest.approx(report.level_distances[at], abs=bounds.value) if name != "embedding" else True
    assert value.item() == pytest.approx(total, rel=bounds.value)
    assert relative(images.grad, gradient) <= bounds.gradient
    plain, _ = facegrad.FaceLoss({**config, "levels": {"embedding": 1.0}}, recogniser=recogniser)(chain["images"], **arguments(chain))
    assert value.item() > plain.item()
    with pytest.raises(facegrad.FacegradError, match='no "layer5", but layer1, layer2'):
        facegrad.FaceLoss({"levels": {"layer5": 1}}, recogniser=recogniser)


def test_the_multi_level_loss_is_the_methods(loss, photos, weights, bounds):
    """Value and gradient against the method in eager PyTorch, on a box whose square is of whole pixels."""
    a, b = photos
    box = torch.tensor([[60.0, 40.0, 160.0, 140.0]])
    gen = b.clone().requires_grad_()
    total, layers, mask = loss.forward_multiscale(a, gen, return_details=True, boxes=box, reference_boxes=box)
    total.backward()
    assert mask.tolist() == [True] and list(layers) == list(LEVELS)
    assert total.item() == pytest.approx(sum(LEVELS[k] * v.item() for k, v in layers.items()), rel=bounds.value)

    def features(image):
        net, levels = weights[1], {}
        x = loss.preprocess_face(loss.crop_and_resize_face(image[0], box[0].tolist()))[None]
        x = net.prelu(net.bn1(net.conv1(x)))
        for name in list(LEVELS)[:4]:
            levels[name] = x = getattr(net, name)(x)
        levels["embedding"] = net.features(net.fc(torch.flatten(net.bn2(x), 1)))
        return levels

    mine = b.clone().requires_grad_()
    with torch.no_grad():
        reference = features(a)
    distances = {
        name: 1 - torch.cosine_similarity(reference[name].flatten(), level.flatten(), dim=0) for name, level in features(mine).items()
    }
    sum(LEVELS[name] * distance for name, distance in distances.items()).backward()
    for name, distance in distances.items():
        assert layers[name].item() == pytest.approx(distance.item(), abs=bounds.value), name
    assert relative(gen.grad, mine.grad) <= max(1e-4, bounds.gradient)
    own = {"layer3": 2.0}
    twice = loss.forward_multiscale(a, b, own, boxes=box, reference_boxes=box)
    assert twice.item() == pytest.approx(2 * layers["layer3"].item(), rel=bounds.value)
    # Faces that have to be found count as well, and a picture without one does not.
    value, _, mask = loss.forward_multiscale(torch.cat([a, a]), torch.cat([b, torch.zeros_like(b)]), return_details=True)
    assert value.item() > 0 and mask.tolist() == [True, False]


def test_levels_of_an_onnx_model_are_its_outputs(chain, weights, tmp_path, device, bounds):
    path, net = weights

    class Both(torch.nn.Module):
        def forward(self, x):
            x = net.prelu(net.bn1(net.conv1(x)))
            third = net.layer3(net.layer2(net.layer1(x)))
            return net.features(net.fc(torch.flatten(net.bn2(net.layer4(third)), 1))), third

    model, x = tmp_path / "both.onnx", torch.rand(1, 3, 112, 112, device=device)
    # The exporter traces, and where a GPU is pretended it would trace that.
    with _disable_current_modes():
        torch.onnx.export(
            Both().eval(), (x,), model, dynamo=False, input_names=["x"], output_names=["e", "third"],
            dynamic_axes={name: {0: "n"} for name in ("x", "e", "third")},
        )  # fmt: skip

    def run(recogniser, level):
        images = chain["images"].clone().requires_grad_()
        loss = facegrad.FaceLoss({"face_align_mode": "kps", "levels": {level: 0.3, "embedding": 1.0}}, recogniser=recogniser)
        value, report = loss(images, **arguments(chain))
        value.backward()
        return value.item(), report.level_distances, images.grad

    read = facegrad.Recogniser(model, device=device)
    ours, want = run(read, "third"), run(facegrad.Recogniser(path, device=device), "layer3")
    assert ours[0] == pytest.approx(want[0], rel=1e-4) and ours[1] == pytest.approx(want[1], abs=bounds.value)
    assert relative(ours[2], want[2]) <= max(1e-4, bounds.gradient)
    with pytest.raises(facegrad.FacegradError, match='no "layer3", but embedding, third'):
        run(read, "layer3")


def test_the_wrapper_takes_any_vae_and_diptychs(loss, root, photos, weights, caplog, device, bounds):
    a, b = photos
    with caplog.at_level(logging.INFO, "facegrad"):
        wrapper = facegrad.DifferentiableFaceLossWrapper(
            vae=Duck(), arcface_weights_path=weights[0], model_name=None, image_size=256, device=str(device), root=root
        )
    assert caplog.text.count("windows are not available") == 1
    plain = b.clone().requires_grad_()
    want = loss(a, plain)
    want.backward()
    diptych = (torch.cat([a, b], 3) * 2 - 1) * 0.5
    diptych.requires_grad_()
    value = wrapper(a, diptych)
    value.backward()
    assert value.item() == pytest.approx(want.item(), abs=1e-4)
    half = diptych.grad[..., 256:]
    assert diptych.grad[..., :256].abs().max() == 0 and torch.allclose(half, plain.grad, atol=bounds.value)
    assert wrapper(a, diptych.detach()[..., 256:]).item() == pytest.approx(want.item(), abs=1e-4)
    with pytest.raises(ValueError, match="image_size=200 where these are diptychs"):
        wrapper(a, torch.zeros(1, 3, 256, 400, device=device))
    assert isinstance(wrapper.face_loss, facegrad.DifferentiableFaceLoss)


@pytest.mark.host("arguments; test_evaluate has the score")
def test_the_score_takes_the_methods_arguments(root, photos):
    a, b = photos
    score = facegrad.ArcFaceLoss("my_pack", -1, (640, 640), str(root))
    with torch.no_grad():
        value, per_sample, mask = score(a, b, return_details=True)
    assert 0 < value.item() < 1 and mask.all() and per_sample.shape == (1,)
    assert facegrad.ArcFaceLoss(model_name="my_pack", ctx_id=0, root=root)(a, b).item() == pytest.approx(value.item(), abs=1e-6)
    one = score.extract_embedding(a[0])
    many, valid = score.extract_batch_embeddings(torch.cat([a, torch.zeros_like(a)]))
    assert one.shape == (score.embedding_dim,) and torch.equal(many[0], one) and valid.tolist() == [True, False]
    assert score.extract_embedding(torch.zeros(3, 64, 64)) is None
    assert score.extract_batch_embeddings(torch.zeros(1, 3, 64, 64)) == (None, None)
    wrapper = facegrad.FaceLossWrapper(Duck(), arcface_model_name="my_pack", image_size=256, arcface_root=root)
    latents = (torch.cat([a, b], 3) * 2 - 1) * 0.5
    assert wrapper(a, torch.zeros_like(latents), latents, torch.tensor([0.3])).item() == pytest.approx(value.item(), abs=1e-3)
    with pytest.raises(TypeError, match="`root` is called `arcface_root`"):
        facegrad.FaceLossWrapper(Duck(), "my_pack", root=root)
    with pytest.raises(TypeError, match="the folder of the models is `root`"):
        facegrad.ArcFaceLoss("my_pack", str(root))
    with pytest.raises(TypeError, match="give one of them"):
        facegrad.ArcFaceLoss("my_pack", -1, root=root, device="cpu")
    with pytest.raises(FileNotFoundError, match="or a folder with a detector's"):
        facegrad.ArcFaceLoss("no_such_pack", root=root)


def test_a_pair_is_one_canvas(data, photos, device):
    wide = torch.cat([photos[0], photos[1]], 3)
    path = data / "models/det_500m.onnx"
    pair = facegrad.Detector(path, det_sizes=[(640, 480)], device=device)
    assert "sizes [640x480]" in pair.description and len(pair.detect(wide)[0]) == 2
    loss = facegrad.ArcFaceLoss.__init__  # the signature's default is a pair too
    assert loss.__defaults__[2] == (640, 640)
    onnxruntime = pytest.importorskip("onnxruntime")
    torchs = facegrad.Detector(path, det_sizes=[(640, 480)], engine="torch", device=device)
    assert onnxruntime and torchs.detect(wide)[0][0].bbox == pytest.approx(pair.detect(wide)[0][0].bbox, abs=0.5)
    with pytest.raises(facegrad.FacegradError, match="multiples of 32"):
        facegrad.Detector(path, det_sizes=[(640, 470)], device=device)
    with pytest.raises(facegrad.FacegradError, match=r"a pair \[width, height\]"):
        facegrad.Detector(path, det_sizes=["640x480"], device=device)


def test_unusable_landmarks_fall_back_to_the_detections_box(root, weights, photos, device):
    a, b = photos
    loss = facegrad.DifferentiableFaceLoss(None, weights[0], str(device), root=root, align_mode="kps")
    gen = b.clone().requires_grad_()
    same = torch.full((1, 5, 2), 7.0)
    details = loss(a, gen, return_details=True, landmarks=same, ref_landmarks=same)
    details.loss.backward()
    sample = details.report.samples[0]
    assert details.mask.all() and sample.alignment == facegrad.Alignment.BBOX_FALLBACK and sample.located == facegrad.Located.DETECTED
    assert sample.bbox is not None and gen.grad.abs().max() > 0


def config(root, weights, **keys):
    return {"arcface_root": str(root), "arcface_weights": str(weights[0]), "arcface_model": None, "prediction": {"kind": "sample"}, **keys}


def test_every_key_of_the_yaml_counts(root, weights, photos, tmp_path, device, bounds):
    a, b = photos
    latents = (b * 2 - 1) * 0.5

    def run(step=None, **keys):
        path = tmp_path / "train.yaml"
        keys = {
            key: value
            for key, value in config(root, weights, use_face_loss=True, face_loss_weight=1.0, **keys).items()
            if value is not None
        }
        path.write_text(yaml.safe_dump({"model": keys, "lr": 1}, sort_keys=False))
        face = facegrad.FaceIdentityLoss(path, vae=Duck(), device=device)
        prediction = latents.clone().requires_grad_()
        value, report = face(prediction=prediction, t=[0.4], references=a)
        return value, report, prediction

    plain, report, prediction = run()
    plain.backward()
    assert report.counted == 1 and prediction.grad.abs().max() > 0
    weighted, *_ = run(use_t_aware_weighting=True)
    assert weighted.item() == pytest.approx(0.6 * plain.item(), rel=bounds.value)
    several, report, _ = run(use_multiscale_face_loss=True)
    assert several.item() == pytest.approx(sum(w * d for w, d in zip(LEVELS.values(), report.level_distances)), rel=bounds.value)
    two = {"layer2": 0.5, "embedding": 2.0}
    value, report, _ = run(use_multiscale_face_loss=True, multiscale_layer_weights=two)
    assert value.item() == pytest.approx(sum(w * d for w, d in zip(two.values(), report.level_distances)), rel=bounds.value)
    off, *_ = run(use_multiscale_face_loss=False, multiscale_layer_weights=two)
    assert off.item() == pytest.approx(plain.item(), rel=bounds.value / 10)
    for bad, text in [
        ({"use_multiscale_face_los": True}, "did you mean `use_multiscale_face_loss`"),
        ({"use_t_aware_weighting": "yes"}, "expected true or false"),
        ({"use_t_aware_weighting": True, "time_weight": "one_minus_t_squared"}, "leave one of them out"),
        ({"multiscale_layer_weights": [1, 2]}, "expected weights by level"),
    ]:
        with pytest.raises(ValueError, match=text):
            run(**bad)


def test_dtypes_by_their_other_names(device):
    vae = AutoencoderKL(**SMALL).eval().to(device)
    for dtype in (torch.bfloat16, "bfloat16", "bf16"):
        assert "BFloat16" in facegrad.Vae(vae, dtype=dtype).description
    with pytest.raises(facegrad.FacegradError, match="unknown variant `int8`"):
        facegrad.Vae(vae, dtype="int8")


def test_checkpoints_as_people_have_them(weights, tmp_path, device):
    torch.manual_seed(0)
    vae = AutoencoderKL(**SMALL).eval().to(device)
    state, z = vae.state_dict(), torch.randn(1, 4, 8, 8).to(device)
    with torch.no_grad():
        want = (vae.decode(z).sample + 1) / 2

    def under(prefix, tensors=state):
        return {prefix + name: tensor for name, tensor in tensors.items()}

    path = tmp_path / "weights.ckpt"
    for content in (
        {"epoch": 1, "state_dict": state}, {"state_dict": under("first_stage_model.")}, {"model": state}, {"ema": under("module.")}, under("_orig_mod."),
    ):  # fmt: skip
        torch.save(content, path)
        assert torch.allclose(facegrad.Vae(path, device=device).decode(z), want, atol=1e-5)
    torch.save({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, path)
    with pytest.raises(facegrad.FacegradError, match="got lora_unet_x.lora_up.weight"):
        facegrad.Vae(path, device=device)
    _, net = weights
    x, names = torch.rand(1, 3, 112, 112).to(device), net.state_dict()
    with torch.no_grad():
        embedding = torch.nn.functional.normalize(net((x - 0.5) / 0.5))
    for content in (
        {"epoch": 1, "state_dict_backbone": names, "state_dict_softmax_fc": {"weight": torch.rand(9, 64)}, "state_optimizer": {"lr": 1}},
        {"state_dict": {**under("features.module.", names), "fc.weight": torch.rand(3, 9)}}, under("module._orig_mod.", names),
        {"state_dict_ema": names}, {"net": under("module.", names)},
    ):  # fmt: skip
        torch.save(content, path)
        assert torch.allclose(facegrad.Recogniser(path, device=device).embed(x), embedding, atol=1e-4)
    torch.save({"gan.weight": torch.zeros(3)}, path)
    with pytest.raises(facegrad.FacegradError, match="the file has gan.weight"):
        facegrad.Recogniser(path, device=device)


#: The method's document, its code and its YAML as they stand there; `src.models.arcface_loss` is where they import from.
METHOD_1 = """
from src.models.arcface_loss import DifferentiableFaceLossWrapper

face_loss_wrapper = DifferentiableFaceLossWrapper(
    vae=vae,
    arcface_weights_path="path/to/backbone.pth",
    model_name="r50",
    device="cuda",
    root="/path/to/insightface/models",
)

def training_step(batch):
    ref_images = batch["ref_images"]
    gen_latents = model(...)
    face_loss = face_loss_wrapper(ref_images, gen_latents)
    total_loss = mse_loss + 0.1 * face_loss
    total_loss.backward()
"""
METHOD_2 = """
from src.models.arcface_loss import DifferentiableFaceLoss

face_loss = DifferentiableFaceLoss(
    model_name="r50",
    pretrained_path="path/to/backbone.pth",
    device="cuda",
)
loss = face_loss(
    ref_images=ref_images,
    gen_images=gen_images,
)
"""
METHOD_3 = """
from src.models.arcface_loss import ArcFaceLoss

arcface = ArcFaceLoss(
    model_name="buffalo_l",
    root="/custom/path",
)
with torch.no_grad():
    loss = arcface(ref_images, gen_images)
    print(f"Face similarity: {1 - loss.item():.3f}")
"""


@pytest.mark.host("the document's own text")
def test_the_documents_snippets_run(root, photos, weights, tmp_path, monkeypatch, capsys):
    """Only the places of files and the device are this machine's; everything else is the document's own text."""
    module = types.ModuleType("src.models.arcface_loss")
    for name in facegrad.__all__:
        setattr(module, name, getattr(facegrad, name))
    for name in ("src", "src.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "src.models.arcface_loss", module)
    # A network with r50's depth, and the packs by their names.
    home = tmp_path / "insightface"
    (home / "models/buffalo_l").mkdir(parents=True)
    shutil.copy(root / "models/my_pack/a_finder.onnx", home / "models/buffalo_l/det_10g.onnx")
    shutil.copy(root / "models/my_pack/b_who.onnx", home / "models/buffalo_l/w600k_r50.onnx")
    torch.save(iresnet.seeded((3, 4, 14, 3), (8, 12, 16, 24), 32).state_dict(), tmp_path / "backbone.pth")
    monkeypatch.setattr(facegrad.packs, "HOME", str(home))
    places = {
        "path/to/backbone.pth": str(tmp_path / "backbone.pth"), "/path/to/insightface/models": str(home / "models"), "/custom/path": str(home),
        '"cuda"': '"cpu"',
    }  # fmt: skip
    a, b = photos
    latents = ((b * 2 - 1) * 0.5).requires_grad_()
    names = {
        "torch": torch, "vae": Duck(), "model": lambda _: latents, "mse_loss": latents.square().mean(), "ref_images": a,
        "gen_images": b.clone().requires_grad_(),
    }  # fmt: skip
    for snippet in (METHOD_1 + "training_step({'ref_images': ref_images})", METHOD_2 + "loss.backward()", METHOD_3):
        for old, new in places.items():
            snippet = snippet.replace(old, new)
        exec(snippet, names)
    assert latents.grad.abs().max() > 0 and names["gen_images"].grad.abs().max() > 0
    assert re.search(r"Face similarity: 0\.\d+", capsys.readouterr().out)


@pytest.mark.host("the README's own text")
def test_the_ten_lines_of_the_readme_run(data, tmp_path, monkeypatch, capsys):
    (tmp_path / ".insightface").symlink_to(FIXTURES / "evaluate")
    for name, photo in (("person.jpg", "C_obama_1.jpg"), ("generated.jpg", "C_obama_2.jpg")):
        shutil.copy(data / "photos" / photo, tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    exec(compile(lines, "README.md", "exec"), {})
    assert "counted: [True]" in capsys.readouterr().out


@pytest.mark.host("keys alone")
def test_a_misspelt_key_of_a_dict_is_named_before_models_are_looked_for(tmp_path):
    with pytest.raises(ValueError, match="unknown key `face_los_weight` \\(did you mean `face_loss_weight`"):
        facegrad.FaceIdentityLoss({"face_los_weight": 0.1}, root=tmp_path)


def test_time_weights_of_a_sample_do_not_depend_on_its_batch(root, weights, photos, device, bounds):
    """The method weights a batch by the mean noise level; a weight per sample is the same for any batch."""
    a, b = photos
    keys = config(root, weights, use_t_aware_weighting=True, face_loss_weight=1.0, prediction={"kind": "sample"})
    face = facegrad.FaceIdentityLoss(keys, vae=lambda x0: (x0 + 1) / 2, device=device)

    def run(times):
        prediction = (b * 2 - 1).repeat(len(times), 1, 1, 1)
        return face(prediction=prediction, t=times, references=a.repeat(len(times), 1, 1, 1))[0].item()

    alone = {t: run([t]) for t in (0.1, 0.8)}
    assert alone[0.8] / alone[0.1] == pytest.approx(0.2 / 0.9, rel=1e-4)
    assert run([0.1, 0.8]) == pytest.approx(sum(alone.values()) / 2, rel=bounds.value)
