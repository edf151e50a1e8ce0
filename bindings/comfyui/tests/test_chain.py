"""The chain's nodes against the fused step and plain PyTorch, and the trainer's wrappers in a trainer of our own; without ComfyUI."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from compare import relative
from conftest import call, portrait
from diffusers import AutoencoderKL

import facegrad
from facegrad_nodes import chain, host, loaders, people, training
from facegrad_nodes.decoder import FaceDecoder

SCALE = 0.18215


def kl() -> AutoencoderKL:
    torch.manual_seed(4)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [32, 32]}
    return (
        AutoencoderKL.from_config({**blocks, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32})
        .eval()
        .requires_grad_(False)
    )


class Format:
    """ComfyUI's latent format of SD1.5."""

    latent_channels = 4

    def process_out(self, latent: torch.Tensor) -> torch.Tensor:
        return latent / SCALE


@pytest.fixture(scope="module")
def vae() -> SimpleNamespace:
    return SimpleNamespace(first_stage_model=kl())


@pytest.fixture(scope="module")
def decoder(vae) -> FaceDecoder:
    torch.manual_seed(4)
    return FaceDecoder(vae, torch.device("cpu"))


@pytest.fixture(scope="module")
def reference(detector, recogniser):
    return call(people.FaceReference, image=portrait(5_000_000), detector=detector, recogniser=recogniser)[0]


def measure(images, reference, detector, recogniser):
    return call(
        chain.FaceLossOnTape, images=images, reference=reference, detector=detector, recogniser=recogniser, weight=0.1, align_mode="kps"
    )


def test_the_decoder_shares_the_weights(vae):
    (decoder,) = call(loaders.VaeForFaceLoss, vae=vae, recompute="none", slicing=False, dtype="auto", device="cpu")
    latent = torch.randn(1, 4, 8, 8)
    weight = vae.first_stage_model.decoder.conv_out.bias
    before = decoder.vae.decode(latent)
    weight += 0.5
    assert torch.allclose(decoder.vae.decode(latent), before + 0.25, atol=1e-4), "the image's range is half of the network's"
    weight -= 0.5


def test_a_vae_of_another_model_or_none_is_refused(decoder):
    with pytest.raises(ValueError, match="face_vae: .*16 channels, this VAE's 4"):
        decoder.latents(SimpleNamespace(latent_channels=16))
    with pytest.raises(ValueError, match="vae: expected .*hold no VAE"):
        FaceDecoder(None, torch.device("cpu"))
    with pytest.raises(ValueError, match="choose device `auto`"):
        decoder.expect_device(torch.device("cuda"))


def test_coefficients_undo_what_comfyui_adds():
    x0, noise, sigma = torch.randn(3), torch.randn(3), 0.7
    exploding = x0 + sigma * noise
    v = (noise - sigma * x0) / (1 + sigma**2) ** 0.5
    for kind, x_t, prediction in (
        ("epsilon", exploding, noise),
        ("v", exploding, v),
        ("flow", (1 - sigma) * x0 + sigma * noise, noise - x0),
        ("sample", x0, x0),
    ):
        a, b = chain.coefficients(kind, sigma)
        assert torch.allclose(a * x_t + b * prediction, x0, atol=1e-5), kind


