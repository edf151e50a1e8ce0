"""Uses an installed facegrad as its users do, and writes what came out: smoke.py DATA OUTPUT

DATA is the folder of test models and photographs. OUTPUT, a file, receives every number and gradient. It must not depend on
what torch draws at random or on whether ONNX Runtime is there, so that two runs can be compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import facegrad

DATA = Path(sys.argv[1])
DETECTOR = DATA / "models/det_500m.onnx"
RECOGNISER = DATA / "models/foamliu_mobilefacenet_128d_112.onnx"
NORMALISATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
#: The astronaut's landmarks in the golden crop.
LANDMARKS = torch.tensor([[[44.132, 36.588], [86.769, 39.56], [63.84, 65.15], [41.981, 75.711], [85.245, 78.344]]])


def photo(name: str) -> torch.Tensor:
    """``[1,3,H,W]`` in [0, 1]."""
    pixels = np.asarray(Image.open(DATA / "photos" / name).convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def images() -> dict[str, torch.Tensor]:
    """The loss on decoded images: detection, alignment, recogniser, and the gradient."""
    loss = facegrad.FaceLoss(
        {"face_align_mode": "kps"},
        detector=facegrad.Detector(DETECTOR, det_sizes=[128, 640], engine="torch"),
        recogniser=facegrad.Recogniser(RECOGNISER, **NORMALISATION),
    )
    image = photo("B_lady_1.jpg").requires_grad_()
    value, report = loss(image, references=photo("B_lady_2.jpg"))
    value.backward()
    assert report.counted == 1 and 0.7 < report.similarity < 1, report
    return {"images": value.detach(), "images gradient": image.grad}


def step(name: str, config: dict[str, object], vae: object, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fused step: x0 of a flow prediction, decoded with a VAE."""
    face = facegrad.FaceIdentityLoss(
        {"face_align_mode": "kps", "face_loss_weight": 1.0, "latent_format": "none"} | config, vae=vae, detector=False,
        recogniser=facegrad.Recogniser(RECOGNISER, **NORMALISATION),
    )  # fmt: skip
    t = torch.tensor([0.4])
    drawn = noise(tuple(latents.shape), 1)
    prediction = (drawn - latents + 0.1 * noise(tuple(latents.shape), 2)).requires_grad_()
    value, report = face(
        x_t=(1 - t) * latents + t * drawn, prediction=prediction, t=t, references=photo("single_astronaut.png")[:, :, 64:192, 160:288],
        landmarks=LANDMARKS, reference_landmarks=LANDMARKS,
    )  # fmt: skip
    value.backward()
    assert report.counted == 1, report
    return {name: value.detach(), f"{name} gradient": prediction.grad}


class Upscale(torch.nn.Module):
    """The smallest thing that a TorchScript file can hold and that decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(32, 3, 3, padding=1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(0.05 * noise((3, 32, 3, 3), 3))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.nn.functional.interpolate(self.conv(z), scale_factor=8.0, mode="bilinear"))


def torchscript(latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """A TorchScript file as the VAE."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vae.pt"
        torch.jit.script(Upscale()).save(str(path))
        return step("torchscript", {}, facegrad.Vae(path, config={"family": "torchscript", "latent_channels": 32}), latents)


def evaluator() -> dict[str, torch.Tensor]:
    """Faces, embeddings and similarities without a gradient."""
    score = facegrad.Evaluator(DETECTOR, {"path": str(RECOGNISER)} | NORMALISATION, det_sizes=(128, 640), engine="torch")
    found = score.faces(photo("multi2_couple.jpg"))[0]
    assert len(found) == 2, found
    report = score.compare(photo("C_obama_1.jpg"), photo("C_obama_2.jpg"))
    return {"evaluator": torch.tensor(report.similarity), "evaluator embeddings": torch.stack([face.embedding for face in found])}


def main(output: Path) -> None:
    """Runs everything and saves it."""
    with np.load(DATA / "golden/taef2_astronaut_crop_y64x160_128.npz") as arrays:
        latents = torch.from_numpy(arrays["latent"].astype(np.float32))
    vae = facegrad.Vae(DATA / "models/kl_photo_decoder")
    begun = time.monotonic()
    found = images()
    found |= step("step", {}, vae, latents)
    found |= step("window", {"decode": "window"}, vae, latents)
    found |= torchscript(latents)
    found |= evaluator()
    seconds = time.monotonic() - begun
    doctor = subprocess.run([sys.executable, "-m", "facegrad", "doctor"], capture_output=True, text=True)
    # No pack of models is installed for this test, which the doctor says.
    failed = [line for line in doctor.stdout.splitlines() if line.startswith("FAIL") and "  models  " not in line]
    assert "ok    self-test" in doctor.stdout and not failed, doctor.stdout + doctor.stderr
    package = os.path.dirname(facegrad.__file__)
    info = {"torch": str(torch.__version__), "facegrad": facegrad.version, "seconds": seconds, "package": package}
    torch.save({"info": info, "tensors": found}, output)


if __name__ == "__main__":
    main(Path(sys.argv[2]))
