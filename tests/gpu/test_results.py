"""What the library computes on the device, against the CPU. On the CPU itself the other side goes by other code: the
decoder's blocks are computed again in the backward pass, one sample at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from world import ASSETS, CASES, SIDE, Case, cosine, off, pictures

import facegrad

OTHER = {"recompute": "blocks", "slicing": True}


@pytest.mark.parametrize("name", list(CASES))
def test_a_fused_step_of_every_family_and_packing(name: str, device: torch.device) -> None:
    case = Case(name)
    value, gradient, report = case.step(case.loss(device), device)
    want, want_gradient, _ = case.step(case.loss("cpu", **OTHER), "cpu")
    assert report.counted == 2 and value == pytest.approx(want, rel=1e-4)
    assert off(gradient, want_gradient) <= 1e-3


@pytest.mark.parametrize("vae", [{"recompute": "blocks"}, {"slicing": True}])
def test_memory_policies(vae: dict[str, Any], device: torch.device) -> None:
    case = Case("kl16 in FLUX's tokens")
    value, gradient, _ = case.step(case.loss(device, **vae), device)
    want, want_gradient, _ = case.step(case.loss(device), device)
    assert value == pytest.approx(want, rel=1e-5) and off(gradient, want_gradient) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    # The recogniser stays in float32; the decoder computes in the module's dtype.
    case = Case("kl16 in FLUX's tokens")
    value, gradient, report = case.step(case.loss(device, dtype), device, dtype)
    want, want_gradient, _ = case.step(case.loss("cpu"), "cpu")
    assert report.counted == 2 and value == pytest.approx(want, rel=2e-2)
    assert cosine(gradient, want_gradient) >= 0.98


@pytest.mark.parametrize("statistics", ["exact", "cached", "window", "predicted"])
def test_windows(statistics: str, device: torch.device) -> None:
    case = Case("kl16 in FLUX's tokens", more={"decode": "window", "norm_stats": statistics})
    ids = {"sample_ids": ["a", "b"]}
    ours, theirs = case.loss(device), case.loss("cpu", recompute="blocks")
    for expected in ("first", "again"):
        value, gradient, report = case.step(ours, device, **ids)
        want, want_gradient, wanted = case.step(theirs, "cpu", **ids)
        assert [s.decoded for s in report.samples] == [s.decoded for s in wanted.samples], expected
        assert value == pytest.approx(want, rel=1e-4) and off(gradient, want_gradient) <= 1e-3, expected


def test_a_decoder_that_is_a_program(device: torch.device, tmp_path: Path) -> None:
    class Up(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(torch.tanh(z[:, :3]), scale_factor=4.0, mode="bilinear")

    torch.jit.script(Up()).save(tmp_path / "vae.pt")
    case, found = Case("tiny", more={"latent_format": "none"}), []
    for where in (device, "cpu"):
        decoder = facegrad.Vae(tmp_path / "vae.pt", config={"latent_channels": 4, "family": "torchscript"}, device=where)
        recogniser = facegrad.Recogniser(ASSETS / "recogniser.safetensors", device=where)
        found.append(case.step(facegrad.FaceIdentityLoss(case.config, vae=decoder, detector=False, recogniser=recogniser), where))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4) and off(found[0][1], found[1][1]) <= 1e-3


def test_an_audit_and_a_limited_gradient(device: torch.device) -> None:
    case = Case("kl16 in FLUX's tokens", more={"decode": "window", "norm_stats": "exact", "audit_every": 1, "gradient_limit": 1.0})
    value, gradient, report = case.step(case.loss(device), device, gradient_norm=1e-6)
    want, want_gradient, _ = case.step(case.loss("cpu", **OTHER), "cpu", gradient_norm=1e-6)
    assert value == pytest.approx(want, rel=1e-4) and off(gradient, want_gradient) <= 1e-3
    assert gradient.norm().item() == pytest.approx(1e-6, rel=1e-3)


def test_images_with_a_detector(device: torch.device) -> None:
    images, _, _ = pictures(3)
    references, _, _ = pictures(3, size=160, first=3)
    sides = []
    for where in (device, "cpu"):
        detector = facegrad.Detector(ASSETS / "detector.onnx", device=where)
        recogniser = facegrad.Recogniser(ASSETS / "recogniser.safetensors", device=where)
        loss = facegrad.FaceLoss({"face_align_mode": "kps"}, detector=detector, recogniser=recogniser)
        leaf = images.to(where, copy=True).requires_grad_()
        value, report = loss(leaf, references.to(where))
        value.backward()
        assert report.counted == 3 and leaf.grad is not None
        sides.append((value.item(), leaf.grad.cpu()))
    assert sides[0][0] == pytest.approx(sides[1][0], rel=1e-3)
    assert off(sides[0][1], sides[1][1]) <= 2e-2  # A landmark that moves by a hundredth of a pixel moves the crop.


@pytest.mark.parametrize("engine", ["torch", "ort"])
def test_the_evaluator_on_both_engines(engine: str, device: torch.device) -> None:
    if engine == "ort":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    images, points, _ = pictures(3)
    found = []
    for where, how in ((device, engine), ("cpu", "torch")):
        judge = facegrad.Evaluator(
            ASSETS / "detector.onnx", {"path": str(ASSETS / "judge.onnx")}, device=where, det_sizes=(128,), engine=how
        )
        judge.set_reference("a", images[:1].to(where))
        told = judge.compare(images.to(where), reference_ids=["a"] * 3)
        found.append((judge.faces((images * 255).round().byte()), [s.similarity for s in told.samples]))
    assert found[0][1][0] == pytest.approx(1.0, abs=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], abs=2e-3)
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        assert len(ours) == len(theirs) >= 1
        assert cosine(ours[0].embedding, theirs[0].embedding) >= 0.9999


def test_registered_references_and_the_cache(device: torch.device) -> None:
    case = Case("tiny", more={"reference_cache": 1})
    loss = case.loss(device)
    first = case.step(loss, device)
    assert case.step(loss, device)[0] == pytest.approx(first[0], rel=1e-5)
    loss.set_reference("one", case.told["references"][:1].to(device), case.told["landmarks"][:1])
    loss.set_reference("two", case.told["references"][1:].to(device), case.told["landmarks"][1:])
    prediction = case.prediction.to(device, copy=True).requires_grad_()
    value, _ = loss(
        prediction=prediction, x_t=case.x_t.to(device), **case.given, landmarks=case.told["landmarks"], reference_ids=["one", "two"]
    )
    assert value.item() == pytest.approx(first[0], rel=1e-5)


def test_save_and_restore(device: torch.device, tmp_path: Path) -> None:
    case = Case("kl16 in FLUX's tokens", more={"decode": "window", "norm_stats": "cached"})
    ids = {"sample_ids": ["a", "b"]}
    loss, other = case.loss(device), case.loss(device)
    case.step(loss, device, **ids)
    loss.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    ours, theirs = case.step(loss, device, **ids), case.step(other, device, **ids)
    assert [s.decoded for s in theirs[2].samples] == [facegrad.Decoded.WINDOW_CACHED] * 2
    assert theirs[0] == pytest.approx(ours[0], rel=1e-6) and off(theirs[1], ours[1]) <= 1e-5


def test_the_hosts_own_decoder(device: torch.device) -> None:
    """A function of the host's, which the library calls from its own thread."""
    case = Case("kl")
    decoder = case.module.to(device)
    seen = []

    def decode(z: torch.Tensor) -> torch.Tensor:
        seen.append(torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None)
        return decoder.decode(z / 0.7 + 0.1).sample / 2 + 0.5

    recogniser = facegrad.Recogniser(ASSETS / "recogniser.safetensors", device=device)
    loss = facegrad.FaceIdentityLoss(case.config, vae=facegrad.Vae(decode, device=device), detector=False, recogniser=recogniser)
    value, gradient, _ = case.step(loss, device)
    case.module.cpu()
    want, want_gradient, _ = case.step(case.loss("cpu"), "cpu")
    assert value == pytest.approx(want, rel=1e-4) and off(gradient, want_gradient) <= 1e-3
    if device.type == "cuda":
        assert set(seen) == {torch.cuda.current_stream(device).cuda_stream}