def test_the_chain_is_the_fused_step(decoder, detector, recogniser, reference, monkeypatch):
    """Node by node with given faces' places against one call; the gradient arrives at the prediction."""
    torch.manual_seed(5)
    x_t, velocity, sigma = torch.randn(2, 4, 56, 56), torch.randn(2, 4, 56, 56), 0.4
    start, x0 = call(chain.PredictX0, prediction={"samples": velocity}, kind="flow", sigma=sigma, device="cpu", x_t={"samples": x_t})
    assert torch.allclose(x0["samples"], x_t - sigma * velocity, atol=1e-6)
    model = SimpleNamespace(model=SimpleNamespace(latent_format=Format()))
    unpacked, latent = call(chain.UnpackLatent, x0=start, face_vae=decoder, latent_format="none", packing="none", model=model)
    assert torch.allclose(latent["samples"], x0["samples"] / SCALE, rtol=1e-5)
    images, picture = call(chain.DecodeOnTape, vae_latent=unpacked, face_vae=decoder, clamp="clamp")
    assert picture.shape == (2, 112, 112, 3)
    where = torch.tensor([reference.faces[0].landmarks] * 2) * 0.8
    measured = chain.Graph.face_loss
    monkeypatch.setattr(chain.Graph, "face_loss", lambda self, node, loss, **more: measured(self, node, loss, landmarks=where, **more))
    loss, value, similarity, overlay = measure(images, reference, detector, recogniser)
    gradient, shown, norm = call(chain.GradientOfLoss, loss=loss)
    assert overlay.shape == picture.shape and shown.shape[:1] == (2,) and norm == pytest.approx(gradient["samples"].norm().item(), rel=1e-5)

    config = {"face_loss_weight": 0.1, "face_align_mode": "kps", "prediction": {"kind": "flow"}, "latent_format": "sd15"}
    fused = facegrad.FaceIdentityLoss(config, vae=decoder.vae, detector=detector, recogniser=recogniser)
    prediction = velocity.clone().requires_grad_()
    want, report = fused(x_t=x_t, prediction=prediction, t=torch.full((2,), sigma), references=reference.images[0][None], landmarks=where)
    want.backward()
    assert value == pytest.approx(want.item(), rel=1e-5) and similarity == pytest.approx(report.similarity, abs=1e-5)
    assert relative(gradient["samples"], prediction.grad) < 1e-4


def test_a_chain_that_is_wired_wrongly_says_how(decoder, detector, recogniser, reference):
    start, _ = call(chain.PredictX0, prediction={"samples": torch.randn(1, 4, 8, 8)}, kind="sample", sigma=0.0, device="cpu")
    with pytest.raises(ValueError, match="images: expected a tape that ends in images, got one that ends in latent"):
        measure(start, reference, detector, recogniser)
    with pytest.raises(ValueError, match="connect it, or choose kind sample"):
        call(chain.PredictX0, prediction={"samples": torch.randn(1, 4, 8, 8)}, kind="flow", sigma=0.5, device="cpu")
    unpacked = call(chain.UnpackLatent, x0=start, face_vae=decoder, latent_format="none", packing="none")[0]
    images, _ = call(chain.DecodeOnTape, vae_latent=unpacked, face_vae=decoder, clamp="clamp")
    with pytest.raises(ValueError, match="images: none counts for the loss: no_face"):
        measure(images, reference, detector, recogniser)


class Host:
    """What the wrappers take from ComfyUI: a model that remembers them, a progress bar, cancel."""

    def __init__(self, monkeypatch):
        self.wrappers, self.progress, self.cancel_at = None, [], None
        self.model = SimpleNamespace(
            latent_format=Format(),
            model_sampling=SimpleNamespace(
                noise_scaling=lambda s, noise, x, _: s.view(-1, 1, 1, 1) * noise + (1 - s.view(-1, 1, 1, 1)) * x
            ),
        )
        monkeypatch.setattr(
            host, "progress_bar", lambda total: SimpleNamespace(update_absolute=lambda step, preview=None: self.progress.append(step))
        )
        monkeypatch.setattr(host, "running_node", lambda: None)
        monkeypatch.setattr(host, "interrupt_if_cancelled", self._interrupt)
        monkeypatch.setattr(host, "add_wrappers", lambda model, sample, predict: SimpleNamespace(sample=sample, predict=predict))

    def _interrupt(self):
        if self.cancel_at is not None and len(self.progress) >= self.cancel_at:
            raise KeyboardInterrupt


