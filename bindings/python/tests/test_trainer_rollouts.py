"""Rollouts in the trainers: the schedule that is read from steps, and each adapter calling its trainer's model again, on stand-ins
with the trainer's signatures and order of calls."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT
from trainer_world import SECTION, musubi_step, musubi_trainer, networks
from trainer_world import hooks_end as hooks_end  # fixtures
from trainer_world import world as world

import facegrad
from facegrad.trainers import (
    ConventionError,
    Rollout,
    TrainerFace,
    ai_toolkit,
    diffusion_pipe,
    fit,
    musubi_tuner,
    onetrainer,
    read_section,
    sd_scripts,
    simpletuner,
)
from facegrad.trainers import diffusers as scripts
from facegrad.trainers.layout import LAYOUTS, layout_of, patches
from facegrad.trainers.recall import Recall
from facegrad.trainers.schedule import Schedule, scaled_linear

FREE = {"steps": 4, "every_n_steps": 1, "levels": [0.4, 0.4], "ramp": 0, "weight": 0.5, "min_score": 0.0, "target_similarity": 1.0}
ON = {**SECTION, "rollouts": FREE}
#: sd-scripts and musubi-tuner have a latent format of their own to hint at, which gives way to the section's.
DEMO = {"latent_format": {"custom": {"scale": 2.2085, "shift": -0.0028}}}

#: Of the demo's latents.
CHANNELS = 16


class Model:
    """The velocity of a flow whose samples are the world's pictures, with one weight to train."""

    def __init__(self, world):
        self.x0, self.wrong, self.w = world.x0, world.wrong, torch.tensor(0.3, device=world.x0.device, requires_grad=True)
        self.calls = []

    def __call__(self, x, level):
        self.calls.append(([round(v, 4) for v in level.tolist()], torch.is_grad_enabled()))
        return (x - self.x0) / level.view(-1, 1, 1, 1) + self.w * self.wrong


GRID = [([level] * 2, grad) for level, grad in ((1.0, False), (0.75, False), (0.5, False), (0.4, True))]


@pytest.fixture()
def wanted(world, device):
    """The loss of the pair and of its rollout, and their gradients, by :class:`Rollout` itself on a flow."""
    parts = networks(device)
    clean = parts["vae"].decode(world.x0 / world.vae.config.scaling_factor + world.vae.config.shift_factor).clamp(0, 1)
    loss = facegrad.FaceIdentityLoss({"landmarks": "reference", "face_align_mode": "kps"}, **parts)
    rollout, model = Rollout(loss, **{**FREE, "levels": (0.4, 0.4)}), Model(world)
    torch.manual_seed(3)
    v = model(world.x_t, world.t)
    pair, _ = loss(prediction=v, x_t=world.x_t, t=world.t, references=clean)
    main = (v - world.v).square().mean()
    value = rollout(model, torch.randn_like(world.x_t), main=(main, v), references=clean)
    assert rollout.report.face.counted == 2 and value.item() > 0
    return SimpleNamespace(
        main=main.item(), value=(pair + value).item(), gradient=torch.autograd.grad(main + pair + value, model.w)[0].item()
    )


def check(total, model, wanted, face):
    """The total has the same rollout as :class:`Rollout` makes by itself."""
    assert model.calls[1:] == GRID
    assert total.item() - wanted.main == pytest.approx(wanted.value, rel=2e-2)
    assert torch.autograd.grad(total, model.w)[0].item() == pytest.approx(wanted.gradient, rel=2e-2)
    logs = face.logs()
    assert (
        logs["rollout/counted"] == 2 and logs["rollout/predictions_without_gradient"] == 3 and logs["rollout/level"] == pytest.approx(0.4)
    )


