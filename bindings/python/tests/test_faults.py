"""What users saw, each once: a test is named after it. Pictures have a file of their own, ``test_pictures.py``."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from email.utils import formatdate
from functools import partial
from pathlib import Path
from time import time

import numpy as np
import onnx
import pytest
import torch
from conftest import FIXTURES, arguments
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from test_download import server, source  # noqa: F401
from test_step import arguments as step_arguments
from test_step import tensors, vae  # noqa: F401

import facegrad
from facegrad import packs
from facegrad.__main__ import main
from facegrad.commands.doctor import _random_iresnet
from facegrad.download import DownloadError, fetch
from facegrad.trainers.section import read_section

# Gradients in half precision


@pytest.fixture(scope="module")
def face(recogniser, vae):  # noqa: F811
    """A loss of a weight as trainers set it, small enough that most of its gradient is below float16's least number."""
    config = {"face_align_mode": "kps", "face_loss_weight": 1e-4, "latent_format": {"custom": {"scale": 0.7, "shift": 0.1}}}
    return facegrad.FaceIdentityLoss(config, vae=vae("kl"), detector=False, recogniser=recogniser)


def scaled_gradient(loss, prediction, scale):
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction)
    (value * scale).backward()
    assert prediction.grad.dtype == prediction.dtype
    return prediction.grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1024.0, 65536.0, 2.0**20])
def test_a_half_prediction_under_gradscaler_has_autograds_own_gradient(face, tensors, chain, bounds, dtype, scale):  # noqa: F811
    given = step_arguments("flow", tensors, chain)
    prediction = given.pop("prediction").detach().to(dtype)
    ours = scaled_gradient(lambda p: face(prediction=p, **given)[0], prediction, scale)
    true = scaled_gradient(lambda p: face(prediction=p.float(), **given)[0], prediction, scale)
    assert true.isfinite().all() and float((true != 0).float().mean()) > 0.2
    assert bounds.same(ours, true)


def test_half_images_have_autograds_own_gradient(loss, chain, bounds):
    images = chain["images"].half()
    true = scaled_gradient(lambda x: loss(x.float(), **arguments(chain))[0] * 1e-4, images, 65536.0)
    ours = scaled_gradient(lambda x: loss(x, **arguments(chain))[0] * 1e-4, images, 65536.0)
    assert float((true != 0).float().mean()) > 0.02 and bounds.same(ours, true)


def test_a_node_of_half_numbers_has_a_gradient_in_float32(loss, chain, device, bounds):
    def gradient(images):
        graph = facegrad.Graph(device)
        node = graph.input(images, needs_gradient=True)
        value, _ = graph.face_loss(node, loss, **arguments(chain))
        graph.backward(value, torch.tensor(1e-6, device=device))
        return graph.gradient(node)

    assert bounds.same(gradient(chain["images"].half()), gradient(chain["images"].half().float()))


# torch.compile around a step


def test_a_compiled_step_breaks_its_graph_and_is_compiled_once(face, tensors, chain, device, bounds, request):  # noqa: F811
    from torch._dynamo.utils import counters

    given = step_arguments("flow", tensors, chain)
    net = torch.nn.Conv2d(given["prediction"].shape[1], given["prediction"].shape[1], 1, device=device)

    def step(x, number):
        prediction = net(x)
        value, report = face(prediction=prediction, step=number, **{k: v for k, v in given.items() if k != "prediction"})
        return 1e4 * value + prediction.square().mean() + report.counted

    x = given["prediction"].detach()
    want = step(x, 1)
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager")
    for number in (1, 2, 3):
        counters.clear()
        net.zero_grad()
        value = compiled(x, number)
        value.backward()
        assert value.item() == pytest.approx(want.item(), rel=bounds.value / 10)
        assert net.weight.grad.abs().sum() > 0
    # The number of the step became a variable in the second call; nothing is compiled in the third.
    assert not counters["stats"].get("unique_graphs"), counters["stats"]
    torch._dynamo.reset()


@pytest.mark.host("a process of its own")
def test_facegrad_does_not_import_the_compiler():
    code = "import facegrad, sys; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Pictures in another range


