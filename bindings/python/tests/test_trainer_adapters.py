"""Each adapter on a stand-in that has its trainer's signatures and calls the hooks in the trainer's order (tests/trainers runs the
trainers' own code). test_trainer_rollouts.py has the same with rollouts."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from trainer_world import ASSETS, SECTION, gradient, musubi_step, musubi_trainer
from trainer_world import hooks_end as hooks_end  # fixtures
from trainer_world import world as world

from facegrad.trainers import (
    ConventionError,
    TrainerFace,
    ai_toolkit,
    diffusion_pipe,
    musubi_tuner,
    onetrainer,
    sd_scripts,
    simpletuner,
    start,
)
from facegrad.trainers import diffusers as scripts


@pytest.mark.host("names alone")
def test_an_unknown_family_of_sd_scripts_has_no_assumed_format():
    """Only the base class itself is SD 1.x."""

    class NetworkTrainer:
        pass

    class SdxlNetworkTrainer(NetworkTrainer):
        pass

    class HunyuanImageNetworkTrainer(NetworkTrainer):
        pass

    found = [sd_scripts._hints(one())["latent_format"] for one in (NetworkTrainer, SdxlNetworkTrainer, HunyuanImageNetworkTrainer)]
    assert found == ["sd15", "sdxl", None]


def test_sd_scripts(world, monkeypatch):
    """Lumina's sign, differential output preservation (the target is overwritten in place) and regularisation pictures."""
    library = ModuleType("library.some_train_util")

    def get_noisy_model_input_and_timesteps(args, noise_scheduler, latents, noise, device, dtype):
        return torch.lerp(latents, noise, world.t.view(-1, 1, 1, 1)), world.t * 1000, world.t

    library.get_noisy_model_input_and_timesteps = get_noisy_model_input_and_timesteps
    monkeypatch.setitem(sys.modules, "library.some_train_util", library)
    prediction = (-(world.v + world.wrong)).requires_grad_()

    class NetworkTrainer:
        def get_noise_pred_and_target(
            self, args, accelerator, noise_scheduler, latents, batch, text, unet, network, weight_dtype, train_unet, is_train=True
        ):
            library.get_noisy_model_input_and_timesteps(args, noise_scheduler, latents, world.n, "cpu", torch.float32)
            target = latents - world.n
            if batch.get("custom_attributes"):
                target[1] = 0.0
            return prediction, target, world.t * 1000, None

        def process_batch(self, batch, text_encoders, unet, network, vae, noise_scheduler, vae_dtype, weight_dtype, accelerator, args,
                          text_encoding_strategy, tokenize_strategy, is_train=True, train_text_encoder=True, train_unet=True):  # fmt: skip
            found = self.get_noise_pred_and_target(
                args, accelerator, noise_scheduler, world.x0, batch, [], unet, network, None, train_unet, is_train=is_train
            )
            return (found[0] - found[1]).square().mean()

        def generate_step_logs(self, args):
            return {"loss/current": 1.0}

    class LuminaNetworkTrainer(NetworkTrainer):
        pass

    # sd-scripts' hint, FLUX's latents, gives way to the section.
    face = TrainerFace({**SECTION, "latent_format": {"custom": {"scale": 2.2085, "shift": -0.0028}}})
    assert sd_scripts.find({"x": 1, "L": LuminaNetworkTrainer}) is NetworkTrainer
    plain = LuminaNetworkTrainer()
    rest = ([], None, None, world.vae, None, None, None, None, SimpleNamespace(), None, None)
    batch = {"captions": ["a", "b"], "images": None}
    mse = plain.process_batch(batch, *rest).item()
    sd_scripts.install(face, NetworkTrainer)
    want, _ = gradient(TrainerFace(SECTION), world)
    trainer = LuminaNetworkTrainer()
    assert trainer.process_batch(batch, *rest).item() - mse == pytest.approx(want, rel=1e-2)
    assert trainer.generate_step_logs(None)["face/counted"] == 2
    assert trainer.process_batch(batch, *rest, is_train=False).item() == pytest.approx(mse)
    trainer.process_batch({**batch, "custom_attributes": [{}, {"diff_output_preservation": True}]}, *rest)
    assert face.logs()["face/counted"] == 1 and face.logs()["face/skipped_preservation"] == 1
    trainer.process_batch({**batch, "face_regularisation": [True, False]}, *rest)
    assert face.logs()["face/skipped_regularisation"] == 1


