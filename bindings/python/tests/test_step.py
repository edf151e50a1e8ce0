"""The fused step and the VAE as a training script meets them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from compare import relative
from conftest import FIXTURES, ROOT
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file

import facegrad

CASES = {case["name"]: case for case in json.loads((FIXTURES / "step/cases.json").read_text())}


@pytest.fixture(scope="module")
def tensors(device):
    return {name: tensor.to(device) for name, tensor in load_file(FIXTURES / "step/steps.safetensors").items()}


@pytest.fixture(scope="session")
def vae(device):
    """Opens a decoder of the fixtures."""

    def vae(name, **more):
        keys = {"norm_num_groups": 8} if name != "tiny" else None
        return facegrad.Vae(FIXTURES / f"step/{name}.safetensors", config=keys, device=device, **more)

    return vae


def arguments(name, tensors, chain):
    """What the trainer of a case knows."""
    given = {key: tensors.get(f"{name}/{key}") for key in ("x_t", "prediction", "coefficients")}
    if given["coefficients"] is None:
        given["t"] = tensors[f"{name}/times"]
    given |= {"references": chain["references"], "landmarks": chain["landmarks"], "reference_landmarks": chain["reference_landmarks"]}
    given |= {"sample_weights": tensors[f"{name}/weights"], "size": tuple(CASES[name]["size"] or ()) or None}
    given["prediction"] = given["prediction"].clone().requires_grad_()
    return given


@pytest.mark.parametrize("name", ["flow", "epsilon_sigma", "flux_tokens", "flux2_tokens", "custom", "tiny", "diptych", "soft", "window"])
def test_loss_and_gradient_are_pytorchs(name, tensors, chain, recogniser, vae, bounds):
    case = CASES[name]
    face = facegrad.FaceIdentityLoss(case["config"], vae=vae(case["vae"]), detector=False, recogniser=recogniser)
    given = arguments(name, tensors, chain)
    loss, report = face(**given)
    (2 * loss).backward()
    assert loss.item() == pytest.approx(tensors[f"{name}/loss"].item(), rel=bounds.value)
    assert relative(given["prediction"].grad / 2, tensors[f"{name}/gradient"]) <= bounds.gradient
    assert report.counted == len(case["counted"])


def test_a_diffusers_module_shares_its_weights(tensors, chain, recogniser, device, bounds):
    module = AutoencoderKL.from_config({
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [16, 32],
        "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8, "scaling_factor": 0.7, "shift_factor": 0.1,
    })  # fmt: skip
    module.load_state_dict(load_file(FIXTURES / "step/kl.safetensors"), strict=False)
    module.to(device)
    ours = facegrad.Vae(module)
    assert ours.latent_format == {"custom": {"scale": 0.7, "shift": 0.1, "mean": [], "std": []}}
    assert (ours.channels, ours.scale_factor) == (4, 2)
    config = {key: value for key, value in CASES["flow"]["config"].items() if key != "latent_format"}
    face = facegrad.FaceIdentityLoss(config, vae=module, detector=False, recogniser=recogniser)
    given = arguments("flow", tensors, chain)
    face(**given)[0].backward()
    assert relative(given["prediction"].grad, tensors["flow/gradient"]) <= bounds.gradient
    # The same memory: what changes in the module changes in the decoder.
    z = torch.randn(1, 4, 8, 8).to(device)
    with torch.no_grad():
        before = ours.decode(z)
        assert torch.allclose(2 * before - 1, module.decode(z).sample, atol=10 * bounds.value)
        module.decoder.conv_out.bias += 1
        assert torch.allclose(ours.decode(z), before + 0.5, atol=10 * bounds.value)


def test_the_dtype_of_a_module_is_kept(device):
    tiny = AutoencoderTiny.from_config(
        {
            "latent_channels": 4,
            "encoder_block_out_channels": [8, 8],
            "decoder_block_out_channels": [8, 8],
            "num_encoder_blocks": [1, 1],
            "num_decoder_blocks": [1, 1],
        }
    )
    ours = facegrad.Vae(tiny.to(device, torch.bfloat16))
    assert "BFloat16" in ours.description and ours.latent_format == "none"


def test_the_methods_wrapper_takes_latents(tensors, chain, data, device, bounds):
    wrapper = facegrad.DifferentiableFaceLossWrapper(
        vae=FIXTURES / "step/tiny.safetensors", arcface_weights_path=FIXTURES / "nets/small.safetensors", model_name=None,
        device=device, align_mode="kps", detector=data / "models/det_500m.onnx",
    )  # fmt: skip
    latents = tensors["tiny/prediction"].clone().requires_grad_()
    known = {key: chain[key] for key in ("landmarks", "reference_landmarks")}
    details = wrapper(chain["references"], latents, return_details=True, sample_weights=tensors["tiny/weights"], **known)
    details.loss.backward()
    assert details.report.counted == 3 and details.mask.all()
    assert relative(latents.grad, 10 * tensors["tiny/gradient"]) <= bounds.gradient


def test_prediction_in_bfloat16_under_autocast_and_in_a_model(tensors, chain, recogniser, vae, device):
    face = facegrad.FaceIdentityLoss(CASES["flow"]["config"], vae=vae("kl"), detector=False, recogniser=recogniser)
    given = arguments("flow", tensors, chain)
    scale = torch.nn.Parameter(torch.ones((), device=device))
    with torch.autocast(device.type, torch.bfloat16):
        prediction = (given["prediction"].detach() * scale).bfloat16()
        prediction.retain_grad()
        loss, _ = face(**{**given, "prediction": prediction, "x_t": given["x_t"].bfloat16()})
    loss.backward()
    assert prediction.grad.dtype == torch.bfloat16 and scale.grad.isfinite()
    want = tensors["flow/gradient"].float().flatten()
    assert torch.cosine_similarity(prediction.grad.float().flatten(), want, dim=0) >= 0.99


def test_what_is_gated_needs_no_network_and_says_so(tensors, chain, recogniser, vae):
    face = facegrad.FaceIdentityLoss(
        {**CASES["flow"]["config"], "every_n_steps": 4, "t_max": 0.6}, vae=vae("kl"), detector=False, recogniser=recogniser
    )
    given = arguments("flow", tensors, chain)
    loss, report = face(**given, step=3)
    assert loss.item() == 0 and {s.outcome for s in report.samples} == {facegrad.Outcome.STEP}
    _, report = face(**given, step=4, data_types=["person", "person_hair", "person_head"])
    outcomes = [s.outcome for s in report.samples]
    assert outcomes == [facegrad.Outcome.COUNTED, facegrad.Outcome.DATA_TYPE, facegrad.Outcome.TIME]


def test_a_loss_that_is_off_loads_nothing(device):
    face = facegrad.FaceIdentityLoss({"use_face_loss": False, "arcface_weights": "absent.pth"}, device=device)
    prediction = torch.randn(2, 4, 8, 8, device=device, requires_grad=True)
    loss, report = face(prediction=prediction)
    assert loss.item() == 0 and report.counted == 0 and report.samples[0].outcome == facegrad.Outcome.DISABLED
    (loss + prediction.sum()).backward()


@pytest.mark.parametrize("name", ["train.yaml", "train.json"])
def test_a_trainers_config_file(name, tmp_path, chain, tensors, vae, bounds):
    weights = FIXTURES / "nets/small.safetensors"
    model = {
        "pretrained": "a/flux", "use_face_loss": True, "face_loss_weight": 0.2, "face_align_mode": "kps", "face_loss_type": "differentiable",
        "arcface_weights": str(weights), "latent_format": CASES["flow"]["config"]["latent_format"],
    }  # fmt: skip
    path = tmp_path / name
    # JSON is YAML too.
    path.write_text(json.dumps({"model": model, "lr": 1}))
    face = facegrad.FaceIdentityLoss(path, vae=vae("kl"), detector=False)
    given = arguments("flow", tensors, chain)
    assert face(**given)[0].item() == pytest.approx(2 * tensors["flow/loss"].item(), rel=bounds.value)
    path.write_text(json.dumps({"model": {**model, "face_los_weight": 1}}))
    with pytest.raises(ValueError, match="did you mean `face_loss_weight`"):
        facegrad.FaceIdentityLoss(path)


def test_bad_input_is_named(tensors, chain, recogniser, vae, device):
    face = facegrad.FaceIdentityLoss(CASES["flow"]["config"], vae=vae("kl"), detector=False, recogniser=recogniser)
    given = arguments("flow", tensors, chain)
    for change, text in [
        ({"t": [0.1, 0.2]}, "times: expected 3"),
        ({"t": 1.5}, r"expected a number in \[0, 1\], got 1.5"),
        ({"prediction": given["prediction"][:, :3]}, "x_t"),
        ({"prediction": given["prediction"][:, :3], "x_t": given["x_t"][:, :3]}, r"\[B,4,h,w\]"),
        ({"x_t": None}, "x_t"),
        ({"coefficients": torch.zeros(3, 2, device=device)}, "custom"),
    ]:
        with pytest.raises(facegrad.FacegradError, match=text):
            face(**{**given, **change})
    with pytest.raises(ValueError, match="data_types: expected 3 entries"):
        face(**given, data_types=["person"])
    with pytest.raises(TypeError, match="expected a path, a VAE module"):
        facegrad.Vae(3)
    with pytest.raises(facegrad.FacegradError, match="no such file|absent"):
        facegrad.Vae("absent.safetensors", device=device)
    assert face(**given)[1].counted == 3


@pytest.mark.host("a process on the CPU")
def test_the_example_runs(tmp_path):
    models = FIXTURES / "step/tiny.safetensors", ROOT / "examples/demo_assets/detector.onnx", FIXTURES / "nets/small.safetensors"
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples/python/train_step.py"), *map(str, models)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("step ") == 3


def test_too_little_memory_is_an_error_of_its_own_and_the_next_step_works(tensors, chain, recogniser, vae, device):
    face = facegrad.FaceIdentityLoss(CASES["flow"]["config"], vae=vae("kl"), detector=False, recogniser=recogniser)
    given = arguments("flow", tensors, chain)
    huge = torch.zeros(1, 1, 1, 1, device=device).expand(3, 4, 300_000, 300_000)
    with pytest.raises(facegrad.FacegradError) as error:
        face(**{**given, "prediction": huge, "x_t": huge})
    assert error.value.status == 200, error.value
    assert face(**given)[1].counted == 3