RANGES = {
    "in [-1, 1]": (lambda x: 2 * x - 1, r"\(x \+ 1\) / 2"), "from 0 to 255": (lambda x: 255 * x, "x / 255"),
    "divided by 255 twice": (lambda x: x / 255, "again"), "normalised as for ImageNet": (lambda x: (x - 0.45) / 0.225, "scale them"),
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
def test_references_in_another_range_are_warned_of_once(recogniser, chain, caplog, name):
    change, advice = RANGES[name]
    given = arguments(chain)
    changed = given | {"references": change(given["references"])}
    for call in (
        lambda loss: loss(chain["images"], **changed),
        lambda loss: loss.set_reference("anna", changed["references"], given["reference_landmarks"]),
    ):
        loss = facegrad.FaceLoss({"face_align_mode": "kps"}, recogniser=recogniser)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "facegrad"):
            loss(chain["images"], **given)
            assert not caplog.records
            call(loss)
            call(loss)
        (record,) = (record for record in caplog.records if "came, where RGB in [0, 1]" in record.message)
        least, largest = changed["references"].min(), changed["references"].max()
        assert record.message.startswith("reference") and f"from {least:.3f} to {largest:.3f}" in record.message
        assert re.search(advice, record.message)


# Downloads


@pytest.mark.host("files, downloads and processes")
def test_a_server_that_asks_to_wait_is_waited_for(server, tmp_path, monkeypatch, caplog):  # noqa: F811
    waits = []
    monkeypatch.setattr("facegrad.download.time.sleep", waits.append)
    wanted = source(server, "/model.onnx", b"model" * 1000)
    server.refusals = [(429, "7"), (503, formatdate(time() + 100, usegmt=True)), (429, None), (429, "soon")]
    fetch(wanted, tmp_path / "model.part", progress=False)
    assert (tmp_path / "model.part").read_bytes() == b"model" * 1000
    assert waits[1] == 7 and 90 < waits[2] <= 100 and 0 < waits[3] < 10 and 0 < waits[4] < 20, waits
    assert "429" in caplog.text
    server.refusals = [(429, "1000000")] * 9
    with pytest.raises(DownloadError, match="429"):
        fetch(wanted, tmp_path / "other.part", progress=False)
    assert max(waits) <= 600, "no server is waited for for days"


@pytest.fixture()
def pack(server, tmp_path, monkeypatch):  # noqa: F811
    """A pack of two small files whose hashes are known, and where it lies."""
    files = {"det_500m.onnx": b"detector" * 100, "w600k_mbf.onnx": b"recogniser" * 100}
    sources = tuple(source(server, f"/{name}", data) for name, data in files.items())
    known = packs.Pack("buffalo_sc", *files, "a licence", sources, tuple(s.sha256 for s in sources))
    monkeypatch.setitem(packs.PACKS, "buffalo_sc", known)
    for given in sources:
        monkeypatch.setitem(packs.KNOWN_FILES, given.sha256, (Path(given.url).name, "a licence"))
    assert main(["download", "buffalo_sc", "--root", str(tmp_path), "--quiet"]) == 0
    return tmp_path / "models/buffalo_sc", files


@pytest.mark.host("files, downloads and processes")
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_model_is_downloaded_again_and_doctor_fails_on_it(pack, server, tmp_path, capfd, how):  # noqa: F811
    folder, files = pack
    model = folder / "det_500m.onnx"
    data = files[model.name]
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    model.write_bytes({"cut": data[:-9], "flipped": data[:50] + b"X" + data[51:], "empty": b""}[how])
    assert main(["doctor", "--root", str(tmp_path)]) == 1
    out = capfd.readouterr().out
    assert "FAIL  models" in out and str(model) in out and "download buffalo_s" in out
    asked = len(server.requests)
    assert main(["download", "buffalo_sc", "--root", str(tmp_path), "--quiet"]) == 0
    assert len(server.requests) > asked and model.read_bytes() == data
    assert main(["doctor", "--root", str(tmp_path)]) == 0


@pytest.mark.host("files, downloads and processes")
@pytest.mark.parametrize("how", ["pipe", "folder", "lost link"])
def test_doctor_fails_on_a_model_that_is_no_file(pack, tmp_path, capfd, how):
    model = pack[0] / "det_500m.onnx"
    model.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "lost link": lambda path: os.symlink("nowhere", path)}[how](model)
    assert main(["doctor", "--root", str(tmp_path)]) == 1
    out = capfd.readouterr().out
    assert f"{model}: expected a file" in out


@pytest.mark.host("files, downloads and processes")
def test_what_is_left_of_another_download_is_thrown_away(server, tmp_path):  # noqa: F811
    wanted = source(server, "/model.onnx", b"model" * 1000)
    (tmp_path / "model.part").write_bytes(b"something else")
    fetch(wanted, tmp_path / "model.part", progress=False)
    assert (tmp_path / "model.part").read_bytes() == b"model" * 1000


@pytest.mark.host("files, downloads and processes")
def test_a_pack_in_a_linked_folder_is_repaired_where_it_is(pack, server, tmp_path):  # noqa: F811
    folder, files = pack
    away = tmp_path / "another disk"
    shutil.move(folder, away)
    folder.symlink_to(away, target_is_directory=True)
    (away / "det_500m.onnx").write_bytes(b"damaged")
    assert main(["download", "buffalo_sc", "--root", str(tmp_path), "--quiet"]) == 0
    assert (away / "det_500m.onnx").read_bytes() == files["det_500m.onnx"] and folder.is_symlink()


