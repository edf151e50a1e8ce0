"""What the adapters call: conventions read from tensors, the section, faces from clean latents. test_trainer_adapters.py has the
adapters themselves."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from compare import relative
from trainer_world import SECTION, gradient, networks, told
from trainer_world import world as world  # the fixture

import facegrad
from facegrad.trainers import ConventionError, TrainerFace, fit, read_section


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
