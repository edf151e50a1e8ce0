"""What the adapters call: conventions read from tensors, the section, faces from clean latents; and each adapter on a
stand-in that calls its hooks in the trainer's order (tests/trainers runs the trainers' own code)."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from compare import relative
from conftest import ROOT

import facegrad
from facegrad.trainers import (
    ConventionError,
    TrainerFace,
    ai_toolkit,
    diffusion_pipe,
    fit,
    musubi_tuner,
    onetrainer,
    read_section,
    sd_scripts,
    simpletuner,
    start,
)
from facegrad.trainers import diffusers as scripts

ASSETS = ROOT / "examples/demo_assets"
sys.path.insert(0, str(ASSETS))
import faces

SECTION = {"detector": {"path": str(ASSETS / "detector.onnx"), "det_sizes": [192]}, "recogniser": str(ASSETS / "recogniser.safetensors"),
           "vae": str(ASSETS / "vae")}  # fmt: skip


def levels(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


#: name → (x_t, target) of clean latents and noise, and the noise levels that are due.
T, ALPHA = levels(0.001, 0.3, 0.9), levels(0.9999, 0.5, 0.02)
P, Q = ALPHA.sqrt(), (1 - ALPHA).sqrt()
CONVENTIONS = {
    "flow": (lambda x0, n: ((1 - T) * x0 + T * n, n - x0), "x0 = x_t - t·v", T),
    "negated": (lambda x0, n: ((1 - T) * x0 + T * n, x0 - n), "x0 = x_t + t·v", T),
    "epsilon": (lambda x0, n: (P * x0 + Q * n, n), "x0 = (x_t - q·eps)/p", Q),
    "v": (lambda x0, n: (P * x0 + Q * n, P * n - Q * x0), "x0 = p·x_t - q·v", Q),
    "sample": (lambda x0, n: ((1 - T) * x0 + T * n, x0), "x0 = prediction", T),
    "edm": (lambda x0, n: (x0 + 5 * T * n, x0), "x0 = prediction", 5 * T / (1 + 25 * T**2).sqrt()),
    "scaled noise": (lambda x0, n: ((1 - T) * x0 + 8 * T * n, 8 * n - x0), "x0 = 1·x_t + -0.001·prediction", T),
}


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conventions_are_read_from_the_tensors(name, dtype, device):
    g = torch.Generator().manual_seed(1)
    x0, n = 0.8 * torch.randn(3, 4, 16, 16, generator=g), torch.randn(3, 4, 16, 16, generator=g)
    mix, formula, level = CONVENTIONS[name]
    x_t, target = mix(x0, n)
    found = fit(*(x.to(device, dtype) for x in (x0, x_t, target, n)))
    near = 1e-5 if dtype == torch.float32 else 5e-3
    back = found.a.view(-1, 1, 1, 1) * x_t + found.b.view(-1, 1, 1, 1) * target
    assert (back - x0).norm() / x0.norm() < near
    assert torch.allclose(found.level, level.flatten().double(), atol=near)
    assert found.residual < (1e-6 if dtype == torch.float32 else 1e-2)
    if dtype == torch.float32:
        assert str(found).startswith(formula)
    if name in ("flow", "negated", "epsilon", "v"):
        without = fit(*(x.to(device, dtype) for x in (x0, x_t, target)), tolerance=0.05)
        assert torch.allclose(without.coefficients, found.coefficients, rtol=near, atol=near)


def test_a_misfit_is_an_error_that_names_both(device):
    g = torch.Generator().manual_seed(1)
    x0, n, other = (torch.randn(2, 4, 8, 8, generator=g).to(device) for _ in range(3))
    x_t = 0.5 * x0 + 0.5 * n
    with pytest.raises(ConventionError, match=r"noisy latents \(x_t\) should be a mixture.*x_t\): 1e\+00|noisy latents.*the target"):
        fit(x0, other, n - x0, n)
    with pytest.raises(ConventionError, match="the target should be a mixture"):
        fit(x0, x_t, other, n)
    with pytest.raises(ConventionError, match="multiple of the noisy latents"):
        fit(x0, x_t, 2 * x_t, n)
    with pytest.raises(ConventionError, match="the configuration says epsilon, the trainer's tensors say flow, negated"):
        fit(x0, x_t, x0 - n, n).check({"kind": "epsilon", "time": "alpha_bar"})
    fit(x0, x_t, x0 - n, n).check({"kind": "z_image"})
    fit(x0, x_t, n - x0, n).check({"kind": "flow"})
    with pytest.raises(ConventionError, match="expected one shape"):
        fit(x0, x_t, n[:, :2], n)


@pytest.mark.host("keys alone")
def test_the_section_is_checked(tmp_path):
    file = tmp_path / "face.yaml"
    file.write_text("face_loss: {face_loss_weight: 0.2, persons: {anna: photos, ben: {pictures: [a.png], match: '*/ben/*'}}}")
    for content, message in [
        ({"face_los_weight": 1}, "did you mean `face_loss_weight`"),
        ({"references": "batch"}, "expected one of latents, pictures, persons"),
        ({"references": "persons"}, "needs `persons`"),
        ({"references": "latents", "persons": {"anna": "x"}}, "leave `references` out"),
        ({"persons": {"anna": {"folder": "x"}}}, "persons: anna: expected"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_section(content)
    with pytest.raises(ValueError, match="face.yaml.*each needs `match`"):
        read_section(file)
    section = read_section({"time_weight": {"min_snr": 5}, "persons": {"anna": "photos"}})
    assert (section.references, section.landmarks, section.min_snr, section.average) == ("persons", "latents", 5.0, "batch")


@pytest.fixture(scope="module")
def world(device):
    """Two portraits as clean latents of the demo's VAE, with noise, levels, and a prediction that is near the truth."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(ASSETS / "vae").requires_grad_(False)
    drawn = [faces.portrait(9_500_000 + k, 64, zoom=1.1) for k in range(2)]
    pictures = torch.stack([torch.from_numpy(d.image).permute(2, 0, 1).float() / 255 for d in drawn])
    x0 = (vae.encode(pictures * 2 - 1).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    g = torch.Generator().manual_seed(5)
    n = torch.randn(x0.shape, generator=g)
    t = torch.tensor([0.3, 0.6])
    x_t = torch.lerp(x0, n, t.view(-1, 1, 1, 1))
    made = {"x0": x0, "n": n, "t": t, "x_t": x_t, "v": n - x0, "wrong": torch.randn(x0.shape, generator=g), "pictures": pictures}
    return SimpleNamespace(vae=vae.to(device), **{name: x.to(device) for name, x in made.items()})


def told(w, sign=1.0, **changes):
    """The arguments of a step, and the prediction."""
    prediction = (sign * (w.v + w.wrong)).requires_grad_()
    return {"prediction": prediction, "latents": w.x0, "noise": w.n, "x_t": w.x_t, "target": sign * w.v, **changes}, prediction


def gradient(face, w, sign=1.0, **changes):
    arguments, prediction = told(w, sign, **changes)
    value = face.step(**arguments)
    return value.item(), torch.autograd.grad(value, prediction)[0]


def test_the_sign_of_the_flow_makes_no_difference(world, caplog):
    with caplog.at_level(logging.INFO, "facegrad"):
        one, plus = gradient(TrainerFace(SECTION), world)
        two, minus = gradient(TrainerFace(SECTION), world, sign=-1.0)
    assert one == pytest.approx(two, rel=1e-4) and one > 0
    assert torch.allclose(plus, -minus, rtol=1e-3, atol=1e-9) and plus.abs().max() > 0
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("face loss: x0")]
    assert [line.split(", ")[0] for line in lines] == ["face loss: x0 = x_t - t·v", "face loss: x0 = x_t + t·v"]
    made = [r.getMessage() for r in caplog.records if r.getMessage().startswith("face loss: references")]
    assert (
        len(made) == 2 and "references from latents, places of faces from latents, VAE of the section, detector of the section" in made[0]
    )


