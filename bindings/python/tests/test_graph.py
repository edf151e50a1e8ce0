"""The tape, node by node."""

from __future__ import annotations

import gc

import pytest
import torch
from compare import relative
from test_step import CASES, arguments
from test_step import tensors as tensors  # the fixture
from test_step import vae as vae  # the fixture

import facegrad

UNPACK = ("packing", "latent_crop", "latent_format")


def wired(name, tensors, chain, recogniser, vae):
    """A case of the fused step as a chain of nodes."""
    case, given, decoder = CASES[name], arguments(name, tensors, chain), vae(CASES[name]["vae"])
    config, graph = case["config"], facegrad.Graph(decoder.device)
    prediction = graph.input(given["prediction"], needs_gradient=True)
    x_t = graph.input(given["x_t"]) if given["x_t"] is not None else None
    times = given["coefficients"] if given["coefficients"] is not None else given["t"].float()
    x0 = graph.predict_x0(x_t, prediction, times, config.get("prediction"))
    latents = graph.unpack(x0, decoder, {key: config[key] for key in UNPACK if key in config}, given["size"] or (0, 0))
    images = graph.decode(latents, decoder, {"clamp": config.get("clamp", "clamp")})
    loss = facegrad.FaceLoss(
        {key: config[key] for key in config if key.startswith("face_") or key == "target_similarity"}, recogniser=recogniser
    )
    targets = {key: given[key] for key in ("references", "landmarks", "reference_landmarks", "sample_weights")}
    node, report = graph.face_loss(images, loss, **targets)
    return graph, prediction, images, node, report


@pytest.mark.parametrize("name", ["flow", "epsilon_sigma", "flux_tokens", "flux2_tokens", "custom", "soft"])
def test_the_chain_is_the_fused_step(name, tensors, chain, recogniser, vae, bounds):
    graph, prediction, images, loss, report = wired(name, tensors, chain, recogniser, vae)
    graph.backward(loss)
    assert graph.read(loss).item() == pytest.approx(tensors[f"{name}/loss"].item(), rel=bounds.value)
    assert graph.read(loss).item() == pytest.approx(report.loss, rel=1e-6)
    assert relative(graph.gradient(prediction), tensors[f"{name}/gradient"]) <= bounds.gradient
    assert report.counted == len(CASES[name]["counted"]) and graph.shape(loss) == ()
    assert graph.read(images).shape == graph.shape(images) == graph.gradient(images).shape


def test_a_walk_starts_anywhere_with_any_seed(device):
    graph = facegrad.Graph(device)
    noisy, velocity = torch.randn(2, 4, 3, 3, device=device), torch.randn(2, 4, 3, 3, device=device)
    x_t, prediction = graph.input(noisy), graph.input(velocity, needs_gradient=True)
    x0 = graph.predict_x0(x_t, prediction, torch.tensor([0.25, 0.5]))
    t = torch.tensor([0.25, 0.5], device=device).view(2, 1, 1, 1)
    assert torch.allclose(graph.read(x0), noisy - t * velocity, atol=1e-6)
    graph.backward(x0)
    assert torch.allclose(graph.gradient(prediction), -t.expand(2, 4, 3, 3))
    seed = torch.randn(2, 4, 3, 3, device=device)
    graph.backward(x0, seed)
    assert torch.allclose(graph.gradient(prediction), -t * seed)


def test_misuse_is_an_error_and_a_tape_is_freed(device):
    before = facegrad.live("graph")
    graph = facegrad.Graph(device)
    node = graph.input(torch.randn(1, 4, 2, 2, device=device))
    for call in (lambda: graph.read(node + 1), lambda: graph.gradient(-5), lambda: graph.backward(7), lambda: graph.predict_x0(None, node)):  # noqa: F821
        with pytest.raises(facegrad.FacegradError):
            call()
    with pytest.raises(facegrad.FacegradError, match="prediction|time|kind"):
        graph.predict_x0(None, node, None, {"kindd": "flow"})
    assert torch.equal(graph.read(node), graph.read(node)), "the tape still works"
    del graph, call
    gc.collect()
    assert facegrad.live("graph") == before
