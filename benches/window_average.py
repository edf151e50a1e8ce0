"""What a step through windows costs and how exact it is on average over a training, with GroupNorm statistics that the
library predicts (`norm_stats: auto`).

    PYTHONPATH=bindings/python python benches/window_average.py run FOLDER [--levels uniform] [--steps 2000]
    PYTHONPATH=bindings/python python benches/window_average.py exactness FOLDER [--levels uniform]
    PYTHONPATH=bindings/python python benches/window_average.py total --exact-steps 70 --seconds EAGER EXACT PREDICTED

`run` makes all steps of a training of 20 pictures without their gradients, with a small KL decoder that was trained on
photographs, and counts the exact passes; it goes on where it was stopped. `exactness` then compares gradients with those
of the whole image. `total` combines these counts with the seconds of single steps of FLUX.1's decoder
(`benches/window.py --ways "eager,window exact,window predicted"`), and counts multiply-adds: 2,000 real steps of that size take too long.

The pictures are cut from photographs that the choice of features and penalty never saw (`--photos choice` shows
those that it saw). x0 is the estimate of the linear denoiser with the least mean square error.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy
import torch
from decoder import work_of
from PIL import Image
from torch.nn import functional as F
from window_photos import DATA, Denoiser, encode, encoder

import facegrad

PHOTOS = {"choice": ("A_dad", "B_lady", "multi2", "single_glasses"), "report": ("C_obama", "single_astronaut")}
LEVELS = (0.05, 0.15, 0.3, 0.5, 0.65, 0.75, 0.85, 0.95)
KEYS: dict[str, Any] = {
    "face_align_mode": "kps", "face_loss_weight": 1.0, "prediction": {"kind": "sample"}, "latent_format": "none", "landmarks": "reference",
}  # fmt: skip


def pictures(names: tuple[str, ...], count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Squares around the faces of the photographs, each at another zoom and place, and the landmarks in them."""
    detector = facegrad.Detector(DATA / "models/det_500m.onnx", det_sizes=[128, 640])
    faces = []
    for path in sorted((DATA / "photos").iterdir()):
        if path.name.startswith(names):
            image = Image.open(path).convert("RGB")
            whole = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None].float() / 255
            faces += [(image, face) for face in detector.detect(whole)[0]]
    random, found = torch.Generator().manual_seed(3), []
    for at in range(count):
        image, face = faces[at % len(faces)]
        zoom, right, down = torch.rand(3, generator=random).tolist()
        x1, y1, x2, y2 = face.bbox
        # A face that fills its photograph leaves less room for zoom.
        side = min((2.2 + 2.3 * zoom) * max(x2 - x1, y2 - y1), (0.8 + 0.2 * zoom) * min(image.size))
        left = min(max((x1 + x2 - side) / 2 + (right - 0.5) * 0.4 * side, 0), image.width - side)
        top = min(max((y1 + y2 - side) / 2 + (down - 0.5) * 0.3 * side, 0), image.height - side)
        square = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        points = (torch.tensor(face.landmarks) - torch.tensor([left, top])) * size / side
        found.append((torch.from_numpy(numpy.array(square)).permute(2, 0, 1)[None].float() / 255, points[None].float()))
    return found