def networks(device):
    """Those of the section."""
    return {
        "vae": facegrad.Vae(SECTION["vae"], device=device),
        "detector": facegrad.Detector(SECTION["detector"]["path"], det_sizes=[192], device=device),
        "recogniser": facegrad.Recogniser(SECTION["recogniser"], device=device),
    }


def test_clean_latents_are_reference_and_landmarks(world, device):
    """The same as a picture of the clean latents handed over as the reference, with the landmarks found there."""
    face = TrainerFace(SECTION)
    value, found = gradient(face, world)
    parts = networks(device)
    clean = parts["vae"].decode(world.x0 / world.vae.config.scaling_factor + world.vae.config.shift_factor).clamp(0, 1)
    loss = facegrad.FaceIdentityLoss({"landmarks": "reference", "face_align_mode": "kps"}, **parts)
    _, prediction = told(world)
    plain, report = loss(prediction=prediction, x_t=world.x_t, t=world.t, references=clean)
    assert report.counted == 2 and value == pytest.approx(plain.item(), rel=1e-3)
    assert torch.allclose(found, torch.autograd.grad(plain, prediction)[0], rtol=1e-2, atol=1e-7)


def test_a_clean_picture_is_decoded_once(world):
    face = TrainerFace(SECTION)
    for t in (0.2, 0.5, 0.9):
        x_t = torch.lerp(world.x0, world.n, t)
        noise = 1e-3 * torch.randn_like(world.x0)  # as the VAE's sampling makes it
        gradient(face, world, x_t=x_t + (1 - t) * noise, latents=world.x0 + noise, target=world.v - noise)
    assert face._places.decoded == 2
    flipped = SimpleNamespace(**{**vars(world), **{k: getattr(world, k).flip(-1) for k in ("x0", "n", "x_t", "v")}})
    gradient(face, flipped)
    assert face._places.decoded == 4


