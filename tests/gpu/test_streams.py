"""Work of the host before and after a call on the same stream, without a synchronisation by the host; and calls of one
context on several streams. A kernel that only waits stands in front, so that what runs too early reads what is not there
yet: without it most races would be won."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from world import ASSETS, SIDE, Case, cosine, off, pictures

import facegrad
from facegrad._library import Context

pytestmark = pytest.mark.gpu
#: Cycles of a GPU's clock: about a tenth of a second.
LONG = 200_000_000
NAME = "kl16 in FLUX's tokens"


@contextmanager
def stream_of(device: torch.device) -> Iterator[torch.cuda.Stream]:
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield stream


def late(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy that is NaN until the stream has slept."""
    out = torch.full_like(tensor, torch.nan, device=device)
    torch.cuda.synchronize(device)
    torch.cuda._sleep(LONG)
    out.copy_(tensor, non_blocking=True)
    return out


@pytest.fixture(scope="module")
def want() -> tuple[float, torch.Tensor]:
    case = Case(NAME)
    value, gradient, _ = case.step(case.loss("cpu"), "cpu")
    return value, gradient


def test_work_before_and_after_a_step(device: torch.device, want: tuple[float, torch.Tensor]) -> None:
    case = Case(NAME)
    loss = case.loss(device)
    # Everything else is there before: an ordinary copy to the GPU waits for what is on the stream.
    pinned, x_t = case.prediction.pin_memory(), case.x_t.to(device)
    told = {**case.told, "references": case.told["references"].to(device)}
    with stream_of(device) as stream:
        prediction = late(pinned, device).requires_grad_()
        value, report = loss(prediction=prediction, x_t=x_t, **case.given, **told)
        torch.cuda._sleep(LONG)
        value.backward()
        got = prediction.grad.clone()
        # In the stream's order, after the step has read it.
        prediction.data.fill_(torch.nan)
        stream.synchronize()
    assert report.counted == 2 and value.item() == pytest.approx(want[0], rel=1e-4)
    assert off(got, want[1]) <= 1e-3


def prepared(entry: str, where: torch.device | str) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """What a call is given, on the CPU, and the call on networks of a device; its result lies anywhere."""
    images, points, _ = pictures(2, SIDE)
    case, z = Case("kl"), torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(5))
    recogniser, detector = ASSETS / "recogniser.safetensors", ASSETS / "detector.onnx"
    if entry in ("loss", "embed"):
        network, references = facegrad.Recogniser(recogniser, device=where), images.flip(0).to(where)
        loss = facegrad.FaceLoss({"face_align_mode": "kps"}, recogniser=network)

        def gradient(x: torch.Tensor) -> torch.Tensor:
            leaf = x.detach().requires_grad_()
            loss(leaf, references, landmarks=points, reference_landmarks=points)[0].backward()
            assert leaf.grad is not None
            return leaf.grad

        return images, gradient if entry == "loss" else lambda x: network.embed(x, points)
    if entry == "detect":
        found = facegrad.Detector(detector, device=where, det_sizes=[128])
        return images, lambda x: torch.tensor([face.bbox for faces in found.detect(x) for face in faces])
    if entry == "score":
        judge = facegrad.Evaluator(detector, {"path": str(ASSETS / "judge.onnx")}, device=where, det_sizes=(128,), engine="torch")
        judge.set_reference("one", images[:1].to(where))
        return images, lambda x: torch.tensor([s.similarity for s in judge.compare(x, reference_ids=["one", "one"]).samples])
    if entry == "sampler":
        velocity = z.flip(0).to(where)
        return z, lambda x: facegrad.sampler_step(x, velocity, 0.5, 0.25)
    decoder = facegrad.Vae(case.module.to(where))
    if entry == "decode":
        return z, decoder.decode
    graph = facegrad.Graph(where)
    return z, lambda x: graph.read(graph.decode(graph.input(x), decoder))


@pytest.mark.parametrize("entry", ["loss", "embed", "detect", "score", "sampler", "decode", "graph"])
def test_work_before_and_after_every_other_call(entry: str, device: torch.device) -> None:
    given, call = prepared(entry, "cpu")
    want = call(given.clone())
    given, call = prepared(entry, device)
    pinned = given.pin_memory()
    with stream_of(device) as stream:
        x = late(pinned, device)
        got = call(x)
        # In the stream's order, after the call has read it.
        x.detach().fill_(torch.nan)
        torch.cuda._sleep(LONG)
        stream.synchronize()
    assert got.shape == want.shape and off(got, want) <= (2e-2 if entry in ("loss", "detect", "score") else 1e-3)