class Trainer:
    """A trainer with a sampler's form: the prediction itself is the parameter."""

    total_steps, loss_callback = 3, None

    def __init__(self, latents, sigmas):
        self.latents, self.sigmas = latents, sigmas
        self.prediction = latents.clone().requires_grad_()
        self.optimizer, self.loss_fn, self.losses = object(), torch.nn.MSELoss(), []
        self.loss_callback = self.losses.append

    def train(self, patched, fake):
        conds = [{"n": n} for n in range(len(self.latents))]
        guider = SimpleNamespace(conds={"positive": conds}, inner_model=fake.model)

        class Executor:
            class_obj = self

            def __call__(_, guider, sigmas, extra_args, callback, noise, latent_image, *rest):
                for _ in range(self.total_steps):
                    guider.conds["positive"] = [conds[1], conds[0]]
                    rows = [1, 0]
                    patched.predict(lambda x, t: x, self.latents[rows], self.sigmas)
                    value = self.loss_fn(self.prediction[rows], self.latents[rows])
                    value.backward()
                    self.loss_callback(value.item())
                return latent_image

        return patched.sample(Executor(), guider, self.sigmas, {}, None, None, self.latents)


def apply(decoder, detector, recogniser, **more):
    settings = {
        "weight": 1.0, "align_mode": "kps", "landmarks": "reference", "t_min": 0.0, "t_max": 1.0, "time_weight": "constant", "every_n_steps": 1,
        "target_similarity": 1.0, "decode": "full",
    } | more  # fmt: skip
    model = SimpleNamespace(model=SimpleNamespace(latent_format=Format()))
    return call(training.FaceIdentityLoss, model=model, face_vae=decoder, detector=detector, recogniser=recogniser, **settings)


def latents():
    torch.manual_seed(6)
    return torch.randn(2, 4, 56, 56) * SCALE


def test_the_wrappers_add_the_fused_step_to_a_trainers_loss(decoder, detector, recogniser, monkeypatch):
    fake, images = Host(monkeypatch), torch.cat([portrait(5_000_000), portrait(5_000_001)])
    patched, log = apply(decoder, detector, recogniser, reference_images=images, t_max=0.5, data_types="person\nobject\n")
    trainer = Trainer(latents(), torch.tensor([0.9, 0.3]))
    own = trainer.loss_fn, trainer.loss_callback
    trainer.train(patched, fake)
    assert (trainer.loss_fn, trainer.loss_callback) == own and fake.progress == [1, 2, 3]
    # Image 1 came first: its data type does not count. Image 0 had noise level 0.3.
    assert [record.outcomes for record in log.records] == [["data_type", "counted"]] * 3 and log.skipped() == {"data_type": 3}
    config = {
        "face_align_mode": "kps",
        "landmarks": "reference",
        "face_loss_weight": 1.0,
        "prediction": {"kind": "sample"},
        "latent_format": "sd15",
    }
    fused = facegrad.FaceIdentityLoss(config, vae=decoder.vae, detector=detector, recogniser=recogniser)
    prediction = trainer.latents.clone().requires_grad_()
    value, _ = fused(prediction=prediction, t=torch.tensor([0.3, 0.3]), references=images.movedim(-1, 1), data_types=["person", "object"])
    (3 * value).backward()
    assert relative(trainer.prediction.grad, prediction.grad) < 1e-4
    assert prediction.grad[0].norm() > 0 == prediction.grad[1].norm()
    assert trainer.losses == pytest.approx([value.item()] * 3) and log.records[0].identity == pytest.approx(value.item())


def test_gates_and_schedule_cost_and_change_nothing(decoder, detector, recogniser, monkeypatch):
    fake, images = Host(monkeypatch), torch.cat([portrait(5_000_000), portrait(5_000_001)])
    patched, log = apply(decoder, detector, recogniser, reference_images=images, t_max=0.5, every_n_steps=2)
    trainer = Trainer(latents(), torch.tensor([0.9, 0.8]))
    trainer.train(patched, fake)
    assert [record.outcomes for record in log.records] == [["time"] * 2, ["step"] * 2, ["time"] * 2] and not trainer.prediction.grad.any()