def test_ai_toolkit(world):
    """OmniGen2's target, control channels, one regularisation picture, prior prediction."""

    class SDTrainer:
        def __init__(self):
            self.additional_logs = {}
            self.sd = SimpleNamespace(
                vae=world.vae, is_flow_matching=True, get_loss_target=lambda noise, batch, timesteps: batch.latents - noise
            )

        def predict_noise(self, *args, **kwargs):
            raise AssertionError("no rollouts, no second prediction")

        def calculate_loss(self, noise_pred, noise, noisy_latents, timesteps, batch, mask_multiplier=1.0, prior_pred=None, **kwargs):
            return torch.zeros(())

    face = TrainerFace(SECTION)
    ai_toolkit.install(face, SDTrainer)
    trainer, items = SDTrainer(), [SimpleNamespace(path="a.png"), SimpleNamespace(path="b.png")]
    batch = SimpleNamespace(
        latents=world.x0, tensor=None, file_items=items, get_caption_list=lambda: ["a", "b"], get_is_reg_list=lambda: [False, False]
    )
    prediction = (-(world.v + world.wrong)).requires_grad_()
    control = torch.cat([world.x_t, world.x0], 1)
    value = trainer.calculate_loss(
        noise_pred=prediction, noise=world.n, noisy_latents=control, timesteps=world.t * 1000, batch=batch, prior_pred=world.n
    )
    assert (
        value.item() == pytest.approx(gradient(TrainerFace(SECTION), world)[0], rel=1e-4) and trainer.additional_logs["face/counted"] == 2
    )
    # A mask weighs the trainer's own loss only.
    mask = torch.zeros_like(world.x_t[:, :1])
    masked = trainer.calculate_loss(prediction, world.n, world.x_t, world.t * 1000, batch, mask_multiplier=mask)
    assert masked.item() == pytest.approx(value.item(), rel=1e-4)
    batch.get_is_reg_list = lambda: [False, True]
    trainer.calculate_loss(prediction, world.n, world.x_t, world.t * 1000, batch)
    assert trainer.additional_logs["face/skipped_regularisation"] == 1
    with torch.no_grad():
        assert trainer.calculate_loss(prediction, world.n, world.x_t, world.t * 1000, batch).item() == 0
    with pytest.raises(ValueError, match="1 of 2 samples"):
        trainer.calculate_loss(prediction[:1], world.n[:1], world.x_t[:1], world.t[:1] * 1000, batch)


def test_ai_toolkits_extension_says_what_it_found(world, monkeypatch, capsys, request):
    """A job's user sees the line of the convention and warnings, though ai-toolkit switches all loggers off."""

    class DiffusionTrainer:
        def __init__(self, process_id, job, config):
            self.config, self.additional_logs, self.sd = config, {}, SimpleNamespace(vae=world.vae, is_flow_matching=True)

        def get_conf(self, key, default=None):
            return self.config.get(key, default)

        def calculate_loss(self, noise_pred, noise, noisy_latents, timesteps, batch):
            return torch.zeros(())

    module = ModuleType("extensions_built_in.sd_trainer.DiffusionTrainer")
    module.DiffusionTrainer = DiffusionTrainer
    for name in ("extensions_built_in", "extensions_built_in.sd_trainer", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    logger = logging.getLogger("facegrad")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "isEnabledFor", logger.isEnabledFor)
    request.addfinalizer(lambda level=logger.level: logger.setLevel(level))
    request.addfinalizer(lambda: logging.disable(logging.NOTSET))
    logging.disable(logging.WARNING)
    (extension,) = ai_toolkit.AI_TOOLKIT_EXTENSIONS
    with pytest.raises(ValueError, match="no section `face_loss`"):
        extension.get_process()(0, None, {})
    trainer = extension.get_process()(0, None, {"face_loss": SECTION})
    items = [SimpleNamespace(path="a.png"), SimpleNamespace(path="b.png")]
    batch = SimpleNamespace(
        latents=world.x0, tensor=None, file_items=items, get_caption_list=lambda: ["", ""], get_is_reg_list=lambda: [False] * 2
    )
    trainer.calculate_loss((world.v + world.wrong).requires_grad_(), world.n, world.x_t, world.t * 1000, batch)
    logger.warning("no sample counted")
    shown = capsys.readouterr().err
    assert "face loss: x0 = x_t - t·v, residual" in shown and "no sample counted" in shown
    assert trainer.additional_logs["face/counted"] == 2