def test_the_weights_are_up_before_a_stream_reads_them(device: torch.device, want: tuple[float, torch.Tensor]) -> None:
    """Networks are made on the default stream, and conversions of weights are the last thing there. A thread keeps that
    stream busy, so that they are still to come when another stream has its first step."""
    case, side, done = Case(NAME), torch.cuda.Stream(device), threading.Event()
    x_t, prediction = case.x_t.to(device), case.prediction.to(device, copy=True).requires_grad_()
    told = {**case.told, "references": case.told["references"].to(device)}

    def busy() -> None:
        while not done.is_set():
            torch.cuda._sleep(5_000_000)
            time.sleep(0.001)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        loss = case.loss(device)
        with torch.cuda.stream(side):
            value, _ = loss(prediction=prediction, x_t=x_t, **case.given, **told)
            value.backward()
    finally:
        done.set()
        thread.join()
    torch.cuda.synchronize(device)
    assert value.item() == pytest.approx(want[0], rel=1e-4) and off(prediction.grad, want[1]) <= 1e-3


def test_a_modules_weights_of_another_stream(device: torch.device) -> None:
    """A decoder over a module's weights in another dtype converts them when it is made; the weights are still arriving."""
    case = Case(NAME)

    def loss_of(module: torch.nn.Module, where: torch.device | str) -> facegrad.FaceIdentityLoss:
        decoder = facegrad.Vae(module, dtype="f32")
        recogniser = facegrad.Recogniser(ASSETS / "recogniser.safetensors", device=where)
        return facegrad.FaceIdentityLoss(case.config, vae=decoder, detector=False, recogniser=recogniser)

    want, want_gradient, _ = case.step(loss_of(case.module.bfloat16(), "cpu"), "cpu")
    pinned = {name: value.pin_memory() for name, value in case.module.state_dict().items()}
    module = type(case.module).from_config(case.module.config).to(device, torch.bfloat16).requires_grad_(False).eval()
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(torch.nan)
    torch.cuda.synchronize(device)
    with stream_of(device):
        torch.cuda._sleep(LONG)
        for name, value in module.state_dict().items():
            value.copy_(pinned[name], non_blocking=True)
        loss = loss_of(module, device)
    value, gradient, _ = case.step(loss, device)
    assert value == pytest.approx(want, rel=1e-4) and off(gradient, want_gradient) <= 1e-3


def test_references_of_one_stream_are_read_on_another(device: torch.device) -> None:
    case = Case("tiny")
    plain = case.loss("cpu")
    plain.set_reference("one", case.told["references"][:1], case.told["landmarks"][:1])
    told = {"landmarks": case.told["landmarks"], "reference_ids": ["one", "one"]}
    x_t, prediction = case.x_t, case.prediction
    want, _ = plain(prediction=prediction, x_t=x_t, **case.given, **told)
    loss = case.loss(device)
    x_t, prediction = x_t.to(device), prediction.to(device)
    pinned = case.told["references"][:1].pin_memory()
    torch.cuda.synchronize(device)
    with stream_of(device):
        loss.set_reference("one", late(pinned, device), case.told["landmarks"][:1])
    with stream_of(device):
        got, _ = loss(prediction=prediction, x_t=x_t, **case.given, **told)
    assert got.item() == pytest.approx(want.item(), rel=1e-4)


def test_the_memory_of_a_replaced_reference_is_not_used_again_too_early(device: torch.device) -> None:
    """Made on A, read on B behind a long kernel, replaced, and A's memory filled with NaN at once."""
    case = Case("tiny")
    loss = case.loss(device)
    references, points = case.told["references"].to(device), case.told["landmarks"]
    x_t, prediction = case.x_t.to(device), case.prediction.to(device)
    a, b = torch.cuda.Stream(device), torch.cuda.Stream(device)
    told = {"landmarks": points, "reference_ids": ["one", "one"]}
    torch.cuda.synchronize(device)
    with torch.cuda.stream(a):
        loss.set_reference("one", references[:1], points[:1])
        want, _ = loss(prediction=prediction, x_t=x_t, **case.given, **told)
    a.synchronize()
    with torch.cuda.stream(b):
        torch.cuda._sleep(LONG)
        got, _ = loss(prediction=prediction, x_t=x_t, **case.given, **told)
    with torch.cuda.stream(a):
        loss.set_reference("one", references[1:], points[1:])
        spoilt = [torch.full((n,), torch.nan, device=device) for n in (32, 64, 128, 128, 256, 512) for _ in range(64)]
    torch.cuda.synchronize(device)
    assert got.item() == pytest.approx(want.item(), rel=1e-6) and len(spoilt) == 384


def test_statistics_of_one_stream_are_read_on_another(device: torch.device) -> None:
    case = Case(NAME, more={"decode": "window", "norm_stats": "cached"})
    loss, ids = case.loss(device), {"sample_ids": ["a", "b"]}
    with stream_of(device):
        case.step(loss, device, **ids)
    with stream_of(device):
        value, gradient, report = case.step(loss, device, **ids)
    plain = case.loss("cpu")
    case.step(plain, "cpu", **ids)
    want, want_gradient, _ = case.step(plain, "cpu", **ids)
    assert [s.decoded for s in report.samples] == [facegrad.Decoded.WINDOW_CACHED] * 2
    assert value == pytest.approx(want, rel=1e-4) and off(gradient, want_gradient) <= 1e-3


