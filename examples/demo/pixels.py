"""See facegrad work: turn the picture of one person toward another by the gradient of the identity loss.

    python examples/demo/pixels.py                                 # drawn people, models of this repository
    python examples/demo/pixels.py --models ~/.insightface/models/buffalo_l --photos my_photos/

Nothing is trained and no generator is involved: the pixels themselves are the parameters, and the only thing
that moves them is d(1 − cos)/d(pixels). A second recogniser, whose gradient is never used, judges the result.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent / "demo_assets"
sys.path[:0] = [str(HERE), str(ASSETS)]

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"The demo needs the Python package {missing.name!r}: pip install numpy torch pillow tqdm")
try:
    import facegrad
except ImportError as missing:
    sys.exit(f"The demo needs facegrad's Python package ({missing}): build it with `make build`, then try again.")

import faces
from judge import Judge, largest_face
from models import find_models
from panel import draw_panel

SMOOTH, SMALL = 4.0, 15.0    # weights of the correction's total variation and of its mean square
DRAWN = 5_000_000          # drawn people from this seed on were never shown to the shipped models in training
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class Pyramid(torch.nn.Module):
    """A picture plus corrections at several resolutions. A step at a coarse level moves a whole feature of the
    face, where the same gradient applied to single pixels would only write noise that one recogniser reads."""

    def __init__(self, picture: torch.Tensor, face_box: torch.Tensor) -> None:
        super().__init__()
        size = picture.shape[-1]
        self.register_buffer("picture", picture)
        self.register_buffer("mask", soft_mask(face_box, size))
        cells = [c for c in (6, 12, 24, 48, 96) if c <= size // 2]
        self.levels = torch.nn.ParameterList([torch.zeros(1, 3, c, c) for c in cells])

    def correction(self) -> torch.Tensor:
        size = self.picture.shape[-1]
        return sum(F.interpolate(v, size=(size, size), mode="bicubic", align_corners=False) for v in self.levels)

    def forward(self) -> torch.Tensor:
        return (self.picture + self.mask * self.correction()).clamp(0, 1)

    def groups(self, rate: float) -> list[dict]:
        """Coarse levels move faster: one of their cells stands for many pixels."""
        return [{"params": [v], "lr": rate * (6 / v.shape[-1]) ** .5} for v in self.levels]


def soft_mask(box: torch.Tensor, size: int) -> torch.Tensor:
    """[1, 1, S, S]: 1 on the head, falling to 0 around it, so that the background stays as it was."""
    x1, y1, x2, y2 = box.tolist()
    axis = torch.arange(size, dtype=torch.float32)
    u = (axis - (x1 + x2) / 2) / (.5 * (x2 - x1))
    v = (axis - (y1 + y2) / 2 + .08 * (y2 - y1)) / (.5 * (y2 - y1))
    far = (u[None] ** 2 + v[:, None] ** 2).sqrt()
    return ((1.4 - far) / .4).clamp(0, 1)[None, None]


def disturbed(picture: torch.Tensor, copies: int, g: torch.Generator) -> torch.Tensor:
    """`copies` of the picture, each moved by some pixels, re-lit and grained a little: what survives all of
    them is a change of the face, not a trick on one network."""
    out = []
    for _ in range(copies):
        dx, dy = (int(v) for v in torch.randint(-4, 5, (2,), generator=g))
        y = F.pad(picture, (4, 4, 4, 4), mode="replicate")
        y = y[..., 4 + dy:4 + dy + picture.shape[-2], 4 + dx:4 + dx + picture.shape[-1]]
        gain = 1 + .1 * (torch.rand(1, 3, 1, 1, generator=g) * 2 - 1)
        out.append(y * gain + .03 * torch.randn(y.shape, generator=g))
    return torch.cat(out).clamp(0, 1)


def total_variation(x: torch.Tensor) -> torch.Tensor:
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def load_photo(path: Path, size: int) -> torch.Tensor:
    """The middle square of a photo as [1, 3, size, size] in [0, 1]."""
    try:
        photo = Image.open(path).convert("RGB")
    except OSError as error:
        sys.exit(f"{path} cannot be read as a picture: {error}")
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    photo = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return to_tensor(np.asarray(photo))


def load_pair(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """(start, reference), each [1, 3, size, size] in [0, 1]."""
    if args.photos is None:
        look = faces.Look(smile=.5)
        draw = lambda k: to_tensor(faces.portrait(DRAWN + 2 * args.seed + k, args.size, look).image)
        return draw(0), draw(1)
    if not args.photos.is_dir():
        sys.exit(f"--photos {args.photos} is not a folder.")
    found = sorted(p for p in args.photos.iterdir() if p.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        sys.exit(f"--photos {args.photos} holds {len(found)} picture(s); the demo needs two: in the order of their names, "
                 "the one to change and the reference.")
    print(f"start {found[0].name}, reference {found[1].name}")
    return load_photo(found[0], args.size), load_photo(found[1], args.size)


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=Path, default=os.environ.get("MODELS") or None,
                   help="an InsightFace pack's folder (also the environment variable MODELS); default: the shipped models")
    p.add_argument("--photos", type=Path, help="a folder with two photos; default: two drawn people")
    p.add_argument("--steps", type=int, default=100, help="optimisation steps (default 100)")
    p.add_argument("--size", type=int, default=192, help="side of the pictures in pixels (default 192)")
    p.add_argument("--rate", type=float, default=.006, help="step size (default 0.006)")
    p.add_argument("--seed", type=int, default=0, help="which drawn people, and the random numbers")
    p.add_argument("--out", type=Path, default=Path("out/pixels.png"), help="the picture to write")
    args = p.parse_args()
    if not 64 <= args.size <= 1024:
        p.error(f"--size must be between 64 and 1024, not {args.size}")
    if args.steps < 1:
        p.error(f"--steps must be at least 1, not {args.steps}")
    args.models = Path(args.models).expanduser() if args.models else None
    return args


def optimise(args, loss, picture: Pyramid, reference: torch.Tensor, judge: Judge) -> tuple[list, list]:
    """Runs gradient descent on the pyramid; returns the losses of every step and (step, judge's similarity) now and then."""
    g = torch.Generator().manual_seed(args.seed)
    descent = torch.optim.SGD(picture.groups(args.rate), momentum=.8)
    fade = torch.optim.lr_scheduler.CosineAnnealingLR(descent, args.steps, eta_min=args.rate * .02)
    strongest = [0.] * len(picture.levels)
    copies = 2
    losses, judged = [], [(0, judge(picture().detach())[0])]
    bar = tqdm(range(1, args.steps + 1), desc="optimising pixels", unit="step")
    for step in bar:
        identity = loss(reference.expand(copies, -1, -1, -1), disturbed(picture(), copies, g))
        smooth = total_variation(picture.correction())
        descent.zero_grad()
        (identity + SMOOTH * smooth + SMALL * picture.correction().square().mean()).backward()
        # One scale a level keeps the shape of the gradient; Adam's scale a cell would turn it into noise.
        for k, level in enumerate(picture.levels):
            strongest[k] = max(strongest[k], float(level.grad.square().mean().sqrt()), 1e-12)
            level.grad /= strongest[k]
        descent.step()
        fade.step()
        losses.append(float(identity.detach()))
        if step % max(1, args.steps // 40) == 0 or step == args.steps:
            judged.append((step, judge(picture().detach())[0]))
            bar.set_postfix(loss=f"{losses[-1]:.3f}", judge=f"{judged[-1][1]:.3f}")
    return losses, judged


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    models = find_models(args.models, ASSETS)
    print(f"detector {models.detector.name}, recogniser {models.recogniser.name}, judge {models.judge.name}"
          + ("" if models.independent else " (the recogniser itself: put a second recogniser into the folder "
             "for an independent judge)"))
    detector = facegrad.Detector(str(models.detector), det_sizes=models.det_sizes)
    loss = facegrad.DifferentiableFaceLoss(model_name=None, pretrained_path=str(models.recogniser), device="cpu",
                                           det_size=models.det_sizes, align_mode="kps", detector=str(models.detector))
    start, reference = load_pair(args)
    face, wanted = largest_face(detector, start), largest_face(detector, reference)
    for name, found in (("start", face), ("reference", wanted)):
        if found is None:
            sys.exit(f"No face was found in the {name} picture: try a photo with one larger face in the middle"
                     + ("." if args.photos else " (or another --seed)."))
    judge = Judge(facegrad.Recogniser(str(models.judge)), detector, reference)
    seen = Judge(facegrad.Recogniser(str(models.recogniser)), detector, reference)
    picture = Pyramid(start, face[0])

    began = time.time()
    losses, judged = optimise(args, loss, picture, reference, judge)
    after = picture().detach()
    report = {"optimised recogniser": (seen(start)[0], seen(after)[0]), "judge": (judged[0][1], judged[-1][1])}
    print(f"\n{args.steps} steps in {time.time() - began:.1f} s. Cosine similarity to the reference:")
    for name, (a, b) in report.items():
        print(f"  {name:22} before {a:+.3f}   after {b:+.3f}")
    draw_panel(args.out, start, after, reference, losses, judged, report)
    print(f"Look at {args.out}")


if __name__ == "__main__":
    main()
