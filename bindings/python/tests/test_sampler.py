"""The step of a sampler against diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

import facegrad
from facegrad.trainers.rollout import host_time

KINDS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}


@pytest.fixture()
def pair(device):
    def pair(*shape):
        g = torch.Generator().manual_seed(4)
        return torch.randn(*shape, generator=g).to(device), torch.randn(*shape, generator=g).to(device)

    return pair


def close(got, want, bound=1e-6):
    assert got.shape == want.shape and got.dtype == torch.float32
    assert float((got.double() - want.double()).norm() / want.double().norm()) <= bound


@pytest.mark.parametrize(
    ("kind", "turned", "sign"), [("flow", False, 1), ("z_image", True, -1), ("lumina2", True, -1), ("hidream", False, -1)]
)
@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (2, 12, 16)], ids=["latents", "tokens"])
def test_flow_is_diffusers_euler(pair, kind, turned, sign, shape):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    x, v = pair(*shape)
    host = lambda s: 1 - s if turned else s
    for k, t in enumerate(scheduler.timesteps):
        want = scheduler.step(v, t, x).prev_sample
        here, after = (host(float(s)) for s in scheduler.sigmas[k : k + 2])
        x = facegrad.sampler_step(x, sign * v, here, after, {"kind": kind})
        close(x, want)


def ddim(kind):
    """In 64 bits, so that what differs is not diffusers' own rounding."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=KINDS[kind], clip_sample=False
    )
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(8)
    return scheduler


@pytest.mark.parametrize("time", ["t", "sigma", "alpha_bar"])
@pytest.mark.parametrize("kind", KINDS)
def test_preserving_kinds_are_diffusers_ddim(pair, kind, time):
    scheduler = ddim(kind)
    x, prediction = pair(3, 4, 6, 8)

    def host(t):
        if time == "t":
            return float(t)
        signal = float(scheduler.alphas_cumprod[t]) if t >= 0 else 1.0
        return signal if time == "alpha_bar" else ((1 - signal) / signal) ** 0.5

    for t in scheduler.timesteps.tolist():
        want = scheduler.step(prediction.double(), t, x.double()).prev_sample
        after = max(t - 1000 // 8, -1)
        x = facegrad.sampler_step(x, prediction, host(t), host(after), {"kind": kind, "time": time})
        close(x, want)


def test_times_go_by_sample_and_upwards_too(pair, device):
    x, v = pair(2, 4, 2, 2)
    got = facegrad.sampler_step(x, v, [0.5, 0.25], torch.tensor([0.75, 0.25]))
    close(got, x + torch.tensor([0.25, 0.0], device=device).view(2, 1, 1, 1) * v)
    negated = facegrad.sampler_step(x, -v, [0.5, 0.25], [0.75, 0.25], {"negated": True})
    assert torch.equal(got, negated)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layout_dtype_and_no_gradient(pair, dtype):
    x, v = (tensor.to(dtype).to(memory_format=torch.channels_last) for tensor in pair(2, 4, 6, 8))
    v.requires_grad_()
    got = facegrad.sampler_step(x, v, 0.5, 0.25)
    assert got.dtype == dtype and not got.requires_grad
    want = (x.float() - 0.25 * v.detach().float()).to(dtype)
    assert torch.equal(got, want), "computed in float32, rounded once"


def test_the_node_is_the_function(pair, device):
    x, v = pair(2, 4, 6, 8)
    graph, levels = facegrad.Graph(device), (torch.tensor([900.0, 500.0]), torch.tensor([700.0, -1.0]))
    x_t, prediction = graph.input(x.half()), graph.input(v, needs_gradient=True)
    node = graph.sampler_step(x_t, prediction, *levels, {"kind": "v"})
    assert torch.equal(graph.read(node), facegrad.sampler_step(x.half(), v, *levels, {"kind": "v"}).float())
    with pytest.raises(facegrad.FacegradError, match="does not depend"):
        graph.backward(node)
    for call in (lambda: graph.sampler_step(x_t, 99, *levels), lambda: graph.sampler_step(x_t, prediction, levels[0][:1], levels[1])):
        with pytest.raises(facegrad.FacegradError):
            call()


@pytest.mark.parametrize(
    ("t", "after", "config", "words"),
    [
        (1.5, 0.5, None, "t of sample 0: expected a number in"),
        (0.5, float("nan"), None, "expected finite numbers"),
        (0.5, -0.1, None, "next_times: t of sample 0"),
        (999.5, 1.0, {"kind": "epsilon"}, "whole timestep"),
        (5.0, -2.0, {"kind": "epsilon"}, "next_times"),
        (0.0, 1.0, {"kind": "sample", "time": "sigma"}, "do not tell the noise"),
        (0.5, 0.25, {"kind": "custom"}, "custom"),
        (0.5, 0.25, {"kind": "v", "reversed_time": True}, "reversed_time"),
        (0.5, 0.25, {"kind": "flw"}, "did you mean `flow`"),
        ([0.5, 0.5], [0.25], None, "2 numbers"),
        ([0.5], [0.25], None, "batch of 1"),
    ],
)
def test_bad_levels_are_named(pair, t, after, config, words):
    x, v = pair(2, 4, 2, 2)
    with pytest.raises(facegrad.FacegradError, match=words):
        facegrad.sampler_step(x, v, t, after, config)
    with pytest.raises(facegrad.FacegradError, match="x_t"):
        facegrad.sampler_step(x, v[:, :2], 0.5, 0.25)


@pytest.mark.host("numbers alone")
def test_levels_become_the_hosts_times():
    scheduler = ddim("epsilon")
    assert host_time(0.25, {}) == 0.25 and host_time(0.25, {"kind": "z_image"}) == 0.75
    assert host_time(0.25, {"kind": "flow", "reversed_time": True}) == 0.75
    signal = host_time(0.25, {"time": "alpha_bar"})
    assert signal**0.5 / (1 - signal) ** 0.5 == pytest.approx(3) and host_time(1, {"time": "alpha_bar"}) > 0
    assert host_time(1, {"kind": "epsilon"}) == 999
    signal = float(scheduler.alphas_cumprod[500])
    assert host_time(500 / 999, {"kind": "v", "time": "alpha_bar"}) == pytest.approx(signal, rel=1e-9)
    assert host_time(500 / 999, {"kind": "v", "time": "sigma"}) == pytest.approx(((1 - signal) / signal) ** 0.5, rel=1e-9)