def test_one_frame_and_control_channels(world, bounds):
    """[N,C,1,h,w], [N,1,C,h,w], and control latents behind the noisy ones."""
    value, found = gradient(TrainerFace(SECTION), world)
    for place in (2, 1):
        arguments, prediction = told(world)
        arguments = {k: x.unsqueeze(place) for k, x in arguments.items()}
        again = TrainerFace(SECTION).step(**arguments)
        assert again.item() == pytest.approx(value, rel=bounds.value)
        assert relative(torch.autograd.grad(again, prediction)[0], found) <= bounds.gradient
    again, _ = gradient(TrainerFace(SECTION), world, x_t=torch.cat([world.x_t, world.x0], 1))
    assert again == pytest.approx(value, rel=bounds.value)
    arguments, _ = told(world)
    with pytest.raises(ValueError, match="single frames"):
        TrainerFace(SECTION).step(**{k: x.unsqueeze(2).expand(-1, -1, 3, -1, -1) for k, x in arguments.items()})


def test_regularisation_pictures_get_nothing(world):
    # One object finds the places once: those of pictures decoded in another batch differ by how their pixels round to 8 bits.
    face = TrainerFace(SECTION)
    _, both = gradient(face, world)
    face.logs()
    _, found = gradient(face, world, skip=[None, "regularisation"])
    assert found[0].abs().max() > 0 == found[1].abs().max()
    assert face.logs()["face/skipped_regularisation"] == 1 and face.logs()["face/counted"] == 1
    assert relative(found[0], both[0]) <= 1e-3  # the mean is over the batch
    arguments, _ = told(world, skip=["regularisation"] * 2, target=torch.zeros_like(world.v))
    assert face.step(**arguments).item() == 0


def test_persons_are_told_apart(world, tmp_path):
    from PIL import Image

    for at, name in enumerate(("anna", "ben")):
        (tmp_path / name).mkdir()
        picture = (world.pictures[at].permute(1, 2, 0) * 255).byte().cpu().numpy()
        Image.fromarray(picture).save(tmp_path / name / "1.png")
        Image.fromarray(picture).resize((96, 80)).save(tmp_path / name / "2.png")
    persons = {name: {"pictures": str(tmp_path / name), "match": f"/{name}/"} for name in ("anna", "ben")}
    face = TrainerFace({**SECTION, "persons": persons})
    gradient(face, world, paths=["data/anna/5.png", "data/ben/7.png"])
    right = [s.similarity for s in face.term.report.samples]
    gradient(face, world, paths=["data/ben/5.png", "data/anna/7.png"])
    wrong = [s.similarity for s in face.term.report.samples]
    assert face.logs()["face/counted"] == 2 and min(right) > max(wrong)
    gradient(face, world, paths=["data/carl/5.png", "data/anna/7.png"])
    assert face.logs()["face/skipped_no_person"] == 1
    with pytest.raises(ValueError, match="matches anna and ben"):
        gradient(face, world, paths=["data/anna/ben/5.png"] * 2)
    with pytest.raises(ValueError, match="neither paths nor captions"):
        gradient(face, world)


