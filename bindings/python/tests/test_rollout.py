"""Rollouts: where they go, what they give back, what they cost, what guards them, and what they say of bad input."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from test_trainers import parts as parts  # the fixture
from test_trainers import step as step  # the fixture

import facegrad
from facegrad.trainers import Rollout

PAIR = {"landmarks": "reference", "face_align_mode": "kps", "every_n_steps": 7, "t_max": 0.1}
#: A picture of noise has no face: where it is is told.
PLACES = torch.tensor([[[22.0, 26], [42, 26], [32, 36], [24, 46], [40, 46]]]).expand(2, 5, 2)
FREE = {"every_n_steps": 1, "ramp": 0, "gradient_limit": None, "min_score": 0.0, "target_similarity": 1.0, "min_found": 0.0}


class Model(torch.nn.Module):
    """v = w·x with one weight; remembers how it was called."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(-0.4, device=device))
        self.calls: list[tuple[float, bool]] = []

    def forward(self, x, t):
        self.calls.append((round(float(t[0]), 6), torch.is_grad_enabled()))
        return self.w * x


@pytest.fixture(scope="module")
def pair(parts):
    return facegrad.FaceIdentityLoss(PAIR, **parts)


@pytest.fixture()
def noise(device):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(8)).to(device)


def targets(step):
    return {"references": step.pictures, "landmarks": PLACES}


def test_a_rollout_is_the_loss_after_eulers_steps(parts, pair, step, noise):
    model, rollout = Model(noise.device), Rollout(pair, weight=0.3, steps=4, levels=(0.3, 0.3), **FREE)
    value = rollout(model, noise, **targets(step))
    assert model.calls == [(1.0, False), (0.75, False), (0.5, False), (0.3, True)]
    report = rollout.report
    assert (report.without_gradient, report.with_gradient, report.level, report.face.counted) == (3, 1, 0.3, 2)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.3])
    x = noise
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(model.w.detach() * x, t, x).prev_sample
    loss = facegrad.FaceIdentityLoss({"face_align_mode": "kps", "face_loss_weight": 0.3}, **parts)
    want, _ = loss(x_t=x, prediction=model.w * x, t=torch.full((2,), 0.3, device=x.device), **targets(step))
    assert value.item() == pytest.approx(want.item(), rel=1e-4) and value.item() == pytest.approx(report.loss, rel=1e-6)
    got, direct = torch.autograd.grad(value, model.w)[0], torch.autograd.grad(want, model.w)[0]
    assert abs(got.item()) > 0 and got.item() == pytest.approx(direct.item(), rel=1e-3)
    assert rollout.summary()["predictions_without_gradient"] == 3 and rollout.logs()["rollout/counted"] == 2


def test_epsilon_goes_down_the_timesteps(parts, step, noise):
    loss = facegrad.FaceIdentityLoss({"face_align_mode": "kps", "prediction": {"kind": "epsilon"}}, **parts)
    model = Model(noise.device)
    Rollout(loss, steps=2, levels=(0.2, 0.2), **FREE)(model, noise, **targets(step)).backward()
    assert model.calls == [(999, False), (500, False), (200, True)] and model.w.grad.abs() > 0


def test_the_level_follows_from_seed_and_step_alone(pair, step, noise):
    def levels(**options):
        rollout = Rollout(pair, steps=2, **FREE, **options)
        seen = []
        for number in (4, 5):
            rollout(Model(noise.device), noise, step=number, **targets(step))
            seen.append(rollout.report.level)
        return seen

    assert levels() == levels() != levels(seed=1)
    assert all(0.125 <= level <= 0.5 for level in levels()) and len(set(levels())) == 2


def test_what_is_not_due_costs_nothing(pair, step, noise):
    model = Model(noise.device)
    usual = Rollout(pair, weight=torch.tensor(0.1), levels=np.array([0.2, 0.5]), steps=np.int64(8))
    assert [step for step in range(10) if usual.due(step)] == [0, 4, 8]
    rollout = Rollout(pair, start=3, levels=(1, 1), **FREE | {"every_n_steps": 2})
    values = [rollout(model, noise, **targets(step)) for _ in range(6)]
    assert [v.item() != 0 for v in values] == [rollout.due(k) for k in range(6)] == [False, False, False, False, True, False]
    assert model.calls == [(1.0, True)], "a level of 1 needs no step before"
    for off in (Rollout(pair, enabled=False), Rollout(pair, weight=0)):
        assert off(model, noise, **targets(step)).item() == 0 and len(model.calls) == 1 and off.logs() == {}
    disabled = Rollout(facegrad.FaceIdentityLoss({"use_face_loss": False}), **FREE)
    assert disabled(model, noise).item() == 0 and len(model.calls) == 1


