"""VAEs in memory as people have them: the host's own decoders, compiled and wrapped ones, and what a decoder may return."""

from __future__ import annotations

import logging
import types

import pytest
import torch
from compare import relative
from conftest import FIXTURES, SMALL
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from safetensors.torch import load_file, save_file

import facegrad


@pytest.fixture()
def smooth(tmp_path, device):
    """The small recogniser with PReLUs of slope 1. Two decoders round differently, and at a kink rounding decides the gradient."""
    weights = load_file(FIXTURES / "nets/small.safetensors")
    save_file({name: torch.ones_like(w) if "prelu" in name else w for name, w in weights.items()}, tmp_path / "smooth.safetensors")
    return facegrad.Recogniser(tmp_path / "smooth.safetensors", device=device)


def test_any_decoder_gives_the_host_its_gradient(chain, recogniser, smooth, device, bounds):
    """The same loss through the library's decoder and through the host's own, with gates and report."""
    torch.manual_seed(6)
    vae = AutoencoderKL(**SMALL, scaling_factor=0.7, shift_factor=0.1).eval().requires_grad_(False).to(device)
    keys = {"face_align_mode": "kps", "t_max": 0.8, "time_weight": "one_minus_t"}
    native = facegrad.FaceIdentityLoss(keys, vae=vae, detector=False, recogniser=smooth)
    assert native.vae.native
    size = [n // 2 for n in chain["images"].shape[-2:]]
    x_t, velocity = (torch.randn(3, 4, *size).to(device) for _ in range(2))
    known = {name: chain[name] for name in ("references", "landmarks", "reference_landmarks")}

    def run(face):
        prediction = velocity.clone().requires_grad_()
        value, report = face(x_t=x_t, prediction=prediction, t=[0.2, 0.9, 0.5], data_types=["person", "person", "person_head"], **known)
        value.backward()
        return value.item(), report, prediction.grad

    class Mine(torch.nn.Module):
        """A class that the library has never seen."""

        config = dict(vae.config)

        def __init__(self):
            super().__init__()
            self.inner = torch.nn.ModuleList([vae])

        def decode(self, z):
            return vae.decode(z)

    def function(z):
        return vae.decode(z / 0.7 + 0.1).sample / 2 + 0.5

    want = run(native)
    assert [s.outcome.name for s in want[1].samples] == ["COUNTED", "TIME", "COUNTED"]
    for host in (Mine(), function):
        face = facegrad.FaceIdentityLoss(keys, vae=host, detector=False, recogniser=smooth)
        assert not face.vae.native
        value, report, gradient = run(face)
        assert value == pytest.approx(want[0], rel=bounds.value) and [s.outcome for s in report.samples] == [
            s.outcome for s in want[1].samples
        ]
        assert relative(gradient, want[2]) <= bounds.gradient and gradient[1].abs().max() == 0
        assert torch.allclose(
            face.vae.decode(x_t[:1]), native.vae.decode(x_t[:1]) if host is not function else function(x_t[:1]), atol=1e-4
        )
    # A model of pixels needs no decoder: the latent is the picture.
    pixels = facegrad.FaceIdentityLoss(
        {"face_align_mode": "kps", "prediction": {"kind": "sample"}}, vae=lambda x: x, detector=False, recogniser=recogniser
    )
    images = chain["images"].clone().requires_grad_()
    value, _ = pixels(prediction=images, sample_weights=chain["weights"], **known)
    value.backward()
    assert value.item() == pytest.approx(chain["loss"].item(), rel=bounds.value)
    inside = (chain["images"] > 0) & (chain["images"] < 1)
    assert relative(images.grad[inside], chain["gradient"][inside]) <= bounds.gradient


def test_what_a_hosts_decoder_throws_comes_out(chain, recogniser):
    class Special(Exception):
        pass

    def throws(z):
        raise Special("mine")

    def detached(z):
        return z.detach()

    known = {name: chain[name] for name in ("references", "landmarks", "reference_landmarks")}
    for decoder, error, text in [
        (throws, Special, "mine"),
        (detached, RuntimeError, "do not depend on the latents"),
        (lambda z: z[0], TypeError, r"\[B,3,H,W\]"),
    ]:
        face = facegrad.FaceIdentityLoss(
            {"prediction": {"kind": "sample"}, "face_align_mode": "kps"}, vae=decoder, detector=False, recogniser=recogniser
        )
        with pytest.raises(error, match=text):
            face(prediction=chain["images"].clone().requires_grad_(), **known)
    with pytest.raises(ValueError, match="dtype: for the library's own decoders"):
        facegrad.Vae(throws, dtype="bf16")


def test_window_only_with_a_hosts_decoder_poisoned_the_context(chain, recogniser, caplog):
    """The library asked how many pixels a latent of the host's decoder has, and divided by 0."""

    def run(decode):
        keys = {"face_align_mode": "kps", "decode": decode}
        face = facegrad.FaceIdentityLoss(
            keys, vae=lambda z: z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3), detector=False, recogniser=recogniser
        )
        prediction = torch.rand(3, 4, *(n // 2 for n in chain["images"].shape[-2:]), device=chain["images"].device)
        return face(
            prediction=prediction, x_t=prediction, t=[0.1] * 3,
            **{name: chain[name] for name in ("references", "landmarks", "reference_landmarks")},
        )  # fmt: skip

    with pytest.raises(facegrad.FacegradError, match='"window_only" is not possible: the host\'s own decoder') as caught:
        run("window_only")
    assert caught.value.status == 3
    with caplog.at_level(logging.INFO, "facegrad"):
        _, report = run("window")
    assert "decode: the host's own decoder shows none of its layers, so whole images are decoded" in caplog.text
    assert {sample.decoded.name for sample in report.samples} == {"FULL"}


def test_a_vae_in_memory_as_people_have_it(caplog, device):
    torch.manual_seed(0)
    vae = AutoencoderKL(**SMALL).eval().to(device)
    z = torch.randn(1, 4, 8, 8).to(device)
    with torch.no_grad():
        want = (vae.decode(z).sample + 1) / 2

    class Own(AutoencoderKL):
        pass

    own = Own(**SMALL).to(device)
    own.load_state_dict(vae.state_dict())
    part = AutoencoderKL(**SMALL).to(device)
    part.load_state_dict(vae.state_dict())
    part.decoder = torch.compile(part.decoder)
    for module in (torch.compile(vae), part, torch.nn.DataParallel(vae), own):
        ours = facegrad.Vae(module)
        assert ours.native and torch.allclose(ours.decode(z), want, atol=1e-5)
    # Offloaded or quantised weights cannot be shared: the module decodes itself.
    quantised = AutoencoderKL(**SMALL).to(device)
    quantised.load_state_dict(vae.state_dict())
    conv = quantised.decoder.conv_in
    codes, scale = torch.round(conv.weight.detach() * 1e4).to(torch.int32), 1e-4

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", codes)
            self.register_buffer("bias", conv.bias.detach())

        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.weight * scale, self.bias, padding=1)

    quantised.decoder.conv_in = Packed()
    with caplog.at_level(logging.INFO, "facegrad"):
        ours = facegrad.Vae(quantised.eval())
    assert not ours.native and "quantised (decoder.conv_in.weight is torch.int32" in caplog.text
    assert torch.allclose(ours.decode(z), want, atol=1e-2)
    with torch.device("meta"):
        offloaded = AutoencoderKL(**SMALL)
    with caplog.at_level(logging.INFO, "facegrad"):
        assert not facegrad.Vae(offloaded, device=device).native
    assert "offloaded" in caplog.text
    with pytest.raises(ValueError, match="no decoder weights: it holds encoder.x"):
        facegrad.Vae({"encoder.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="no decoder weights: it holds ema \\(a OrderedDict\\)"):
        facegrad.Vae({"ema": vae.state_dict()})


def test_a_vae_that_decodes_in_its_own_way_is_not_taken_for_its_class(caplog, device):
    """Twice the picture: by a derived class, a method that was replaced, a hook, a layer's own forward."""

    def twice(out):
        return DecoderOutput(sample=2 * out.sample)

    class Decodes(AutoencoderKL):
        def decode(self, z, **more):
            return twice(super().decode(z, **more))

    class Inner(AutoencoderKL):
        def _decode(self, z, return_dict=True):
            return twice(super()._decode(z, return_dict))

    def plain(kind=AutoencoderKL):
        torch.manual_seed(0)
        return kind(**SMALL).eval().to(device)

    replaced, hooked, patched = plain(), plain(), plain()
    replaced.decode = lambda z: twice(AutoencoderKL.decode(replaced, z))
    hooked.decoder.conv_out.register_forward_hook(lambda module, inputs, output: 2 * output)
    original = patched.decoder.conv_out.forward
    patched.decoder.conv_out.forward = lambda x: 2 * original(x)
    z = torch.randn(1, 4, 8, 8).to(device)
    with torch.no_grad():
        want = (2 * plain().decode(z).sample + 1) / 2
    cases = [
        (plain(Decodes), "its class Decodes has a decode of its own"), (plain(Inner), "its class Inner has a _decode of its own"),
        (replaced, "its decode was replaced"), (hooked, "decoder.conv_out has forward hooks"),
        (patched, "the forward of decoder.conv_out was replaced"),
    ]  # fmt: skip
    for module, why in cases:
        caplog.clear()
        with caplog.at_level(logging.INFO, "facegrad"):
            ours = facegrad.Vae(module)
        assert not ours.native and why in caplog.text and torch.allclose(ours.decode(z), want, atol=1e-5)
    compiled = plain()
    compiled.decode = torch.compile(compiled.decode)
    compiled.decoder.mid_block.forward = torch.compile(compiled.decoder.mid_block.forward)
    assert facegrad.Vae(compiled).native


def test_what_a_duck_typed_vae_may_return(photos, caplog, device):
    z = photos[0] * 2 - 1
    for answer in (lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"sample": x}, lambda x: DecoderOutput(sample=x)):
        duck = types.SimpleNamespace(config={"scaling_factor": 1.0}, decode=answer)
        assert torch.allclose(facegrad.Vae(duck, device=device).decode(z), photos[0], atol=1e-6)
    assert "scaling_factor" not in caplog.text
    facegrad.Vae(types.SimpleNamespace(config=None, decode=lambda x: x), device=device)
    assert "names no scaling_factor, so the model's latents count as the VAE's own" in caplog.text
    with pytest.raises(TypeError, match="has `decode` and no `config` .*; give a function"):
        facegrad.Vae(types.SimpleNamespace(decode=lambda x: x))
    with pytest.raises(TypeError, match="give its `vae`"):
        facegrad.Vae(types.SimpleNamespace(vae=AutoencoderKL(**SMALL)))