@pytest.mark.parametrize("kind", ["flow", "epsilon", "v"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_step_is_that_of_the_library(kind, sign, device):
    g = torch.Generator().manual_seed(2)
    x0, n, x, prediction = (torch.randn(2, 4, 8, 8, generator=g).to(device) for _ in range(4))
    schedule, times = Schedule(), torch.tensor([300.0, 620.0], device=device)
    if kind == "flow":
        p, q = 1 - times / 1000, times / 1000
    else:
        alphas = scaled_linear().to(device)[times.long()].float()
        p, q = alphas.sqrt(), (1 - alphas).sqrt()
    p, q = (c.view(-1, 1, 1, 1) for c in (p, q))
    target = {"flow": n - x0, "epsilon": n, "v": p * n - q * x0}[kind]
    schedule.observe(fit(x0, p * x0 + q * n, sign * target, n), times)
    here, after = schedule.at(0.9), schedule.at(0.5)
    config = {"kind": kind, "negated": sign < 0}
    want = facegrad.sampler_step(x, prediction, *((0.9, 0.5) if kind == "flow" else (here.time, after.time)), config)
    assert torch.allclose(here.step(x, prediction, after), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert here.time == pytest.approx(900 if kind == "flow" else 899)


@pytest.mark.parametrize("scale, offset", [(1, 0), (1000, 0), (-1, 1), (-1000, 1000), (1000, 1), (1000, -1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_clock_is_read_from_its_times(scale, offset, dtype, device):
    g = torch.Generator().manual_seed(2)
    x0, n = (torch.randn(2, 4, 8, 8, generator=g).to(device) for _ in range(2))

    def found(*levels):
        t = torch.tensor(levels, device=device).view(-1, 1, 1, 1)
        return fit(x0.to(dtype), torch.lerp(x0, n, t).to(dtype), (n - x0).to(dtype), n.to(dtype)), (scale * t.flatten() + offset).to(dtype)

    schedule = Schedule()
    schedule.observe(*found(0.5, 0.5))
    assert not schedule.ready  # forwards or backwards?
    schedule.observe(*found(0.2, 0.9))
    assert schedule.ready
    assert schedule.at(0.25).time == pytest.approx(
        scale * 0.25 + offset, abs=0.004 * abs(scale) if dtype == torch.bfloat16 else 1e-5 * abs(scale)
    )
    with pytest.raises(ConventionError, match="times do not follow from the noise levels"):
        for _ in range(50):
            schedule.observe(found(0.2, 0.9)[0], torch.tensor([0.2, 0.4], device=device))


def test_a_step_with_little_noise_does_not_decide_between_epsilon_and_v(device):
    """In bfloat16 both fit there; the next step tells."""
    g = torch.Generator().manual_seed(2)
    x0, n = (torch.randn(2, 4, 16, 16, generator=g).to(device) for _ in range(2))

    def observe(*times):
        rows, alphas = torch.tensor(times, device=device), scaled_linear().to(device)
        p, q = (c.view(-1, 1, 1, 1).float() for c in (alphas[rows].sqrt(), (1 - alphas[rows]).sqrt()))
        found = fit(*(x.to(torch.bfloat16) for x in (x0, p * x0 + q * n, n, n)))
        schedule.observe(found, rows)
        return found

    schedule = Schedule()
    assert {("epsilon", False), ("v", False)} <= set(observe(3, 5).names) and not schedule.ready
    assert observe(700, 500).names == (("epsilon", False),) and schedule.ready
    observe(3, 5)
    point = schedule.at(0.5)
    assert schedule.ready and point.a == pytest.approx(1 / point.signal)


def test_levels_without_a_name_are_refused(device):
    g = torch.Generator().manual_seed(2)
    x0, n = (torch.randn(2, 4, 8, 8, generator=g).to(device) for _ in range(2))
    with pytest.raises(ConventionError, match="neither those of flow matching nor"):
        Schedule().observe(fit(x0, x0 + 3 * n, x0, n), torch.tensor([1.0, 2.0]))
    with pytest.raises(ConventionError, match=r"at the timesteps \[3, 900\]"):
        Schedule().observe(fit(x0, 0.6 * x0 + 0.8 * n, n, n), torch.tensor([3, 900]))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.name)
def test_layouts_are_found_and_reversed(layout, device):
    x = torch.randn(2, 4, 6, 8, device=device)
    packed = layout.pack(x)
    assert torch.equal(layout.unpack(packed, x.shape), x)
    assert layout_of(packed, x) is layout and layout_of(torch.randn_like(packed), x) is None
    if packed.dim() < 5:
        control = torch.cat([packed, torch.randn_like(packed)], 1)
        assert layout_of(control.to(torch.bfloat16), x) is layout and torch.equal(layout.unpack(control, x.shape), x)


@pytest.mark.host("keys alone")
def test_the_section_checks_rollouts():
    for value, message in [
        ({"lambda": 1}, "rollouts: unknown key `lambda`"),
        ({"step": 4}, "did you mean `steps`"),
        ({"levels": [0.5]}, "rollouts: levels: expected two"),
        ({"levels": [0.5, 0.2]}, "rollouts: levels: expected noise levels with 0 < low"),
        ({"steps": 0}, "rollouts: steps: expected a whole number of at least 1, got 0"),
        ({"weight": "0.1"}, "rollouts: weight: expected a number >= 0, got '0.1'"),
        ({"schedule": None}, "unknown key `schedule`"),
        (4, "rollouts: expected an object"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_section({"rollouts": value})
    assert read_section({"rollouts": True}).rollouts == {} and read_section({"rollouts": False}).rollouts is None


def test_a_trainer_that_cannot_be_called_again_is_refused(world):
    face = TrainerFace(ON)
    with pytest.raises(ValueError, match="cannot be called a second time.*take `rollouts` out"):
        face.step(prediction=world.v.clone().requires_grad_(), latents=world.x0, noise=world.n, x_t=world.x_t, target=world.v)
    with pytest.raises(ValueError, match="diffusion-pipe spreads its model"):
        diffusion_pipe.install(face, ())


def test_samples_without_a_face_loss_have_no_rollout(world, wanted):
    """Regularisation pictures are predicted with the batch and not pushed; the state goes into the checkpoint."""
    face, model = TrainerFace(ON), Model(world)

    def call(skip, times=1000):
        v = model(world.x_t, world.t)
        recall = Recall(lambda x, t: model(x, t / times), world.t * times, ((v - world.v).square().mean(), v))
        return face.step(prediction=v, latents=world.x0, noise=world.n, x_t=world.x_t, target=world.v, recall=recall, skip=skip)

    call([None, "regularisation"])
    assert face.logs()["rollout/counted"] == 1 and face.rollouts.rollout.report.face.samples[1].outcome.name == "ZERO_WEIGHT"
    calls = len(model.calls)
    assert call(["regularisation"] * 2).item() == 0 and len(model.calls) == calls + 1
    again = TrainerFace(ON)
    again.load_state_dict(face.state_dict())
    face = again
    call([None, None])
    assert face.rollouts.rollout.summary()["rollouts"] == 2


@pytest.mark.host("processes on the CPU")
def test_processes_call_their_model_equally_often(tmp_path):
    """One of two processes has nothing to push. The model is wrapped, so one that is called less often leaves the other waiting."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(Path(__file__).with_name("two_ranks.py")),
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "bindings/python"), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for case, one in first.items():
        two = second[case]
        assert one["calls"] == two["calls"] > 4 + 2 and one["gradient"] == two["gradient"], case
        assert one["rollouts"] > 0 and two["rollouts"] == 0, case


def test_pictures_that_come_later_are_known_to_rollouts(world):
    """The rollouts' loss takes over the references there are, and gets those of later pictures as they are found."""
    face, mirrored = TrainerFace(ON), SimpleNamespace(**vars(world))
    mirrored.x0 = world.vae.encode(world.pictures.flip(-1) * 2 - 1).latent_dist.mean
    mirrored.x0 = (mirrored.x0 - world.vae.config.shift_factor) * world.vae.config.scaling_factor
    mirrored.x_t, mirrored.v = torch.lerp(mirrored.x0, world.n, world.t.view(-1, 1, 1, 1)), world.n - mirrored.x0
    for pictures in (world, mirrored):
        model = Model(pictures)
        v = model(pictures.x_t, pictures.t)
        recall = Recall(model, pictures.t, ((v - pictures.v).square().mean(), v))
        face.step(prediction=v, latents=pictures.x0, noise=pictures.n, x_t=pictures.x_t, target=pictures.v, recall=recall)
        assert face.logs()["rollout/counted"] == 2 and face.logs()["rollout/similarity"] > 0.5
    assert face._places.decoded == 4


def test_sd_scripts(world, wanted, monkeypatch):
    """Lumina's sign; the model's times run from the noise, and its arguments are the trainer's own."""
    library, model = ModuleType("library.some_train_util"), Model(world)

    def get_noisy_model_input_and_timesteps(args, noise_scheduler, latents, noise, device, dtype):
        return torch.lerp(latents, noise, world.t.view(-1, 1, 1, 1)), world.t * 1000, world.t.view(-1, 1, 1, 1)

    library.get_noisy_model_input_and_timesteps = get_noisy_model_input_and_timesteps
    monkeypatch.setitem(sys.modules, "library.some_train_util", library)

    class NetworkTrainer:
        def get_noise_pred_and_target(
            self, args, accelerator, noise_scheduler, latents, batch, text, unet, network, weight_dtype, train_unet, is_train=True
        ):
            x, times, sigmas = library.get_noisy_model_input_and_timesteps(args, noise_scheduler, latents, world.n, "cpu", torch.float32)
            assert torch.allclose(sigmas.flatten(), times / 1000)
            return -unet(x, times / 1000), world.x0 - world.n, times, None

        def process_batch(self, batch, tokenizers, text_encoders, unet, network, vae, noise_scheduler, vae_dtype, weight_dtype, accelerator, args, text, tokenize,
                          is_train=True, train_text_encoder=True, train_unet=True):  # fmt: skip
            prediction, target, _, _ = self.get_noise_pred_and_target(
                args, accelerator, noise_scheduler, world.x0, batch, [], unet, network, None, train_unet
            )
            return (prediction - target).square().mean()

        def generate_step_logs(self, args):
            return {}

    face = TrainerFace({**ON, **DEMO})
    sd_scripts.install(face, NetworkTrainer)
    torch.manual_seed(3)
    total = NetworkTrainer().process_batch(
        {"captions": ["a", "b"], "images": None}, [], None, model, None, world.vae, None, None, None, None, SimpleNamespace(), None, None
    )
    check(total, model, wanted, face)


def test_ai_toolkit(world, wanted):
    """Control channels behind the noisy latents stay; a prediction made elsewhere cannot be made again."""
    model = Model(world)

    class SDTrainer:
        def __init__(self):
            self.additional_logs = {}
            self.sd = SimpleNamespace(vae=world.vae, is_flow_matching=True)

        def predict_noise(
            self,
            noisy_latents,
            timesteps=1,
            conditional_embeds=None,
            unconditional_embeds=None,
            batch=None,
            is_primary_pred=False,
            **kwargs,
        ):
            assert torch.equal(noisy_latents[:, CHANNELS:], world.x0) and conditional_embeds == "captions"
            return model(noisy_latents[:, :CHANNELS], timesteps / 1000)

        def calculate_loss(self, noise_pred, noise, noisy_latents, timesteps, batch, mask_multiplier=1.0, prior_pred=None, **kwargs):
            return (noise_pred - world.v).square().mean()

    face = TrainerFace(ON)
    ai_toolkit.install(face, SDTrainer)
    trainer, items = SDTrainer(), [SimpleNamespace(path="a.png"), SimpleNamespace(path="b.png")]
    batch = SimpleNamespace(
        latents=world.x0, tensor=None, file_items=items, get_caption_list=lambda: ["a", "b"], get_is_reg_list=lambda: [False, False]
    )
    control = torch.cat([world.x_t, world.x0], 1)
    torch.manual_seed(3)
    made = trainer.predict_noise(noisy_latents=control, timesteps=world.t * 1000, conditional_embeds="captions", batch=batch)
    total = trainer.calculate_loss(noise_pred=made, noise=world.n, noisy_latents=control, timesteps=world.t * 1000, batch=batch)
    check(total, model, wanted, face)
    with pytest.raises(ValueError, match="cannot be called a second time"):
        trainer.calculate_loss(noise_pred=made * 1, noise=world.n, noisy_latents=control, timesteps=world.t * 1000, batch=batch)


def test_musubi_tuner(world, wanted):
    """Z-Image's sign, one frame, and times with one timestep more."""
    model = Model(world)

    NetworkTrainer = musubi_trainer(world, lambda x, times: -model(x.squeeze(2), (times - 1) / 1000), turned=True)
    face = TrainerFace({**ON, **DEMO})
    musubi_tuner.install(face, NetworkTrainer)
    torch.manual_seed(3)
    total, metrics = musubi_step(world, NetworkTrainer())
    check(total, model, wanted, face)
    assert metrics["rollout/counted"] == 2


@pytest.mark.host("names alone")
def test_musubi_tuners_wan_of_two_models_has_no_rollouts():
    class NetworkTrainer:
        high_low_training = True

        def process_batch(self, args):
            raise AssertionError("a rollout was started")

    musubi_tuner.install(TrainerFace({**ON, **DEMO}), NetworkTrainer)
    with pytest.raises(ValueError, match="take `rollouts` out of the section, or train one model alone"):
        NetworkTrainer().process_batch(None)


def test_simpletuner(world, wanted):
    model = Model(world)

    class ModelFoundation:
        vae = world.vae

        def model_predict(self, batch):
            assert torch.allclose(batch["sigmas"].flatten() * 1000, batch["timesteps"])
            return {"model_prediction": model(batch["noisy_latents"], batch["timesteps"] / 1000)}

        def get_prediction_target(self, prepared_batch):
            return prepared_batch["noise"] - prepared_batch["latents"]

        def auxiliary_loss(self, model_output, prepared_batch, loss, *, apply_layersync=True, clear_hidden_state_buffer=True):
            return loss, None

    face, trained = TrainerFace(ON), ModelFoundation()
    simpletuner.install(face, ModelFoundation)
    batch = {
        "latents": world.x0,
        "noise": world.n,
        "noisy_latents": world.x_t,
        "timesteps": world.t * 1000,
        "sigmas": world.t.view(-1, 1, 1, 1),
    }
    torch.manual_seed(3)
    output = trained.model_predict(batch)
    loss = (output["model_prediction"] - world.v).square().mean()
    total, _ = trained.auxiliary_loss(model_output=output, prepared_batch=batch, loss=loss)
    check(total, model, wanted, face)


def test_onetrainer(world, wanted):
    """Timesteps are indices of noise levels, which are one thousandth more."""
    net, t = Model(world), torch.tensor([299, 599], device=world.x0.device)

    class Setup:
        def _get_timestep_discrete(self, num_train_timesteps, deterministic, generator, batch_size, config, shift=None):
            return t

        def _add_noise_discrete(self, scaled_latent_image, latent_noise, timestep, timesteps):
            levels = ((timestep + 1) / 1000).view(-1, 1, 1, 1)
            return torch.lerp(scaled_latent_image, latent_noise, levels), levels

        def predict(self, model, batch, config, train_progress, *, deterministic=False):
            times = self._get_timestep_discrete(1000, deterministic, None, 2, config)
            x, _ = self._add_noise_discrete(world.x0, world.n, times, None)
            return {"predicted": net(x, (times + 1) / 1000), "target": world.v.clone()}

        def calculate_loss(self, model, batch, data, config):
            return (data["predicted"] - data["target"]).square().mean()

    create = ModuleType("create")
    create.create_model_setup = lambda: Setup()
    face = TrainerFace(ON)
    onetrainer.install(face, create)
    setup = create.create_model_setup()
    host, batch = SimpleNamespace(vae=world.vae), {"concept_type": ["STANDARD", "STANDARD"], "image_path": ["a", "b"]}
    torch.manual_seed(3)
    data = setup.predict(host, batch, None, None)
    total = setup.calculate_loss(host, batch, data, None)
    check(total, net, wanted, face)


class Transformer(torch.nn.Module):
    """FLUX's tokens with control tokens behind them, times in fractions; what it returns is turned and mixed by the script, as
    SD3's preconditioning does."""

    def __init__(self, model):
        super().__init__()
        self.model, self.control = model, None

    def forward(self, hidden_states, timestep, return_dict=True):
        h = hidden_states.shape[1] // 2
        assert torch.equal(hidden_states[:, h:], self.control)
        shape = (2, CHANNELS, 8, 8)
        x = LAYOUTS[3].unpack(hidden_states, shape)
        return (torch.cat([patches(self.model(x, timestep)), self.control], 1),)


def test_a_diffusers_script(world, wanted, hooks_end):
    import accelerate

    face, model = TrainerFace(ON), Model(world)
    scripts.install(face)
    accelerator = accelerate.Accelerator(cpu=True)
    transformer = Transformer(model)
    transformer = accelerator.prepare(transformer)
    transformer.control = patches(world.x0)

    def script():
        model_input, noise, noisy_model_input = world.x0, world.n, world.x_t  # noqa: F841
        sigmas = world.t.view(-1, 1, 1, 1)
        torch.manual_seed(3)
        packed = torch.cat([patches(noisy_model_input), patches(world.x0)], 1)
        raw = transformer(hidden_states=packed, timestep=world.t, return_dict=False)[0]
        model_pred = LAYOUTS[3].unpack(raw, model_input.shape) * (-sigmas) + noisy_model_input
        target = model_input
        # SD3 weighs x0's error so that it is the velocity's.
        loss = ((model_pred - target) / sigmas).square().mean()
        accelerator.backward(loss)

    script()
    assert str(face.convention).startswith("x0 = prediction")
    assert model.calls[1:] == GRID
    assert face.logs()["rollout/counted"] == 2
    assert model.w.grad.item() == pytest.approx(wanted.gradient, rel=2e-2)


def test_a_clock_that_stays_open_is_said_once_and_so_is_the_one_that_is_found(world, caplog):
    face, model = TrainerFace({**ON, "warn_after": 2}), Model(world)
    half = torch.full_like(world.t, 0.5)

    def step(x_t, times):
        v = model(x_t, times)
        recall = Recall(model, times, ((v - world.v).square().mean(), v))
        face.step(prediction=v, latents=world.x0, noise=world.n, x_t=x_t, target=world.v, recall=recall)

    with caplog.at_level(logging.INFO, "facegrad"):
        for _ in range(4):
            step((world.x0 + world.n) / 2, half)
        assert not [r for r in caplog.records if r.getMessage().startswith("rollouts: flow")]
        for _ in range(2):
            step(world.x_t, world.t)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("rollouts: ")]
    assert len([line for line in lines if "still open whether" in line]) == 1
    assert lines[-1] == "rollouts: flow matching, the model is told 0 for the picture and 1 for the noise"
    assert len([line for line in lines if "flow matching" in line]) == 1
