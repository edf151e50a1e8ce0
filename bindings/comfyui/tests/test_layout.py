"""Latent formats, noise levels, and the picture of a log, without ComfyUI."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from facegrad_nodes import draw, layout
from facegrad_nodes.sockets import Log, Record
from facegrad_nodes.trainer import in_vae_space
from facegrad_nodes.training import parse_options


def test_a_scale_and_shift_is_found_whatever_its_form():
    std, mean = torch.tensor([2.0, 0.5, 1.5]), torch.tensor([0.1, -3.0, 0.0])
    found = layout.probe(lambda x: x * std.view(1, 3, 1, 1).to(x) / 0.5 + mean.view(1, 3, 1, 1).to(x), 3)
    assert found.mul == pytest.approx([4, 1, 3]) and found.add == pytest.approx([0.1, -3, 0])
    back = found.inverse()
    assert [m * 7 + a for m, a in zip(back.mul, back.add)] == pytest.approx([(7 - a) / m for m, a in zip(found.mul, found.add)])
    assert layout.probe(lambda x: x / 0.3611 + 0.1159, 16, 3).mul == pytest.approx([1 / 0.3611] * 16)


def test_other_latent_formats_are_refused():
    for other in (lambda x: x.tanh(), lambda x: x.flip(1), lambda x: x.repeat(1, 2, 1, 1), lambda x: x * 0):
        with pytest.raises(ValueError, match="latent format"):
            layout.probe(other, 4)


def test_noise_levels_are_those_of_flow_matching_with_the_same_snr():
    sigmas = torch.tensor([0.0, 0.25, 1.0], requires_grad=True)
    flow = layout.noise_levels(lambda s, noise, x, _: s.view(-1, 1, 1, 1) * noise + (1 - s.view(-1, 1, 1, 1)) * x, sigmas)
    assert flow.tolist() == pytest.approx([0, 0.25, 1]) and not flow.requires_grad
    exploding = layout.noise_levels(lambda s, noise, x, _: s.view(-1, 1, 1, 1) * noise + x, torch.tensor([0.0, 1.0, 14.6]))
    assert exploding.tolist() == pytest.approx([0, 0.5, 14.6 / 15.6])


def test_images_and_latents_change_their_form():
    image = torch.rand(2, 5, 7, 4)
    assert torch.equal(layout.planes(image), image[..., :3].movedim(-1, 1))
    assert torch.equal(layout.pixels(layout.planes(image)), image[..., :3])
    assert layout.frames(torch.zeros(1, 16, 1, 4, 4)).shape == (1, 16, 4, 4)
    with pytest.raises(ValueError, match="single images"):
        layout.frames(torch.zeros(1, 16, 5, 4, 4))
    with pytest.raises(ValueError, match="IMAGE"):
        layout.planes(torch.zeros(3, 5, 7))


def test_the_space_of_a_trainers_batches_is_seen():
    latent = torch.randn(1, 4, 8, 8)
    scaled = latent.repeat(3, 1, 1, 1) * 0.18215
    assert not in_vae_space(SimpleNamespace(), scaled)
    assert not in_vae_space(SimpleNamespace(real_dataset=None, bucket_latents=None), scaled)
    assert in_vae_space(SimpleNamespace(real_dataset=[latent, torch.randn(1, 4, 8, 16)], bucket_latents=None), scaled)
    assert in_vae_space(SimpleNamespace(real_dataset=None, bucket_latents=[latent]), scaled)
    assert not in_vae_space(SimpleNamespace(real_dataset=None, bucket_latents=[scaled[:1]]), scaled)


def test_options_are_read_and_refused():
    assert parse_options(" ") == {} and parse_options('{"clamp": "soft"}') == {"clamp": "soft"}
    for wrong in ("clamp: soft", "[1]", '{"a": }'):
        with pytest.raises(ValueError, match="JSON object"):
            parse_options(wrong)


def test_a_log_counts_and_is_drawn_whatever_is_in_it():
    log = Log()
    assert draw.curves(log).size[0] == 900  # nothing yet
    for step in range(30):
        blind = step % 3 == 0
        log.records.append(
            Record(
                step, 1 / (step + 1), 0.0 if blind else 0.1, math.nan if blind else step / 30, ["time" if blind else "counted", "no_face"]
            )
        )
    assert log.counted() == 20 and log.skipped() == {"no_face": 30, "time": 10}
    empty, full = draw.from_pil(draw.curves(Log())), draw.from_pil(draw.curves(log))
    assert full.shape[1] > empty.shape[1] and full.shape[2:] == (900, 3)
    green = (full - torch.tensor(draw.GREEN) / 255).abs().amax(-1) < 0.02
    assert green.any(), "the similarity has a curve"
    log.records[:] = [Record(0, 0.5, 0.1, 0.2, ["counted"])]
    draw.curves(log)  # one step alone
    assert draw.moving_mean([1.0, math.nan, 3.0])[:1] == [1.0] and math.isnan(draw.moving_mean([math.nan])[0])


def test_overlays_keep_the_size_and_say_where_there_is_no_face():
    image = torch.full((40, 300, 3), 1.0)
    shown = draw.overlay(image, [], [])
    assert shown.shape == (1, 40, 300, 3) and (shown < 0.5).any()
