"""How near the gradient of a window comes to that of the whole image, on photographs: cosines over the noise levels for
every policy of `norm_stats`, with a KL decoder that was trained on photographs.

    PYTHONPATH=bindings/python python benches/window_photos.py [--levels 0.05 0.2 …] [--faces 10] [--size 256]

`benches/window_average.py` counts the exact passes of a training.

The estimate of x0 is that of the linear denoiser with the least mean square error, from the latents' mean power spectrum.
`cached` and `predicted` use what they met in a training: so many steps with every picture, noise levels uniform in [0, 1].
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch.nn import functional as F

import facegrad

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/fixtures"))
from photographs import Denoiser, encode, encoder

DATA = Path(os.environ.get("FACEGRAD_TEST_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
POLICIES = ("window", "exact", "cached", "predicted")


def pictures(count: int, size: int, detector: facegrad.Detector) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Squares of photographs around each face, whose box is about a third of them, and its landmarks."""
    found = []
    for path in sorted((DATA / "photos").iterdir()):
        image = Image.open(path).convert("RGB")
        whole = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None].float() / 255
        for face in detector.detect(whole)[0]:
            x1, y1, x2, y2 = face.bbox
            side = min(3 * max(x2 - x1, y2 - y1), *image.size)
            left = min(max((x1 + x2 - side) / 2, 0), image.width - side)
            top = min(max((y1 + y2 - side) / 2, 0), image.height - side)
            square = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
            points = (torch.tensor(face.landmarks) - torch.tensor([left, top])) * size / side
            found.append((torch.from_numpy(numpy.array(square)).permute(2, 0, 1)[None].float() / 255, points[None].float()))
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95])
    parser.add_argument("--faces", type=int, default=10)
    parser.add_argument("--visits", type=int, default=100, help="steps with every picture before anything is measured")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--halo", type=int, help="window_halo")
    args = parser.parse_args()
    detector = facegrad.Detector(DATA / "models/det_500m.onnx", det_sizes=[128, 640])
    recogniser = facegrad.Recogniser(
        DATA / "models/foamliu_mobilefacenet_128d_112.onnx", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    vae = facegrad.Vae(DATA / "models/kl_photo_decoder")
    found = pictures(args.faces, args.size, detector)
    weights = encoder(DATA)
    with torch.no_grad():
        latents = torch.cat([encode(image, weights) for image, _ in found])
    denoise = Denoiser(latents)
    keys: dict[str, Any] = {
        "face_align_mode": "kps", "face_loss_weight": 1.0, "prediction": {"kind": "sample"}, "latent_format": "none",
        "landmarks": "reference",
    }  # fmt: skip
    if args.halo is not None:
        keys["window_halo"] = args.halo
    noise = torch.Generator().manual_seed(0)

    def estimate(z: torch.Tensor, t: float) -> torch.Tensor:
        return denoise((1 - t) * z + t * torch.randn(z.shape, generator=noise), t)

    def loss(**more: Any) -> facegrad.FaceLoss:
        return facegrad.FaceLoss(keys | more, recogniser=recogniser, vae=vae)

    def run(loss: facegrad.FaceLoss, x0: torch.Tensor, t: float, at: int) -> tuple[torch.Tensor, facegrad.Report]:
        leaf = x0.clone().requires_grad_()
        value, report = loss.step(leaf, None, t, found[at][0], reference_landmarks=found[at][1])
        value.backward()
        assert leaf.grad is not None
        return leaf.grad.flatten(), report

    whole = loss()
    policies = {
        policy: loss(decode="window_only", norm_stats=policy, **({"norm_stats_t_max": 1.0} if policy == "cached" else {}))
        for policy in POLICIES
    }
    with torch.no_grad():
        for _ in range(args.visits):
            for at, (picture, points) in enumerate(found):
                t = float(torch.rand((), generator=noise))
                x0 = estimate(latents[at : at + 1], t)
                for policy in ("cached", "predicted"):
                    policies[policy].step(x0, None, t, picture, reference_landmarks=points)
    print(f"{len(found)} faces, {args.size} pixels, halo {args.halo}; mean (least) cosine, mean ratio of norms")
    print("   t   loss " + "".join(f"{policy:>24}" for policy in POLICIES))
    every: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for t in args.levels:
        row: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
        distances = []
        for at in range(len(found)):
            x0 = estimate(latents[at : at + 1], t)
            want, report = run(whole, x0, t, at)
            distances.append(report.mean_distance)
            for policy in POLICIES:
                got, _ = run(policies[policy], x0, t, at)
                row[policy].append((float(F.cosine_similarity(got, want, dim=0)), float(got.norm() / want.norm())))
        text = f"{t:5.2f}  {sum(distances) / len(distances):.2f} "
        for policy in POLICIES:
            cosines = [cosine for cosine, _ in row[policy]]
            every[policy] += cosines
            ratio = sum(norm for _, norm in row[policy]) / len(found)
            text += f"    {sum(cosines) / len(cosines):.3f} ({min(cosines):.3f}) {ratio:5.2f}"
        print(text, flush=True)
    print("  all       " + "".join(f"    {sum(c) / len(c):.3f} ({min(c):.3f})      " for c in every.values()))


if __name__ == "__main__":
    main()