def test_a_picture_without_a_face_counts_nothing(world):
    grey = SimpleNamespace(**{**vars(world)})
    blank = world.vae.encode(torch.zeros_like(world.pictures[:1])).latent_dist.mean
    grey.x0 = torch.cat([world.x0[:1], (blank - world.vae.config.shift_factor) * world.vae.config.scaling_factor])
    grey.x_t, grey.v = torch.lerp(grey.x0, grey.n, grey.t.view(-1, 1, 1, 1)), grey.n - grey.x0
    face = TrainerFace(SECTION)
    _, found = gradient(face, grey)
    assert face.logs()["face/skipped_no_reference_face"] == 1 and found[1].abs().max() == 0 < found[0].abs().max()


def test_min_snr_weighs_by_the_ratio_of_the_tensors(world):
    face = TrainerFace({**SECTION, "time_weight": {"min_snr": 1.0}})
    gradient(face, world)
    snr = ((1 - world.t) / world.t).square()
    assert [s.weight for s in face.term.report.samples] == pytest.approx((1 / snr).clamp(max=1).tolist(), rel=1e-4)


def test_a_stated_prediction_is_compared(world):
    gradient(TrainerFace({**SECTION, "prediction": {"kind": "flow"}}), world)
    with pytest.raises(ConventionError, match="configuration says flow"):
        gradient(TrainerFace({**SECTION, "prediction": {"kind": "flow"}}), world, sign=-1.0)


def test_a_restored_face_remembers_its_pictures(world, tmp_path, bounds):
    before, after = TrainerFace(SECTION), TrainerFace(SECTION)
    first = gradient(before, world)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second = gradient(after, world)
    assert second[0] == pytest.approx(first[0], rel=bounds.again) and bounds.same(second[1], first[1])
    assert after._places.decoded == 0 and after.term.step == 2


def test_the_trainers_own_vae_is_used(world, bounds):
    without = {k: v for k, v in SECTION.items() if k != "vae"}
    want, _ = gradient(TrainerFace(SECTION), world)
    assert gradient(TrainerFace(without), world, vae=world.vae)[0] == pytest.approx(want, rel=bounds.value)
    with pytest.raises(ValueError, match="name its file or folder"):
        gradient(TrainerFace(without), world)


class Foreign(torch.nn.Module):
    """A VAE of a class that the library does not know: its decoder runs as it is."""

    def __init__(self, vae):
        super().__init__()
        self.inner = vae
        self.config = SimpleNamespace(scaling_factor=vae.config.scaling_factor, shift_factor=vae.config.shift_factor, latent_channels=16)
        self.decoded = 0

    def decode(self, z, return_dict=True):
        self.decoded += len(z)
        return self.inner.decode(z, return_dict=return_dict)


def test_a_vae_that_the_library_cannot_read_decodes_by_itself(world):
    """For the estimate, with a gradient, and for the clean latents."""
    without = {k: v for k, v in SECTION.items() if k != "vae"}
    named = {**without, "latent_format": {"custom": {"scale": world.vae.config.scaling_factor, "shift": world.vae.config.shift_factor}}}
    foreign = Foreign(world.vae)
    face = TrainerFace(named)
    value, found = gradient(face, world, vae=foreign)
    want, right = gradient(TrainerFace(SECTION), world)
    assert not face.term.loss.vae.native and foreign.decoded == 4
    assert value == pytest.approx(want, rel=1e-3) and relative(found, right) <= 1e-2


def test_a_model_of_pixels_needs_no_vae(world, device):
    """`vae: pixels`: the latents are pictures in [-1, 1]."""
    pixels = SimpleNamespace(**vars(world))
    pixels.x0 = world.pictures * 2 - 1
    g = torch.Generator().manual_seed(5)
    pixels.n, pixels.wrong = (scale * torch.randn(pixels.x0.shape, generator=g).to(device) for scale in (1.0, 0.2))
    pixels.x_t, pixels.v = torch.lerp(pixels.x0, pixels.n, pixels.t.view(-1, 1, 1, 1)), pixels.n - pixels.x0
    face = TrainerFace({**SECTION, "vae": "pixels"})
    value, found = gradient(face, pixels)
    assert face.logs()["face/counted"] == 2
    parts = networks(device) | {"vae": lambda x: x / 2 + 0.5}
    loss = facegrad.FaceIdentityLoss({"landmarks": "reference", "face_align_mode": "kps", "latent_format": "none"}, **parts)
    _, prediction = told(pixels)
    plain, report = loss(prediction=prediction, x_t=pixels.x_t, t=pixels.t, references=pixels.pictures)
    assert report.counted == 2 and value == pytest.approx(plain.item(), rel=1e-3)
    assert relative(found, torch.autograd.grad(plain, prediction)[0]) <= 1e-2