def test_networks_are_freed_behind_the_work_that_reads_them(device: torch.device) -> None:
    """A decode does not wait. The decoder goes while its work still waits behind a long kernel, on another stream than the
    one that its weights were made on, and their memory is filled with NaN at once."""
    case = Case("kl")
    state = {name: value.to(device) for name, value in case.module.state_dict().items()}
    z = torch.randn(1, 4, 24, 24)
    want = facegrad.Vae(case.module).decode(z)
    z = z.to(device)
    for _ in range(3):
        # In another dtype than the module's, so that the weights are the library's own.
        vae = facegrad.Vae({name: value.double() for name, value in state.items()}, dtype="f32", config={"norm_num_groups": 8})
        torch.cuda.synchronize(device)
        with stream_of(device) as stream:
            torch.cuda._sleep(LONG)
            images = vae.decode(z)
        del vae
        gc.collect()
        facegrad.Graph(device)  # Comes after the freeing on the context's thread.
        spoilt = [torch.full((n,), torch.nan, device=device) for n in (16, 1 << 12, 1 << 16, 1 << 18) for _ in range(64)]
        stream.synchronize()
        assert off(images, want) <= 1e-3 and len(spoilt) == 256
        del spoilt


def test_threads_on_streams_of_their_own(device: torch.device, want: tuple[float, torch.Tensor]) -> None:
    """One context from four threads, each on its own stream, six steps each."""
    case = Case(NAME)
    loss = case.loss(device)
    results: list[tuple[float, torch.Tensor]] = []

    def work() -> None:
        with stream_of(device):
            for _ in range(6):
                results.append(case.step(loss, device)[:2])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 24
    for value, gradient in results:
        assert value == pytest.approx(want[0], rel=1e-4) and off(gradient, want[1]) <= 1e-3


def test_two_contexts_on_two_streams(device: torch.device, want: tuple[float, torch.Tensor]) -> None:
    """One after the other, then both at once from two threads."""
    case = Case(NAME)
    first = case.loss(device)
    shared, Context._shared = Context._shared, {}
    try:
        second = case.loss(device)
    finally:
        Context._shared = shared
    assert first.loss._context is not second.loss._context
    results: list[tuple[float, torch.Tensor]] = []

    def work(loss: facegrad.FaceIdentityLoss, steps: int) -> None:
        with stream_of(device):
            for _ in range(steps):
                results.append(case.step(loss, device)[:2])

    for _ in range(3):
        for loss in (first, second):
            work(loss, 1)
    threads = [threading.Thread(target=work, args=(loss, 10)) for loss in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 26
    for value, gradient in results:
        assert value == pytest.approx(want[0], rel=1e-4) and off(gradient, want[1]) <= 1e-3


def test_a_context_of_one_stream_is_used_on_another(device: torch.device, want: tuple[float, torch.Tensor]) -> None:
    """Context and networks are made while a stream of the host's is current and busy; the first step is on another one."""
    case = Case(NAME)
    prediction, x_t = case.prediction.to(device), case.x_t.to(device)
    told = {**case.told, "references": case.told["references"].to(device)}
    torch.cuda.synchronize(device)
    shared, Context._shared = Context._shared, {}
    try:
        with stream_of(device):
            torch.cuda._sleep(LONG)
            loss = case.loss(device)
    finally:
        Context._shared = shared
    for _ in range(2):
        with stream_of(device) as stream:
            leaf = prediction.clone().requires_grad_()
            value, _ = loss(prediction=leaf, x_t=x_t, **case.given, **told)
            value.backward()
            stream.synchronize()
        assert value.item() == pytest.approx(want[0], rel=1e-4) and off(leaf.grad, want[1]) <= 1e-3


def test_a_graphs_nodes_stay_on_one_stream(device: torch.device) -> None:
    graph = facegrad.Graph(device)
    x = torch.randn(1, 4, 8, 8, device=device)
    with stream_of(device) as stream:
        node = graph.input(x, needs_gradient=True)
        stream.synchronize()
    with pytest.raises(facegrad.FacegradError, match="computed on one stream"), stream_of(device):
        graph.input(x)
    with stream_of(device):
        assert torch.equal(graph.read(node), x)


@pytest.mark.gpu(devices=2)
def test_a_second_gpu(want: tuple[float, torch.Tensor]) -> None:
    case, second = Case(NAME), torch.device("cuda", 1)
    torch.cuda.set_device(0)
    loss = case.loss(second)
    with stream_of(second):
        value, gradient, _ = case.step(loss, second)
    assert torch.cuda.current_device() == 0
    assert value == pytest.approx(want[0], rel=1e-4) and off(gradient, want[1]) <= 1e-3
    with pytest.raises(facegrad.FacegradError, match="expected a tensor on cuda:1, got one on cuda:0"):
        case.step(loss, torch.device("cuda", 0))
    value, gradient, _ = case.step(loss, second)
    assert cosine(gradient, want[1]) >= 0.999