def test_a_call_inside_a_backward_pass(device: torch.device) -> None:
    """Autograd runs the backward functions of a GPU on one thread of its own. A call of the library there must not wait
    for that very thread: the decode below computes its gradient in a backward function."""
    from facegrad.latents import decode_latents

    case = Case("kl")
    vae = facegrad.Vae(case.module.to(device))
    z = torch.randn(1, 4, SIDE // 4, SIDE // 4, device=device, requires_grad=True)
    (decode_latents(vae, z) ** 2).sum().backward()
    case.module.cpu()
    got = z.grad
    own = z.detach().cpu().requires_grad_()
    ((case.module.decode(own / 0.7 + 0.1).sample / 2 + 0.5).clamp(0, 1) ** 2).sum().backward()
    assert off(got, own.grad) <= 1e-3


def test_a_graph_of_the_librarys(device: torch.device) -> None:
    case = Case("kl")
    vae = facegrad.Vae(case.module.to(device))
    recogniser = facegrad.Recogniser(ASSETS / "recogniser.safetensors", device=device)
    loss = facegrad.FaceLoss(case.config, recogniser=recogniser, vae=vae)
    graph = facegrad.Graph(device)
    prediction = graph.input(case.prediction.to(device), needs_gradient=True)
    x0 = graph.predict_x0(graph.input(case.x_t.to(device)), prediction, torch.tensor(case.given["t"]), case.config["prediction"])
    images = graph.decode(graph.unpack(x0, vae), vae)
    node, _ = graph.face_loss(images, loss, **{**case.told, "references": case.told["references"].to(device)})
    graph.backward(node)
    want, want_gradient, _ = case.step(loss_of(loss, vae), device)
    assert graph.read(node).item() == pytest.approx(want, rel=1e-5)
    assert off(graph.gradient(prediction), want_gradient) <= 1e-4


def loss_of(loss: facegrad.FaceLoss, vae: facegrad.Vae) -> Any:
    return lambda **given: loss.step(given.pop("prediction"), given.pop("x_t"), given.pop("t"), **given)


def test_tf32_and_cudnns_choice_are_the_hosts(device: torch.device) -> None:
    case = Case("kl")
    loss, want = case.loss(device), case.step(case.loss("cpu"), "cpu")
    before = torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    try:
        value, gradient, _ = case.step(loss, device)
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = before
    assert value == pytest.approx(want[0], rel=2e-2) and cosine(gradient, want[1]) >= 0.98