def test_buckets_have_sizes_of_their_own(world, device, bounds):
    """Batches of another size between the others, with the references of each found once."""
    face, wide = TrainerFace(SECTION), SimpleNamespace(**vars(world))
    pictures = torch.nn.functional.pad(world.pictures * 2 - 1, (16, 16, 0, 32))
    wide.x0 = (world.vae.encode(pictures).latent_dist.mean - world.vae.config.shift_factor) * world.vae.config.scaling_factor
    g = torch.Generator().manual_seed(6)
    wide.n, wide.wrong = (torch.randn(wide.x0.shape, generator=g).to(device) for _ in range(2))
    wide.x_t, wide.v = torch.lerp(wide.x0, wide.n, wide.t.view(-1, 1, 1, 1)), wide.n - wide.x0
    first = gradient(face, world)[0]
    other = gradient(face, wide)[0]
    assert face.logs()["face/counted"] == 2 and face._places.decoded == 4
    assert gradient(face, world)[0] == pytest.approx(first, rel=bounds.value) and face._places.decoded == 4
    assert other == pytest.approx(gradient(TrainerFace(SECTION), wide)[0], rel=bounds.value)


# The adapters, each on a stand-in with its trainer's signatures and order of calls.


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

    class NetworkTrainer:
        def get_noisy_model_input_and_timesteps(self, args, noise, latents, timesteps, noise_scheduler, device, dtype):
            return torch.lerp(latents, noise, world.t.view(-1, 1, 1, 1, 1)), world.t * 1000 + 1

        def process_batch(
            self,
            args,
            accelerator,
            transformer,
            network,
            batch,
            latents,
            noise,
            noise_scheduler,
            dit_dtype,
            network_dtype,
            vae,
            global_step,
        ):
            _, timesteps = self.get_noisy_model_input_and_timesteps(args, noise, latents, None, noise_scheduler, "cpu", dit_dtype)
            output = SimpleNamespace(pred=prediction, target=-world.v)
            return self.compute_loss(args, output, timesteps, noise_scheduler, dit_dtype, network_dtype, global_step)

        def compute_loss(self, args, output, timesteps, noise_scheduler, dit_dtype, network_dtype, global_step):
            return (output.pred - output.target).square().mean(), {}

    class ZImageNetworkTrainer(NetworkTrainer):
        def compute_loss(self, args, output, timesteps, noise_scheduler, dit_dtype, network_dtype, global_step):
            return 2 * (output.pred - output.target).square().mean(), {"loss/gen": 1.0}

    prediction = (-(world.v + world.wrong)).requires_grad_()
    face = TrainerFace({**SECTION, "latent_format": {"custom": {"scale": 2.2085, "shift": -0.0028}}})
    musubi_tuner.install(face, NetworkTrainer)
    five = [x.unsqueeze(2) for x in (world.x0, world.n)]
    value, metrics = ZImageNetworkTrainer().process_batch(
        None, None, None, None, {"face_paths": ["x/a", "x/b"]}, *five, None, None, None, None, 0
    )
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
def test_a_diffusers_script_is_started_unedited(world, tmp_path, cached, monkeypatch, device, bounds):
    """Prior preservation's class pictures get nothing, and the VAE stays where the script deletes it."""
    import accelerate
    import diffusers

    script = tmp_path / "train_dreambooth_lora_x.py"
    script.write_text(SCRIPT)
    torch.save({k: getattr(world, k).cpu() for k in ("x0", "n", "x_t", "v", "wrong")}, tmp_path / "world.pt")
    without = {k: v for k, v in SECTION.items() if k != "vae"}
    for owner, name in ((accelerate.Accelerator, "backward"), (accelerate.Accelerator, "prepare")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for name in [n for n in dir(diffusers) if n.startswith(("Autoencoder", "AsymmetricAutoencoder", "VQModel"))]:
        one = getattr(diffusers, name)
        if isinstance(one, type) and "from_pretrained" not in vars(one):
            monkeypatch.setattr(one, "from_pretrained", one.from_pretrained)
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