def test_simpletuner(world):
    """A family whose flow points to the data; a regularisation batch; noise of another level per token."""

    class ModelFoundation:
        def __init__(self):
            self.vae = world.vae

        def unload_vae(self):
            raise AssertionError("the VAE's weights are thrown away")

        def get_prediction_target(self, prepared_batch):
            return prepared_batch["latents"] - prepared_batch["noise"]

        def auxiliary_loss(self, model_output, prepared_batch, loss, *, apply_layersync=True, clear_hidden_state_buffer=True):
            return loss, None

    face = TrainerFace({key: value for key, value in SECTION.items() if key != "vae"})
    simpletuner.install(face, ModelFoundation)
    prediction = (-(world.v + world.wrong)).requires_grad_()
    batch = {"latents": world.x0, "noise": world.n, "noisy_latents": world.x_t, "timesteps": world.t * 1000}
    call = {"model_output": {"model_prediction": prediction}, "loss": torch.tensor(1.0)}
    model = ModelFoundation()
    model.unload_vae()  # after caching latents
    assert model.vae is None
    loss, logs = model.auxiliary_loss(prepared_batch=batch, **call)
    assert loss.item() - 1 == pytest.approx(gradient(TrainerFace(SECTION), world)[0], rel=1e-4) and logs["face/counted"] == 2
    assert ModelFoundation().auxiliary_loss(prepared_batch={**batch, "target": world.v}, **call)[0].item() == 1
    tokens = torch.lerp(world.x0, world.n, torch.rand_like(world.x0[:, :1]))
    with pytest.raises(ConventionError, match="noise of another level per token"):
        ModelFoundation().auxiliary_loss(prepared_batch={**batch, "noisy_latents": tokens}, **call)


def test_onetrainer(world):
    """A prior prediction in the batch replaces the target before the loss is computed; validation has no gradient."""
    prediction = (world.v + world.wrong).requires_grad_()

    class Setup:
        def _add_noise_discrete(self, scaled_latent_image, latent_noise, timestep, timesteps):
            return torch.lerp(scaled_latent_image, latent_noise, world.t.view(-1, 1, 1, 1)), world.t

        def predict(self, model, batch, config, train_progress, *, deterministic=False):
            self._add_noise_discrete(world.x0, world.n, None, None)
            return {"predicted": prediction, "target": world.v.clone()}

        def calculate_loss(self, model, batch, data, config):
            return torch.zeros(())

    create = ModuleType("create")
    create.create_model_setup = lambda: Setup()
    face = TrainerFace(SECTION)
    onetrainer.install(face, create)
    setup, model = create.create_model_setup(), SimpleNamespace(vae=world.vae)
    batch = {"concept_type": ["STANDARD", "STANDARD"], "image_path": ["a", "b"]}
    data = setup.predict(model, batch, None, None)
    assert setup.calculate_loss(model, batch, data, None).item() == pytest.approx(gradient(TrainerFace(SECTION), world)[0], rel=1e-4)
    batch["concept_type"] = ["STANDARD", "PRIOR_PREDICTION"]
    data = setup.predict(model, batch, None, None)
    data["target"][1] = 0.0
    setup.calculate_loss(model, batch, data, None)
    assert face.logs()["face/skipped_prior_prediction"] == 1 and face.logs()["face/counted"] == 1
    with torch.no_grad():
        assert setup.calculate_loss(model, batch, data, None).item() == 0


def test_musubi_tuner(world):
    """Z-Image's target, latents with a frame dimension, and a trainer that overrides compute_loss."""

    prediction = (-(world.v + world.wrong)).requires_grad_()
    NetworkTrainer = musubi_trainer(world, lambda x, times: prediction, turned=True)

    class ZImageNetworkTrainer(NetworkTrainer):
        def compute_loss(self, args, output, timesteps, noise_scheduler, dit_dtype, network_dtype, global_step):
            return 2 * (output.pred - output.target).square().mean(), {"loss/gen": 1.0}

    face = TrainerFace({**SECTION, "latent_format": {"custom": {"scale": 2.2085, "shift": -0.0028}}})
    musubi_tuner.install(face, NetworkTrainer)
    value, metrics = musubi_step(world, ZImageNetworkTrainer())
    extra = value.item() - 2 * (prediction + world.v).square().mean().item()
    assert extra == pytest.approx(gradient(TrainerFace(SECTION), world)[0], rel=1e-2)
    assert metrics["face/counted"] == 2 and metrics["loss/gen"] == 1


def test_diffusion_pipe(world):
    """FLUX's tokens with control tokens behind them; the label goes through the pipeline as it does, in micro-batches."""

    def pack(x):
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)

    class BasePipeline:
        def get_loss_fn(self):
            return lambda output, label: (output - label[0]).square().mean()

    diffusion_pipe.install(TrainerFace(SECTION), (BasePipeline,))

    class FluxPipeline(BasePipeline):
        def prepare_inputs(self, inputs, timestep_quantile=None):
            return (torch.cat([pack(world.x_t), pack(world.x0)], 1), world.t), (pack(world.v), torch.tensor([]))

    model = FluxPipeline()
    loss_fn = model.get_loss_fn()
    _, label = model.prepare_inputs({"latents": world.x0})
    prediction = pack(world.v + world.wrong).requires_grad_()
    mse = (prediction - pack(world.v)).square().mean()
    value, want = loss_fn(prediction, label) - mse, gradient(TrainerFace(SECTION), world)
    assert value.item() == pytest.approx(want[0], rel=1e-3)
    assert torch.allclose(torch.autograd.grad(value, prediction)[0], pack(want[1]), rtol=1e-2, atol=1e-8)
    with torch.no_grad():
        assert loss_fn(prediction, label).item() == pytest.approx(mse.item())


