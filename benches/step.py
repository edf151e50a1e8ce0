"""Whole steps against the same chain in eager PyTorch, side by side in one run: loss and gradient of 4 faces
with a full-size IResNet-50 (random weights), landmarks known. Prints the ratio of the medians, which is what
can be compared between machines.

    make bench            or   PYTHONPATH=bindings/python python benches/step.py [--rounds 7] [--size 256]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import facegrad

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/fixtures"))
from iresnet import seeded

TEMPLATE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], dtype=torch.float64
)


def grid(landmarks: torch.Tensor, size: int) -> torch.Tensor:
    """Where every crop pixel lies in the image, in grid_sample's units: the inverse of the similarity that
    brings the landmarks to the template."""
    source, target = landmarks.double(), TEMPLATE
    a, b = source - source.mean(0), target - target.mean(0)
    spread = (a**2).sum()
    c, s = (a * b).sum() / spread, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / spread
    back = torch.linalg.inv(torch.stack([torch.stack([c, -s]), torch.stack([s, c])]))
    v, u = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
    points = (torch.stack([u, v], -1).double() - target.mean(0)) @ back.T + source.mean(0)
    return ((2 * points + 1) / size - 1).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=256, help="side of the images")
    parser.add_argument("--faces", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device, size, count = torch.device(args.device), args.size, args.faces
    net = seeded((3, 4, 14, 3), (64, 128, 256, 512)).to(device)
    # Whitened, as training would make it: a random network gives everybody nearly one embedding.
    features, net.features = net.features, torch.nn.Identity()
    raw = net(torch.rand(32, 3, 112, 112, device=device) * 2 - 1)
    features.running_mean.copy_(raw.mean(0))
    features.running_var.copy_(raw.var(0))
    net.features = features

    def smooth() -> torch.Tensor:
        """Images as smooth as photographs: in white noise the gradient would show the last bit of a sampling point."""
        return torch.nn.functional.interpolate(torch.rand(count, 3, 24, 24, device=device), size=(size, size), mode="bicubic").clamp(0, 1)

    images, references = smooth().requires_grad_(), smooth()
    points = (TEMPLATE.float() * size / 160 + size * 0.15).expand(count, 5, 2)
    points = points + torch.randn(count, 5, 2, generator=torch.Generator().manual_seed(0))

    def crop(x: torch.Tensor) -> torch.Tensor:
        grids = torch.stack([grid(p, size) for p in points]).to(device)
        return torch.nn.functional.grid_sample(x, grids, align_corners=False)

    def embed(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(net(crop(x) * 2 - 1))

    with tempfile.TemporaryDirectory() as folder:
        save_file(net.state_dict(), Path(folder) / "r50.safetensors")
        recogniser = facegrad.Recogniser(Path(folder) / "r50.safetensors", device=device)
    loss = facegrad.FaceLoss({"face_align_mode": "kps", "face_loss_weight": 1.0}, recogniser=recogniser)
    fresh = facegrad.FaceLoss({"face_align_mode": "kps", "face_loss_weight": 1.0, "reference_cache": 0}, recogniser=recogniser)
    with torch.no_grad():
        cached = embed(references)

    def eager(known: torch.Tensor | None) -> torch.Tensor:
        if known is None:
            with torch.no_grad():
                known = embed(references)
        return (1 - (embed(images) * known).sum(1)).mean()

    def ours(loss: facegrad.FaceLoss) -> torch.Tensor:
        return loss(images, references, landmarks=points, reference_landmarks=points)[0]

    ways = {
        "eager PyTorch, reference embedding at hand": lambda: eager(cached),
        "facegrad, reference in its cache": lambda: ours(loss),
        "eager PyTorch, reference embedded every step": lambda: eager(None),
        "facegrad, reference_cache 0": lambda: ours(fresh),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    for _ in range(args.rounds + 1):  # the first round warms up
        for name, way in ways.items():
            images.grad = None
            start = time.perf_counter()
            value = way()
            value.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
            values[name] = (value.item(), images.grad.clone())
    want, gradient = values["eager PyTorch, reference embedding at hand"]
    got, own = values["facegrad, reference in its cache"]
    print(f"{count} faces, images {size}x{size}, r50, {args.device}, {torch.get_num_threads()} threads, median of {args.rounds}")
    print(f"loss {got:.6f} for {want:.6f}, gradient off by {float((own - gradient).norm() / gradient.norm()):.1e}")
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}
    for name, seconds in medians.items():
        print(f"  {name:46} {1000 * seconds:8.1f} ms")
    first, second, third, fourth = medians.values()
    print(f"ratio facegrad / eager: {second / first:.2f} with the reference known, {fourth / third:.2f} without")
    # What the cache costs: a step whose only work is to recognise its references.
    start = time.perf_counter()
    for _ in range(20):
        loss(images.detach(), references, landmarks=points, reference_landmarks=points, data_types=["person"] + ["x"] * (count - 1))
    one = (time.perf_counter() - start) / 20
    loss.set_reference("known", references[:1], points[:1])
    ids = ["known"] + [None] * (count - 1)
    start = time.perf_counter()
    for _ in range(20):
        loss(
            images.detach(),
            references,
            reference_ids=ids,
            landmarks=points,
            reference_landmarks=points,
            data_types=["person"] + ["x"] * (count - 1),
        )
    by_id = (time.perf_counter() - start) / 20
    print(f"a cached reference costs {1000 * (one - by_id):+.2f} ms of a forward pass of {1000 * by_id:.1f} ms")


if __name__ == "__main__":
    main()