def test_the_gradient_is_bounded_by_a_share_of_the_main_losss(pair, step, noise):
    prediction = (step.x1 - step.x0).requires_grad_()
    main = torch.nn.functional.mse_loss(prediction * 0.999, step.x1 - step.x0)
    (g,) = torch.autograd.grad(main, prediction, retain_graph=True)

    def norm(limit, main):
        leaf = torch.zeros(2, 4, 8, 8, device=noise.device, requires_grad=True)
        options = FREE | {"gradient_limit": limit}
        value = Rollout(pair, weight=5, levels=(0.5, 0.5), **options)(lambda x, t: leaf - 0.4 * x, noise, main=main, **targets(step))
        return torch.autograd.grad(value, leaf)[0].norm().item()

    free = norm(None, None)
    assert norm(0.5, (main, prediction)) == pytest.approx(0.5 * g.norm().item(), rel=1e-4) and free > 0.6 * g.norm().item()
    assert norm(0.5, float(g.norm())) == pytest.approx(0.5 * g.norm().item(), rel=1e-4)
    assert norm(0.5, 1e6) == pytest.approx(free, rel=1e-4)
    assert norm(0.5, 0.0) == 0
    with pytest.raises(ValueError, match="main: gradient_limit is relative to the main loss"):
        norm(0.5, None)


def test_ramp_and_start_raise_the_weight(pair, step, noise):
    rollout = Rollout(pair, start=2, levels=(0.5, 0.5), **FREE | {"ramp": 3})
    losses = [rollout(Model(noise.device), noise, **targets(step)).item() for _ in range(7)]
    assert losses[:2] == [0, 0] and [v / losses[-1] for v in losses[2:]] == pytest.approx([0.25, 0.5, 0.75, 1, 1], rel=1e-4)
    assert rollout.report.ramp == 1


def found(score):
    """A report whose faces were found with these scores."""
    from facegrad.report import Alignment, Located, Outcome, Report, Sample

    samples = tuple(Sample(Outcome.COUNTED, Located.DETECTED, Alignment.KPS, 0.2, 1.0, s, None, None) for s in score)
    return Report(0.1, 0.8, len(score), samples)


def test_a_face_that_the_detector_hardly_sees_is_not_pushed(pair, device):
    """The loss is asked again, and the sample with the low score weighs nothing then."""
    rollout = Rollout(pair, levels=(1, 1), **FREE | {"min_score": 0.5})
    report = found([0.9, 0.3])
    calls = []

    class Both:
        loss, config = object(), {"prediction": {"kind": "flow"}}

        def __call__(self, **arguments):
            calls.append(arguments.get("sample_weights"))
            return arguments["prediction"].sum(), report

    rollout._loss = Both()
    rollout(Model(device), torch.randn(2, 4, 8, 8, device=device), sample_weights=torch.tensor([1.0, 0.5]))
    assert calls[0].tolist() == [1.0, 0.5] and calls[1].tolist() == [1.0, 0.0], "once more without it"
    assert rollout.report.low_score == 1 and rollout.summary()["low_score"] == 1


def test_references_and_networks_are_shared(parts, step, noise):
    loss = facegrad.FaceIdentityLoss(PAIR, **parts)
    loss.set_reference("anna", step.pictures)
    rollout = Rollout(loss, weight=0.2, levels=(0.5, 0.5), **FREE)
    rollout(Model(noise.device), noise, reference_ids=["anna", "anna"], landmarks=PLACES)
    assert rollout.report.face.counted == 2
    rollout.loss.set_reference("bob", step.pictures[:1])
    rollout(Model(noise.device), noise, reference_ids=["anna", "bob"], landmarks=PLACES)
    with pytest.raises(facegrad.FacegradError, match="bob"):
        loss(prediction=noise, x_t=noise, t=torch.zeros(2, device=noise.device), reference_ids=["bob", "bob"], data_types=["person"] * 2)
    assert rollout.loss.config["every_n_steps"] == 1 and rollout.loss.config["face_loss_weight"] == 0.2
    assert loss.config["every_n_steps"] == 7 and rollout.loss.loss._parts == loss.loss._parts