def test_diffusion_pipe_models_with_a_loss_of_their_own(world):
    """SDXL has its own loss, whose output is a tuple; another model's loss begins with its base's."""

    class BasePipeline:
        def prepare_inputs(self, inputs, timestep_quantile=None):
            return (world.x_t, world.t), (world.v, torch.tensor([]))

        def get_loss_fn(self):
            return lambda output, label: (output - label[0]).square().mean()

    class Before(BasePipeline):
        def get_loss_fn(self):
            own = super().get_loss_fn()
            return lambda output, label: 2 * own(output, label)

    diffusion_pipe.install(TrainerFace(SECTION), (BasePipeline,))

    class SDXLPipeline(BasePipeline):
        def get_loss_fn(self):
            return lambda output, label: (output[0] - label[0]).square().mean()

    want = gradient(TrainerFace(SECTION), world)
    for model, factor in ((SDXLPipeline(), 1), (Before(), 2)):
        loss_fn = model.get_loss_fn()
        _, label = model.prepare_inputs({"latents": world.x0})
        prediction = (world.v + world.wrong).requires_grad_()
        value = loss_fn((prediction, world.t) if factor == 1 else prediction, label) - factor * (prediction - world.v).square().mean()
        assert value.item() == pytest.approx(want[0], rel=1e-3)


SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

def main():
    accelerator = Accelerator(cpu=True)  # it moves nothing of what is below
    device = sys.argv[4]
    vae = AutoencoderKL.from_pretrained(sys.argv[1]).to(device)
    world = {name: x.to(device) for name, x in torch.load(sys.argv[2]).items()}
    layer = torch.nn.Linear(1, 1)
    layer = accelerator.prepare(layer)
    model_input, noise = world["x0"].repeat(2, 1, 1, 1), world["n"].repeat(2, 1, 1, 1)
    if "--cache_latents" in sys.argv:
        del vae
    noisy_model_input = world["x_t"].repeat(2, 1, 1, 1)
    model_pred = world["v"].repeat(2, 1, 1, 1) + world["wrong"].repeat(2, 1, 1, 1)
    model_pred.requires_grad_()
    leaf = model_pred
    target = noise - model_input
    model_pred, model_pred_prior = torch.chunk(model_pred, 2, dim=0)
    target, target_prior = torch.chunk(target, 2, dim=0)
    accelerator.backward(0 * (model_pred.sum() + model_pred_prior.sum()))
    torch.save(leaf.grad, sys.argv[3])
    accelerator.backward(leaf.sum() * 0)  # a step of the text alone leaves the variables as they are
    torch.save(leaf.grad, sys.argv[3] + ".2")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("cached", [False, True])
def test_a_diffusers_script_is_started_unedited(world, tmp_path, cached, hooks_end, monkeypatch, device):
    """Prior preservation's class pictures get nothing, and the VAE stays where the script deletes it."""
    script = tmp_path / "train_dreambooth_lora_x.py"
    script.write_text(SCRIPT)
    torch.save({k: getattr(world, k).cpu() for k in ("x0", "n", "x_t", "v", "wrong")}, tmp_path / "world.pt")
    without = {k: v for k, v in SECTION.items() if k != "vae"}
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    assert start.adapter_of(script) is scripts
    start.run(
        script,
        [
            str(ASSETS / "vae"),
            *(str(tmp_path / name) for name in ("world.pt", "grad.pt")),
            str(device),
            *(["--cache_latents"] if cached else []),
        ],
        TrainerFace(without),
    )
    found = torch.load(tmp_path / "grad.pt").to(device)
    _, want = gradient(TrainerFace(SECTION), world)
    assert torch.allclose(found[:2], want, rtol=1e-3, atol=1e-8) and found[2:].abs().max() == 0
    assert torch.equal(torch.load(tmp_path / "grad.pt.2").to(device), found)


@pytest.mark.host("names alone")
def test_a_script_with_other_names_is_an_error(tmp_path):
    face, kept = TrainerFace(SECTION), {}
    frame = SimpleNamespace(f_locals={"noise": 1, "target": 2}, f_code=SimpleNamespace(co_filename="x.py"))
    with pytest.raises(RuntimeError, match="x.py: no variable model_input, noisy_model_input, model_pred"):
        scripts._value(face, frame, kept, torch.zeros(()))
    frame.f_locals = {"loss": 1}
    assert scripts._value(face, frame, kept, torch.zeros(())) is None