def test_a_cancelled_or_failed_training_leaves_the_trainer_as_it_was(decoder, detector, recogniser, monkeypatch):
    fake = Host(monkeypatch)
    patched, log = apply(decoder, detector, recogniser, reference_images=[portrait(5_000_000), portrait(5_000_001)])
    trainer = Trainer(latents(), torch.tensor([0.5, 0.5]))
    own, fake.cancel_at = (trainer.loss_fn, trainer.loss_callback), 2
    with pytest.raises(KeyboardInterrupt):
        trainer.train(patched, fake)
    assert (trainer.loss_fn, trainer.loss_callback) == own and len(log.records) == 2
    assert patched.predict(lambda x, t: x + t, 1, 2) == 3, "outside of a training the prediction passes"
    fake.cancel_at = None
    trainer.train(patched, fake)
    assert len(log.records) == 3, "a new training starts a new log"


def test_an_ordinary_sampler_passes_and_an_unknown_trainer_is_refused(decoder, detector, recogniser, monkeypatch):
    Host(monkeypatch)
    patched, log = apply(decoder, detector, recogniser, reference_images=portrait(5_000_000))

    class Executor:
        class_obj = SimpleNamespace()

        def __call__(self, *arguments):
            return arguments

    assert patched.sample(Executor(), 1, 2, 3, 4, 5, 6, 7, 8) == (1, 2, 3, 4, 5, 6, 7, 8) and not log.records
    Executor.class_obj = SimpleNamespace(optimizer=object())
    with pytest.raises(ValueError, match="use ComfyUI's Train LoRA node"):
        patched.sample(Executor(), 1, 2, 3, 4, 5)


def test_settings_that_cannot_work_are_refused_in_the_node(decoder, detector, recogniser, reference, monkeypatch):
    fake = Host(monkeypatch)
    for wrong, message in (
        ({"reference": reference, "reference_images": portrait(5_000_000), "landmarks": "detect"}, "not both"),
        ({"reference": reference}, "choose detect"),
        ({"reference_images": torch.zeros(2, 64, 64, 3)}, "no face was found in any of the 2 reference image"),
        ({"options": '{"face_loss_wieght": 1}'}, "^options: .*face_loss_weight"),
        ({"options": '{"face_align_mode": "eyes"}'}, "^options: .*bbox"),
        ({"t_min": 0.8, "t_max": 0.2}, "t_min"),
        ({"t_min": 0.8, "t_max": 0.2, "options": '{"clamp": "soft"}'}, "^(?!options).*t_min"),
    ):
        with pytest.raises((ValueError, facegrad.FacegradError), match=message):
            apply(decoder, detector, recogniser, **wrong)
    trainer = Trainer(latents(), torch.tensor([0.5, 0.5]))
    for wrong, message in (
        ({"reference_images": torch.cat([portrait(5_000_000)] * 3)}, "3 reference images for a training set of 2"),
        ({"data_types": "person"}, "1 lines, the training set 2 images"),
        ({"reference_images": portrait(5_000_000)}, "one reference image cannot show all 2 training images"),
        ({"reference_images": portrait(5_000_000), "landmarks": "detect_or_reference"}, "choose landmarks `detect`"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.train(apply(decoder, detector, recogniser, **wrong)[0], fake)


def test_a_training_in_which_nothing_counts_says_why(decoder, detector, recogniser, monkeypatch, caplog):
    """Every image is its own reference: the decodes of empty latents have no face."""
    fake = Host(monkeypatch)
    patched, log = apply(decoder, detector, recogniser)
    trainer = Trainer(torch.zeros(2, 4, 56, 56), torch.tensor([0.5, 0.5]))
    trainer.train(patched, fake)
    assert log.skipped() == {"no_reference_face": 6} and all(math.isnan(record.similarity) for record in log.records)
    assert not trainer.prediction.grad.any() and "6 × no_reference_face" in caplog.text