class Training:
    """Everything that a training's steps need, the same in every process."""

    def __init__(self, photos: str, size: int) -> None:
        self.found = pictures(PHOTOS[photos], 20, size)
        weights = encoder(DATA)
        with torch.no_grad():
            self.latents = torch.cat([encode(image, weights) for image, _ in self.found])
        self.denoise = Denoiser(self.latents)
        self.recogniser = facegrad.Recogniser(
            DATA / "models/foamliu_mobilefacenet_128d_112.onnx", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        self.vae = facegrad.Vae(DATA / "models/kl_photo_decoder")

    def loss(self, **keys: Any) -> facegrad.FaceLoss:
        return facegrad.FaceLoss(KEYS | keys, recogniser=self.recogniser, vae=self.vae)

    def estimate(self, at: int, t: float, seed: int) -> torch.Tensor:
        z = self.latents[at : at + 1]
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
        return self.denoise((1 - t) * z + t * noise, t)

    def step(self, loss: facegrad.FaceLoss, x0: torch.Tensor, t: float, at: int) -> Any:
        picture, points = self.found[at]
        return loss.step(x0, None, t, picture, reference_landmarks=points)

    def gradient(self, loss: facegrad.FaceLoss, x0: torch.Tensor, t: float, at: int) -> torch.Tensor:
        leaf = x0.clone().requires_grad_()
        self.step(loss, leaf, t, at)[0].backward()
        assert leaf.grad is not None
        return leaf.grad.flatten()


def run(training: Training, folder: Path, levels: str, steps: int) -> None:
    """All steps of a training; saves the loss and what happened every 100 steps."""
    random = torch.Generator().manual_seed(0)
    times = torch.rand(steps, generator=random) if levels == "uniform" else torch.randn(steps, generator=random).sigmoid()
    order = torch.cat([torch.randperm(20, generator=random) for _ in range(-(-steps // 20))])
    state, log = folder / f"{levels}.safetensors", folder / f"{levels}.json"
    loss = training.loss(decode="window_only", norm_stats="auto")
    rows: list[tuple[float, int]] = []
    if log.exists():
        rows = json.loads(log.read_text())
        loss.restore(state)
    for number in range(len(rows), steps):
        at, t = int(order[number]), float(times[number])
        with torch.no_grad():
            _, report = training.step(loss, training.estimate(at, t, number), t, at)
        rows.append((t, report.exact_passes))
        if (number + 1) % 100 == 0:
            loss.save(state)
            log.write_text(json.dumps(rows))
    exact = [number for number, (_, passes) in enumerate(rows) if passes]
    later = [number for number in exact if number >= 20]
    high = sum(rows[number][0] > 0.85 for number in later)
    print(f"{steps} steps of 20 pictures, {levels} levels: {len(exact)} exact passes, {len(exact) / steps:.1%} of all steps")
    print(f"after the first epoch {len(later)} of {steps - 20}: {len(later) / (steps - 20):.1%}; {high} of them above t = .85")


def exactness(training: Training, folder: Path, levels: str, seeds: int) -> None:
    """The gradient through predicted statistics against the whole image's, by noise level."""
    loss = training.loss(decode="window_only", norm_stats="auto")
    whole = training.loss()
    print("   t   mean  1st percentile  least   mean ratio of norms   mean without the pictures' exact steps")
    for t in LEVELS:
        cosines, ratios, predicted = [], [], []
        for at in range(len(training.found)):
            for seed in range(seeds):
                # Every sample meets the model as the training left it.
                loss.restore(folder / f"{levels}.safetensors")
                x0 = training.estimate(at, t, 10**6 + seed)
                leaf = x0.clone().requires_grad_()
                value, report = training.step(loss, leaf, t, at)
                value.backward()
                assert leaf.grad is not None
                got, want = leaf.grad.flatten(), training.gradient(whole, x0, t, at)
                cosines.append(float(F.cosine_similarity(got, want, dim=0)))
                ratios.append(float(got.norm() / want.norm()))
                if not report.exact_passes:
                    predicted.append(cosines[-1])
        low = numpy.percentile(cosines, 1)
        mean = sum(predicted) / max(len(predicted), 1)
        print(
            f"{t:5.2f}  {sum(cosines) / len(cosines):.3f}  {low:.3f}  {min(cosines):.3f}  {sum(ratios) / len(ratios):.3f}"
            f"  {mean:.3f} ({len(predicted)} of {len(cosines)})",
            flush=True,
        )


def total(exact_steps: int, steps: int, seconds: list[float] | None) -> None:
    """The average step, from counts and what single steps cost."""
    share = exact_steps / steps
    if seconds:
        eager, exact, predicted = seconds
        mean = share * exact + (1 - share) * predicted
        print(f"mean {mean:.1f} s a step, {eager / mean:.1f} times faster than eager PyTorch")
    for size in (512, 1024, 2048):
        full = sum(work_of(size, 128, False).values())
        window, near = work_of(size, 128, True), work_of(size, 128, True, 2)
        exact = full + 2 * sum(window.values())
        predicted = 2 * sum(near.values())
        mean = share * exact + (1 - share) * predicted
        print(
            f"{size}: multiply-adds of a step in 10⁹: whole image {2 * full:.0f}, predicted {predicted:.0f}, mean {mean:.0f} (1/{2 * full / mean:.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "exactness", "total"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--levels", choices=["uniform", "sigmoid"], default="uniform")
    parser.add_argument("--photos", choices=list(PHOTOS), default="report")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--exact-steps", type=int, default=0)
    parser.add_argument("--seconds", type=float, nargs=3)
    args = parser.parse_args()
    if args.what == "total":
        total(args.exact_steps, args.steps, args.seconds)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    training = Training(args.photos, args.size)
    if args.what == "run":
        run(training, args.folder, args.levels, args.steps)
    else:
        exactness(training, args.folder, args.levels, args.seeds)


if __name__ == "__main__":
    main()