def test_accumulated_state_goes_on(pair, step, noise):
    first = Rollout(pair, levels=(0.5, 0.5), **FREE)
    first(Model(noise.device), noise, **targets(step))
    other = Rollout(pair, levels=(0.5, 0.5), **FREE)
    other.load_state_dict(first.state_dict())
    assert other.step == 1 and other.summary() == first.summary()
    with pytest.raises(ValueError, match="totals"):
        other.load_state_dict({"step": 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": (0, 0.5)}, "0 < low <= high <= 1, got 0 and 0.5"),
        ({"levels": (0.6, 0.5)}, "levels"),
        ({"levels": (0.5, 1.5)}, "levels"),
        ({"weight": -1}, "weight: expected a number >= 0"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": "0.1"}, "weight: expected a number >= 0, got '0.1'"),
        ({"steps": 0}, "steps: expected a whole number of at least 1, got 0"),
        ({"every_n_steps": 2.5}, "every_n_steps: expected a whole number of at least 1, got 2.5"),
        ({"target_similarity": 7}, "target_similarity: expected a number from -1 to 1, got 7"),
        ({"gradient_limit": "half"}, "gradient_limit: expected a number >= 0, got 'half'"),
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"ramp": -1}, "ramp"),
        ({"min_score": 1.5}, "min_score: expected a number from 0 to 1, got 1.5"),
        ({"min_score": float("nan")}, "min_score"),
        ({"backoff": 1.5}, "backoff: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_bad_options_are_named(pair, options, words):
    with pytest.raises(ValueError, match=words):
        Rollout(pair, **options)


def test_bad_predictions_are_named(parts, pair, step, noise):
    go = lambda predict, **options: Rollout(pair, **FREE, **options)(predict, noise, **targets(step))
    with pytest.raises(ValueError, match=r"predict: expected a prediction of the latents' shape \[2, 4, 8, 8\], got \[2, 4, 8, 4\]"):
        go(lambda x, t: x[..., :4])
    with pytest.raises(ValueError, match="got tuple"):
        go(lambda x, t: (x,))
    with pytest.raises(ValueError, match="NaN or infinity at noise level 1.000"):
        go(lambda x, t: x * float("nan"))
    later = Model(noise.device)
    with pytest.raises(ValueError, match="NaN or infinity at noise level 0.300; the latents that it got were finite: True"):
        go(lambda x, t: later(x, t) / (t[0] > 0.31), steps=4, levels=(0.3, 0.3))
    assert [needs for _, needs in later.calls] == [False] * 3 + [True], "the last prediction, the one with a gradient"
    with pytest.raises(ValueError, match="without a gradient"):
        go(lambda x, t: x.detach())
    with torch.no_grad(), pytest.raises(ValueError, match="torch.no_grad"):
        go(Model(noise.device))
    custom = facegrad.FaceIdentityLoss({**PAIR, "prediction": {"kind": "custom"}}, **parts)
    with pytest.raises(ValueError, match="custom coefficients"):
        Rollout(custom, **FREE)(Model(noise.device), noise, **targets(step))


def test_no_face_for_long_is_said_with_the_reasons(pair, step, noise, caplog):
    rollout = Rollout(pair, warn_after=2, levels=(0.9, 0.9), **FREE)
    with caplog.at_level(logging.WARNING, "facegrad"):
        for _ in range(4):
            rollout(Model(noise.device), 0 * noise, references=step.pictures)
    said = [r.message for r in caplog.records if "no face has counted" in r.message]
    assert len(said) == 2 and "in the last 2 rollouts (no_face 4)" in said[0] and "the last 4" in said[1]


def test_a_guard_that_stops_everything_is_said_once(pair, step, noise, caplog):
    rollout = Rollout(pair, warn_after=2, levels=(0.9, 0.9), **FREE | {"target_similarity": -0.99})
    with caplog.at_level(logging.WARNING, "facegrad"):
        for _ in range(5):
            model = Model(noise.device)
            rollout(model, noise, **targets(step)).backward()
            assert model.w.grad == 0 and rollout.report.face.counted == 2
    said = [r.message for r in caplog.records if "guard has stopped" in r.message]
    assert len(said) == 1 and "the last 2 rollouts wholly" in said[0] and "target_similarity -0.99" in said[0]


def test_a_floor_that_stops_everything_is_said_once(pair, device, caplog):
    """Faces are seen in every rollout, and every one of them has too low a score."""
    from facegrad.report import Alignment, Located, Outcome, Report, Sample

    low = found([0.3, 0.2])
    without = tuple(Sample(Outcome.ZERO_WEIGHT, Located.DETECTED, Alignment.KPS, 0.2, 1.0, s.score, None, None) for s in low.samples)
    nothing = Report(0.0, 0.0, 0, without)

    class Both:
        loss, config = object(), {"prediction": {"kind": "flow"}}

        def __call__(self, **arguments):
            return arguments["prediction"].sum() * 0, nothing if "sample_weights" in arguments else low

    rollout = Rollout(pair, warn_after=3, levels=(1, 1), **FREE | {"min_score": 0.5})
    rollout._loss = Both()
    with caplog.at_level(logging.WARNING, "facegrad"):
        for _ in range(8):
            rollout(Model(device), torch.randn(2, 4, 8, 8, device=device))
    said = [r.message for r in caplog.records]
    assert len(said) == 1 and "the guard has stopped the last 3 rollouts wholly" in said[0] and "min_score 0.50" in said[0]
    assert rollout.summary()["low_score"] == 16


def lost_faces(rollout, shares, device, batch=4):
    """What a rollout does while so many of a batch show a face, one rollout each: (the running share, ramp, the weight's push)."""
    from dataclasses import replace

    from facegrad.report import Outcome, Report

    seen = found([0.9] * batch).samples
    reports = [Report(0.1, 0.8, n, seen[:n] + tuple(replace(s, outcome=Outcome.NO_FACE) for s in seen[n:])) for n in shares]

    class Loss:
        loss, config = object(), {"prediction": {"kind": "flow"}}

        def __call__(self, **arguments):
            return arguments["prediction"].mean(), reports.pop(0)

    rollout._loss = Loss()
    told = []
    while reports and rollout.due():
        model = Model(device)
        rollout(model, torch.ones(batch, 4, 8, 8, device=device)).backward()
        assert rollout.report.paused == (rollout.report.ramp == 0)
        told.append((rollout.report.found, rollout.report.ramp, model.w.grad.item()))
    return told


ONE = {"levels": (1, 1), **FREE, "min_found": 0.95}


def test_rollouts_end_when_faces_vanish(pair, device, caplog):
    """A tenth of the running share is of the last four samples, so the third face that is lost ends them."""
    rollout = Rollout(pair, **ONE)
    with caplog.at_level(logging.WARNING, "facegrad"):
        told = lost_faces(rollout, [4, 3, 3, 3, 4, 4], device)
    assert [share for share, _, _ in told] == pytest.approx([1, 0.975, 0.9525, 0.93225])
    assert [ramp for _, ramp, _ in told] == [push for _, _, push in told] == [1, 1, 1, 0]
    assert rollout.due(3) and not rollout.due(4) and not rollout.due(99), "the last step can still be asked for its figures"
    said = [r.message for r in caplog.records]
    assert len(said) == 1 and "0.932 of the last samples show one, min_found 0.950" in said[0] and "the rollouts end here" in said[0]
    model = Model(device)
    assert rollout(model, torch.ones(4, 4, 8, 8, device=device)).item() == 0 and not model.calls
    other = Rollout(pair, **ONE)
    other.load_state_dict(rollout.state_dict())
    assert not other.due(99) and other.state_dict() == rollout.state_dict()


def test_one_lost_face_of_a_small_batch_ends_nothing(pair, device):
    """Forty samples are forty rollouts of one: here too it is the third face."""
    told = lost_faces(Rollout(pair, **ONE), [0, 0, 0, 0], device, batch=1)
    assert [(share, ramp) for share, ramp, _ in told] == [
        (pytest.approx(0.975), 1),
        (pytest.approx(0.950625), 1),
        (pytest.approx(0.926859), 0),
    ]


def test_every_pause_leaves_a_share_of_the_weight(pair, device, caplog):
    """A half is left after the first pause, grown over two steps, and a quarter after the second."""
    rollout = Rollout(pair, **ONE | {"backoff": 0.5, "ramp": 1})
    pause = [1, 4, 4, 4, 4]
    with caplog.at_level(logging.WARNING, "facegrad"):
        told = lost_faces(rollout, [4, 4, *pause, 4, *pause, *[4] * 5], device)
    assert [ramp for _, ramp, _ in told] == pytest.approx([0.5, 1, *[0] * 4, 0.25, 0.5, *[0] * 8, 0.125, 0.25])
    assert [push for _, _, push in told] == pytest.approx([ramp for _, ramp, _ in told])
    said = [r.message for r in caplog.records]
    assert len(said) == 2 and "λ is 0.5 of the weight then" in said[0] and "λ is 0.25 of the weight then" in said[1]
    other = Rollout(pair, **ONE | {"backoff": 0.5, "ramp": 1})
    other.load_state_dict(rollout.state_dict())
    assert other.state_dict() == rollout.state_dict() and other.state_dict()["strength"] == 0.25


def test_with_a_backoff_of_one_the_weight_comes_back(pair, device):
    told = lost_faces(Rollout(pair, **ONE | {"backoff": 1}), [4, 1, 4, 4, 4, 4], device)
    assert [ramp for _, ramp, _ in told] == [1, 0, 0, 0, 0, 1]