# Engines


def recogniser_onnx(path, nodes, ir_version=8):
    """Pools a picture to a row of three numbers by way of ``nodes``, from x to y."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32), "w")
    graph = helper.make_graph(
        [*nodes, helper.make_node("GlobalAveragePool", ["y"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["e"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["n", 64])], [weight],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir_version), path)
    return path


@pytest.fixture(scope="module")
def detector_onnx():
    return Path(__file__).resolve().parents[3] / "examples/demo_assets/detector.onnx"


def test_the_engine_that_can_runs_a_model_and_says_so(tmp_path, detector_onnx, caplog, device):
    pytest.importorskip("onnxruntime")
    # libtorch's engine does not ask for the version of the format, ONNX Runtime does.
    evaluator = partial(facegrad.Evaluator, detector_onnx, device=device)
    new = recogniser_onnx(tmp_path / "new.onnx", [helper.make_node("Relu", ["x"], ["y"])], ir_version=99)
    with caplog.at_level(logging.WARNING, "facegrad"):
        text = evaluator(new).description["recogniser"]
    assert "libtorch" in text and "ONNX Runtime refuses the model" in text
    assert "ONNX Runtime refuses the model" in caplog.text
    with pytest.raises(facegrad.FacegradError, match='libtorch may run the file.*"auto"'):
        evaluator(new, engine="ort")
    # The other way round.
    odd = recogniser_onnx(tmp_path / "odd.onnx", [helper.make_node("LRN", ["x"], ["y"], size=3)])
    assert "ONNX Runtime" in evaluator(odd).description["recogniser"]
    with pytest.raises(facegrad.FacegradError, match='LRN.*ONNX Runtime may run the file.*"auto"'):
        evaluator(odd, engine="torch")
    with pytest.raises(facegrad.FacegradError, match="LRN.*where no gradient is needed"):
        facegrad.Recogniser(odd, device=device)
    # Neither.
    neither = recogniser_onnx(tmp_path / "neither.onnx", [helper.make_node("LRN", ["x"], ["y"], size=3)], ir_version=99)
    with pytest.raises(facegrad.FacegradError, match="the other engine refuses it too"):
        evaluator(neither)


# Paths


def test_names_of_any_bytes_and_linked_folders_are_paths_like_any_other(tmp_path, chain, detector_onnx, recogniser, device, bounds):
    away = tmp_path / "away"
    away.mkdir()
    link = Path(os.fsdecode(os.fsencode(tmp_path) + b"/l\xffnk"))
    link.symlink_to(away, target_is_directory=True)
    odd = os.fsdecode(b"m\xf6del\x80")

    def put(source, suffix):
        target = link / (odd + suffix)
        shutil.copy(source, target)
        return target

    weights, detector = put(FIXTURES / "nets/small.safetensors", ".safetensors"), put(detector_onnx, ".onnx")
    decoder = put(FIXTURES / "step/tiny.safetensors", ".safetensors2")
    for path in (weights, str(weights), os.fsencode(weights)):
        assert facegrad.Recogniser(path, device=device).dim == recogniser.dim
    for engine in ("ort", "torch"):
        assert facegrad.Detector(os.fsencode(detector), engine=engine, device=device).detect(chain["images"])
    for config in (
        {"arcface_weights": weights, "detector": detector, "vae": decoder},
        {"arcface_weights": weights, "detector": {"path": detector}},
    ):
        loss = facegrad.FaceLoss({"face_align_mode": "kps", **config}, device=device)
        want, _ = loss(chain["images"], **arguments(chain))
        state = link / (odd + ".state")
        loss.save(state)
        loss.restore(os.fsencode(state))
        assert (away / state.name).is_file() and bounds.same(loss(chain["images"], **arguments(chain))[0], want)
    with pytest.raises(facegrad.FacegradError, match="no such file|No such file"):
        facegrad.Recogniser(link / os.fsdecode(b"\xff.pth"), device=device)
    (link / (odd + ".json")).write_text('{"face_align_mode": "kps"}')
    facegrad.FaceIdentityLoss(link / (odd + ".json"), detector=False, recogniser=os.fsencode(weights), device=device)


# Configurations in files


@pytest.mark.host("files, downloads and processes")
@pytest.mark.parametrize("name", ["train.json", "train.yaml"])
@pytest.mark.parametrize("read", [facegrad.FaceIdentityLoss, read_section])
def test_a_file_that_is_no_configuration_is_a_sentence_with_its_name(tmp_path, read, name):
    file = tmp_path / name
    shapes = {
        b"\xff\xfe{}": "UTF-8",
        b'{"a": ': "text that breaks at",
        b"[1, 2]": "mapping of keys, got list",
        b"": "text that breaks at" if name.endswith("json") else "mapping of keys, got an empty file",
        b"[" * 200_000: "too many brackets",
        b" " * (1 << 20) + b"{}": "at most 1048576",
    }
    for content, words in shapes.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(file)) + ".*" + words):
            read(file)


@pytest.mark.host("files, downloads and processes")
@pytest.mark.parametrize("name", ["train.json", "train.yaml"])
@pytest.mark.parametrize("read", [facegrad.FaceIdentityLoss, read_section])
def test_a_configuration_that_is_a_pipe_was_waited_for(tmp_path, read, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="expected a file, got a folder, a pipe or a device"):
        read(tmp_path / name)
    with pytest.raises(ValueError, match="expected a file"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / ("no " + name))


# Small files of networks that ask for much


def refusal(read, arrays, path):
    save_file({name: tensor.contiguous() for name, tensor in arrays.items()}, path)
    with pytest.raises(facegrad.FacegradError) as error:
        read(path)
    assert error.value.status == 102, error.value
    return str(error.value)


def test_a_vae_of_a_hundred_enlargements_counted_its_scale_beyond_64_bits(tmp_path, device):
    sizes = [(1, 4, 3, 3), *[(1, 1, 1, 1)] * 100, (3, 1, 3, 3)]
    arrays = {f"decoder.layers.{at}.weight": torch.ones(size) for at, size in enumerate(sizes)}
    text = refusal(
        lambda path: facegrad.Vae(path, device=device).decode(torch.zeros(1, 4, 2, 2, device=device)), arrays, tmp_path / "tiny.safetensors"
    )
    assert "more than 256 image pixels of a latent pixel" in text


def test_a_vae_with_a_layer_of_a_hundred_thousand_channels_is_refused_before_it_decodes(tmp_path, device):
    sizes = [(100_000, 4, 1, 1), (3, 100_000, 1, 1)]
    arrays = {f"decoder.layers.{at}.weight": torch.ones(size) for at, size in enumerate(sizes)}
    text = refusal(
        lambda path: facegrad.Vae(path, device=device).decode(torch.zeros(1, 4, 2, 2, device=device)), arrays, tmp_path / "tiny.safetensors"
    )
    assert "more than 1024 numbers for every pixel" in text


def test_a_recogniser_for_pictures_of_6400_pixels_is_refused_before_it_embeds(tmp_path, device):
    state = _random_iresnet(torch.Generator().manual_seed(0))
    state["fc.weight"] = torch.zeros(128, 8 * 400 * 400, dtype=torch.uint8)
    assert "6400x6400" in refusal(lambda path: facegrad.Recogniser(path, device=device), state, tmp_path / "large.safetensors")


def test_a_recogniser_whose_slopes_have_another_shape_is_refused_when_it_is_loaded(tmp_path, device):
    state = _random_iresnet(torch.Generator().manual_seed(0))
    state["layer3.0.prelu.weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(facegrad.FacegradError, match=r"layer3.0.prelu.weight: expected \[8\], got \[2, 2\]"):
        facegrad.Recogniser(tmp_path / "odd.safetensors", device=device)


def test_a_file_of_names_of_a_megabyte_made_an_error_of_megabytes(tmp_path, device):
    arrays = {f"{at}" + "x" * (1 << 20): torch.zeros(1) for at in range(8)}
    save_file(arrays, tmp_path / "names.safetensors")
    for read in (facegrad.Recogniser, facegrad.Vae):
        with pytest.raises(facegrad.FacegradError) as error:
            read(tmp_path / "names.safetensors", device=device)
        assert len(str(error.value)) < 4000


# A TorchScript file is a program


def test_a_torchscript_vae_runs_only_where_it_is_asked_for_by_name(tmp_path, caplog, device):
    class Up(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.interpolate(x[:, :3], scale_factor=8.0)

    path = tmp_path / os.fsdecode(b"vae\xff.pt")
    torch.jit.script(Up()).save(tmp_path / "vae.pt")
    os.rename(tmp_path / "vae.pt", path)
    with pytest.raises(facegrad.FacegradError, match='runs code.*set `family` to "torchscript"'):
        facegrad.Vae(path, config={"latent_channels": 4}, device=device)
    with caplog.at_level(logging.WARNING, "facegrad"):
        decoder = facegrad.Vae(path, config={"latent_channels": 4, "family": "torchscript"}, device=device)
    assert "runs code" in caplog.text and decoder.decode(torch.zeros(1, 4, 2, 2, device=device)).shape == (1, 3, 16, 16)
