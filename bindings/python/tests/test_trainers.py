"""The term that a trainer adds: what it counts, keeps and says."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compare import relative
from conftest import ROOT

import facegrad
from facegrad.trainers import FaceTerm, noisy_latents, person_types

ASSETS = ROOT / "examples/demo_assets"
sys.path[:0] = [str(ASSETS), str(ROOT / "examples/trainers")]
import faces
import train_lora

FLOW = {"landmarks": "reference", "face_align_mode": "kps"}


@pytest.fixture(scope="module")
def parts(device):
    torch.manual_seed(1)
    vae = train_lora.tiny_vae(4, {"scaling_factor": 0.13025, "shift_factor": 0.0})
    return {"vae": facegrad.Vae(vae.to(device)), "recogniser": facegrad.Recogniser(ASSETS / "recogniser.safetensors", device=device),
            "detector": facegrad.Detector(ASSETS / "detector.onnx", det_sizes=[160], device=device)}  # fmt: skip


@pytest.fixture()
def step(device):
    """Latents, noise, levels and references of two samples, and a prediction with a gradient."""
    g = torch.Generator().manual_seed(3)
    x0, x1 = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g)
    t = torch.tensor([0.3, 0.6])
    drawn = [faces.portrait(9_500_000 + k, 64, zoom=1.1) for k in range(2)]
    pictures = torch.stack([torch.from_numpy(d.image).permute(2, 0, 1).float() / 255 for d in drawn])
    prediction = x1 - x0 + 0.3 * torch.randn(2, 4, 8, 8, generator=g)
    x0, x1, t, pictures, prediction = (x.to(device) for x in (x0, x1, t, pictures, prediction))
    prediction.requires_grad_()
    return SimpleNamespace(x0=x0, x1=x1, t=t, x_t=noisy_latents(x0, x1 - x0, t), pictures=pictures, prediction=prediction)


def term(parts, config=FLOW, **options) -> FaceTerm:
    return FaceTerm(facegrad.FaceIdentityLoss(config, **parts), **options)


def call(face, s, **options):
    return face(prediction=s.prediction, x_t=s.x_t, t=s.t, references=s.pictures, **options)


def gradient(value, s):
    return torch.autograd.grad(value, s.prediction)[0]


def test_the_term_is_the_loss(parts, step, bounds):
    face, loss = term(parts), facegrad.FaceIdentityLoss(FLOW, **parts)
    plain, _ = loss(x_t=step.x_t, prediction=step.prediction, t=step.t, references=step.pictures)
    value = call(face, step)
    assert bounds.same(value, plain) and plain.item() > 0
    assert bounds.same(gradient(value, step), gradient(plain, step))


def test_x_t_follows_from_clean_latents_and_target(parts, step, bounds):
    value = term(parts)(prediction=step.prediction, latents=step.x0, target=step.x1 - step.x0, t=step.t, references=step.pictures)
    assert value.item() == pytest.approx(call(term(parts), step).item(), rel=bounds.value / 10)
    assert torch.allclose(step.x_t, torch.lerp(step.x0, step.x1, step.t[:, None, None, None]), atol=1e-6)
    with pytest.raises(ValueError, match="expected one shape"):
        noisy_latents(step.x0, step.x1[:1], step.t)


def test_batch_average_makes_unequal_parts_add_up(parts, step, bounds):
    """One sample of three shows no person: two ranks, with two samples and one of their own, against one process."""
    more = SimpleNamespace(**{k: torch.cat([v, v.flip(0)]).detach() for k, v in vars(step).items()})
    more.prediction.requires_grad_()
    types = ["person", "other", "person", "person"]
    whole = call(term(parts, average="batch"), more, data_types=types)
    want, got = gradient(whole, more), []
    for rows in (slice(0, 2), slice(2, 4)):
        part = SimpleNamespace(**{k: v[rows].detach() for k, v in vars(more).items()})
        part.prediction.requires_grad_()
        got.append((part, call(term(parts, average="batch"), part, data_types=types[rows])))
    assert sum(v.item() for _, v in got) / 2 == pytest.approx(whole.item(), rel=bounds.value / 10)
    assert relative(torch.cat([gradient(v, p) for p, v in got]) / 2, want) <= bounds.gradient
    counted = call(term(parts), more, data_types=types)
    assert counted.item() == pytest.approx(whole.item() * 4 / 3, rel=bounds.value / 10)


def test_a_disabled_term_is_zero_and_costs_nothing(step):
    def never():
        raise AssertionError("the loss was made")

    assert call(FaceTerm(never, enabled=False), step).item() == 0


def test_models_are_loaded_at_the_first_step(parts, step):
    made = []

    def load():
        made.append(1)
        return facegrad.FaceIdentityLoss(FLOW, **parts)

    face = FaceTerm(load)
    assert not made
    call(face, step), call(face, step)
    assert made == [1]


def test_bad_data_is_skipped_named_and_counted(parts, step, device):
    """A picture without a face, one of two persons, one too small: none stops the training."""
    empty = torch.from_numpy(faces.background(np.random.default_rng(0), 64, 64)).permute(2, 0, 1).to(device)
    two = torch.cat([step.pictures[0][:, :, 8:40], step.pictures[1][:, :, 24:56]], 2)
    small = torch.full((3, 64, 64), 0.5, device=device)
    small[:, 30:34, 30:34] = torch.nn.functional.interpolate(step.pictures[:1], size=(4, 4), mode="area")[0]
    more = SimpleNamespace(**{k: torch.cat([v, v]).detach() for k, v in vars(step).items()})
    more.pictures = torch.stack([step.pictures[0], empty, small, two])
    more.prediction.requires_grad_()
    face = term(parts)
    found = gradient(call(face, more), more)
    outcomes = [s.outcome for s in face.report.samples]
    assert outcomes[0] == facegrad.Outcome.COUNTED
    assert outcomes[1] == outcomes[2] == facegrad.Outcome.NO_REFERENCE_FACE
    assert found[1].abs().max() == found[2].abs().max() == 0 < found[0].abs().max()
    assert face.logs()["face/skipped_no_reference_face"] >= 2
    assert face.summary()["no_reference_face"] >= 2 and face.summary()["counted"] >= 1


def test_a_prediction_that_blew_up_counts_nothing(parts, step):
    step.prediction.data[0] = float("nan")
    face = term(parts)
    value = call(face, step)
    found = gradient(value, step)
    assert value.isfinite() and found.isfinite().all() and found[0].abs().max() == 0 < found[1].abs().max()
    assert face.logs()["face/skipped_non_finite"] == 1


def test_a_run_in_which_nothing_counts_says_so(parts, step, caplog):
    face = term(parts, warn_after=3)
    with caplog.at_level(logging.WARNING, "facegrad"):
        for _ in range(2):
            call(face, step, data_types=["cat", "dog"])
        call(face, step)
        for _ in range(2):
            call(face, step, data_types=["cat", "dog"])
        assert not [r for r in caplog.records if "no sample has counted" in r.message]
        call(face, step, data_types=["cat", "dog"])
    told = [r.message for r in caplog.records if "no sample has counted" in r.message]
    assert len(told) == 1 and "last 3 steps" in told[0] and "data_type 6" in told[0]


def test_steps_between_are_no_reason_to_warn(parts, step, caplog):
    face = term(parts, {**FLOW, "every_n_steps": 4}, warn_after=1)
    with caplog.at_level(logging.WARNING, "facegrad"):
        values = [call(face, step).item() for _ in range(8)]
    assert [v > 0 for v in values] == [True, False, False, False] * 2
    assert not [r for r in caplog.records if "no sample has counted" in r.message]


def through_a_file(state, path):
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def test_a_restored_term_goes_on(parts, step, tmp_path, bounds):
    config = {**FLOW, "every_n_steps": 3}
    through, before = term(parts, config), term(parts, config)
    values = [call(through, step).item() for _ in range(7)]
    first = [call(before, step).item() for _ in range(4)]
    after = term(parts, config)
    after.load_state_dict(through_a_file(before.state_dict(), tmp_path / "state.pt"))
    assert first + [call(after, step).item() for _ in range(3)] == pytest.approx(values, rel=bounds.again)
    assert after.summary() == pytest.approx(through.summary(), rel=bounds.again, nan_ok=True) and after.step == through.step == 7
    with pytest.raises(ValueError, match="quiet"):
        after.load_state_dict({"step": 1, "reasons": {}, "totals": {}, "memory": None})


def test_statistics_and_persons_are_restored(parts, step, tmp_path, device, bounds):
    """Windows go by statistics of earlier steps, so a run that forgot them would have other gradients and more exact passes."""
    config = {**FLOW, "decode": "window_only", "landmarks": "reference", "norm_stats": "cached"}
    through = term(parts, config)
    levels = [0.3, 0.35, 0.38, 0.22, 0.33]

    def walk(face, levels):
        found = []
        for level in levels:
            t = torch.full((2,), level, device=device)
            x_t = noisy_latents(step.x0, step.x1 - step.x0, t)
            value = face(prediction=step.prediction, x_t=x_t, t=t, references=step.pictures)
            found.append((value.item(), gradient(value, step), face.report.exact_passes))
        return found

    whole = walk(through, levels)
    assert [passes for _, _, passes in whole] == [2, 0, 0, 0, 0]
    before = term(parts, config)
    walk(before, levels[:2])
    before.loss.set_reference("anna", step.pictures[:1])
    after = term(parts, config)
    after.load_state_dict(through_a_file(before.state_dict(), tmp_path / "state.pt"))
    for (value, grad, passes), (value_2, grad_2, passes_2) in zip(whole[2:], walk(after, levels[2:]), strict=True):
        assert value == pytest.approx(value_2, rel=bounds.again) and passes == passes_2 and bounds.same(grad, grad_2)
    images = {"reference_ids": ["anna"], "landmarks": torch.full((1, 5, 2), 20.0) + torch.arange(10.0).view(1, 5, 2)}
    assert after.loss.loss(step.pictures[:1], **images)[1].counted == 1
    forgotten = term(parts, config)
    assert walk(forgotten, levels[2:])[0][2] == 2


@pytest.mark.host("arguments alone")
def test_arguments_are_checked():
    with pytest.raises(ValueError, match="average"):
        FaceTerm(lambda: None, average="sum")
    with pytest.raises(ValueError, match="warn_after"):
        FaceTerm(lambda: None, warn_after=0)


@pytest.mark.host("names alone")
def test_types_from_folders():
    assert person_types(["a/person/1.png", "a\\person_head\\2.png", "a/cats/person.png", "3.png"]) == [
        "person",
        "person_head",
        "other",
        "other",
    ]
