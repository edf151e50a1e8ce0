"""Makes the demo's three models from drawn faces alone.

    python train.py            draws the faces and trains everything (about half an hour on two cores)
    python train.py judge      trains one of: detector, recogniser, judge
    python train.py --check    measures the shipped files on people that training never saw
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from faces import Identity, Pose, draw
from networks import ANCHORS, REACH, STRIDES, Detector, Judge, Recogniser
from torch import Tensor, nn

HERE = Path(__file__).parent
PEOPLE, SHOTS, HELD_OUT, BATCH = 900, 10, 100, 48
# insightface utils/face_align.py: arcface_dst.
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def shots(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pictures of one person: [K,160,160,3] uint8, landmarks [K,5,2], boxes [K,4]."""
    r = np.random.default_rng(seed + 7_000_000)
    person, out = Identity(seed), []
    for _ in range(SHOTS):
        where = (0.5 + r.uniform(-0.06, 0.06), 0.5 + r.uniform(-0.06, 0.06))
        out.append(draw(person, Pose.random(r), 160, r.uniform(0.2, 0.3), where))
    return np.stack([p.image for p in out]), np.stack([p.landmarks for p in out]), np.stack([p.box for p in out])


def dataset(first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [P,K,3,160,160] uint8, landmarks [P,K,5,2], boxes [P,K,4]; drawn once a machine."""
    cache = Path(tempfile.gettempdir()) / f"facegrad-faces-{first}-{count}-{SHOTS}.npz"
    if not cache.exists():
        with multiprocessing.Pool() as pool:
            parts = pool.map(shots, range(first, first + count), chunksize=8)
        images, landmarks, boxes = (np.stack(x) for x in zip(*parts))
        np.savez(cache, images=images.transpose(0, 1, 4, 2, 3), landmarks=landmarks, boxes=boxes)
    data = np.load(cache)
    return tuple(torch.from_numpy(data[k]) for k in ("images", "landmarks", "boxes"))  # type: ignore[return-value]


def crop_theta(landmarks: Tensor, size: int, wobble: float) -> Tensor:
    """Least-squares similarity of the landmarks to the template, as grid_sample's theta."""
    noise = torch.randn_like(landmarks) * wobble
    src = (landmarks + noise).double()
    dst = torch.from_numpy(TEMPLATE).expand_as(src)
    a, b = dst - dst.mean(-2, keepdim=True), src - src.mean(-2, keepdim=True)
    norm = (a**2).sum((-1, -2))
    c = (a * b).sum((-1, -2)) / norm
    s = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(-1) / norm
    rot = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    t = src.mean(-2) - (rot @ dst.mean(-2)[..., None])[..., 0]
    # Template pixels → picture pixels, then both to [-1, 1] with half-pixel edges.
    half, full = 112 / 2, size / 2
    linear = rot * half / full
    shift = (rot @ torch.full((2, 1), half - 0.5, dtype=torch.double))[..., 0] + t
    return torch.cat([linear, ((shift + 0.5) / full - 1)[..., None]], -1).float()


def crops(images: Tensor, landmarks: Tensor, wobble: float) -> Tensor:
    """Aligned crops [B,3,112,112] in [-1, 1]."""
    x = images.float() / 127.5 - 1
    grid = nn.functional.affine_grid(crop_theta(landmarks, x.shape[-1], wobble), [len(x), 3, 112, 112], align_corners=False)
    return nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def worn(x: Tensor) -> Tensor:
    """Noise, blur, low resolution, colour and cut-outs: what makes a gradient mean something."""
    b = len(x)
    if torch.rand(()) < 0.5:
        x = torch.flip(x, [-1])
    if torch.rand(()) < 0.4:
        small = int(torch.randint(28, 96, ()))
        x = nn.functional.interpolate(nn.functional.interpolate(x, size=small, mode="area"), size=112, mode="bilinear")
    x = x * (1 + 0.2 * torch.randn(b, 1, 1, 1)) + 0.12 * torch.randn(b, 3, 1, 1)
    x = x + 0.12 * torch.rand(b, 1, 1, 1) * torch.randn_like(x)
    for i in torch.nonzero(torch.rand(b) < 0.3).flatten().tolist():
        h, w = torch.randint(12, 44, (2,)).tolist()
        top, left = int(torch.randint(0, 112 - h, ())), int(torch.randint(0, 112 - w, ()))
        x[i, :, top : top + h, left : left + w] = 0
    return x.clamp(-1.2, 1.2)


def train_embedder(net: nn.Module, steps: int, seed: int) -> nn.Module:
    """Large-margin cosine training over the people of the training set."""
    torch.manual_seed(seed)
    images, landmarks, _ = dataset(0, PEOPLE)
    dim = net(torch.zeros(2, 3, 112, 112)).shape[1]
    centres = nn.Parameter(torch.randn(PEOPLE, dim) * 0.05)
    optimiser = torch.optim.AdamW([*(p for p in net.parameters() if p.requires_grad), centres], 2e-3, weight_decay=5e-4)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps, pct_start=0.15)
    start = time.time()
    for step in range(steps):
        who = torch.randint(0, PEOPLE, (BATCH,))
        shot = torch.randint(0, SHOTS, (BATCH,))
        x = worn(crops(images[who, shot], landmarks[who, shot], 0.8))
        cosine = nn.functional.normalize(net(x)) @ nn.functional.normalize(centres).T
        margin = 0.3 * min(1.0, step / (0.3 * steps))
        logits = 24 * (cosine - margin * nn.functional.one_hot(who, PEOPLE))
        loss = nn.functional.cross_entropy(logits, who)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        plan.step()
        if step % 100 == 0:
            right = (cosine.argmax(1) == who).float().mean()
            print(f"{type(net).__name__} {step}/{steps} loss {loss:.3f} right {right:.2f} {time.time() - start:.0f} s", flush=True)
    return net.eval()


def scenes(images: Tensor, landmarks: Tensor, boxes: Tensor, batch: int, size: int) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]]]:
    """Canvases with one or two pictures pasted in at random sizes; faces as (box, landmarks)."""
    canvas = torch.rand(batch, 3, 1, 1) * 255 + 12 * torch.randn(batch, 3, size, size)
    truth: list[list[tuple[Tensor, Tensor]]] = []
    for k in range(batch):
        faces = []
        # One large picture, or two side by side: a face is never half covered by another one.
        pieces = 1 if torch.rand(()) < 0.7 else 2
        room = size // pieces
        for piece in range(pieces):
            if torch.rand(()) < 0.08:
                continue
            side = int(torch.randint(room // 3, room + 1, ()))
            top = int(torch.randint(0, size - side + 1, ()))
            left = piece * room + int(torch.randint(0, room - side + 1, ()))
            who, shot = int(torch.randint(len(images), ())), int(torch.randint(SHOTS, ()))
            picture = nn.functional.interpolate(images[who, shot][None].float(), size=side, mode="bilinear", antialias=True)[0]
            canvas[k, :, top : top + side, left : left + side] = picture
            scale, offset = side / 160, torch.tensor([left, top], dtype=torch.double)
            move = lambda p: (p + 0.5) * scale - 0.5 + offset  # noqa: B023, E731
            faces.append((move(boxes[who, shot].reshape(2, 2)).reshape(4), move(landmarks[who, shot])))
        truth.append(faces)
    canvas = canvas * (1 + 0.15 * torch.randn(batch, 1, 1, 1)) + 6 * torch.rand(batch, 1, 1, 1) * torch.randn_like(canvas)
    return ((canvas.clamp(0, 255).round() - 127.5) / 128), truth


def anchors(stride: int, size: int) -> Tensor:
    cells = size // stride
    y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 1, 2).expand(-1, ANCHORS, 2).reshape(-1, 2).double() * stride


def train_detector(steps: int) -> Detector:
    torch.manual_seed(3)
    images, landmarks, boxes = dataset(0, PEOPLE)
    net = Detector()
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps, pct_start=0.1)
    start = time.time()
    for step in range(steps):
        size = int(torch.tensor([128, 160, 192, 256])[torch.randint(4, ())])
        x, truth = scenes(images, landmarks, boxes, 16, size)
        total = torch.zeros(())
        found = sum(len(faces) for faces in truth) or 1
        for level, (stride, out) in enumerate(zip(STRIDES, net.raw(x))):
            centres = anchors(stride, size)
            target = torch.zeros(out.shape[:2])
            ignore = torch.zeros(out.shape[:2], dtype=torch.bool)
            for k, faces in enumerate(truth):
                for box, points in faces:
                    width = float(box[2] - box[0])
                    low = 0 if level == 0 else REACH[level - 1]
                    middle = points.mean(0)
                    near = ((centres - middle).abs().amax(-1)) <= max(0.16 * width, stride * 0.75)
                    inside = (centres >= box[:2]).all(-1) & (centres <= box[2:]).all(-1)
                    if low * 0.8 < width <= REACH[level] * 1.2:
                        ignore[k] |= inside & ~near
                        hit = torch.nonzero(near & inside).flatten()
                        if low < width <= REACH[level] and len(hit):
                            target[k, hit] = 1
                        else:
                            ignore[k] |= near
                        if len(hit):
                            c = centres[hit]
                            want = torch.cat([(c - box[:2]), (box[2:] - c), (points[None] - c[:, None]).flatten(1)], -1).float() / stride
                            total = total + nn.functional.smooth_l1_loss(out[k, hit, 1:], want, beta=0.2, reduction="sum") / (14 * len(hit)) / found
            logits = out[..., 0]
            probability = logits.sigmoid()
            focal = (target - probability).abs() ** 2 * nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            total = total + (focal * ~ignore).sum() / (4 * found)
        optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        plan.step()
        if step % 100 == 0:
            print(f"Detector {step}/{steps} loss {total:.3f} {time.time() - start:.0f} s", flush=True)
    return net.eval()


def fold(net: nn.Module) -> nn.Module:
    """Batch norms into the convolutions before them, as the published models have it."""
    for child in net.modules():
        if isinstance(child, nn.Sequential):
            for at in range(len(child) - 1):
                if isinstance(child[at], nn.Conv2d) and isinstance(child[at + 1], nn.BatchNorm2d):
                    child[at] = nn.utils.fuse_conv_bn_eval(child[at], child[at + 1])
                    child[at + 1] = nn.Identity()
    return net


def export(net: nn.Module, name: str, size: int, outputs: list[str], dynamic: dict[str, dict[int, str]]) -> None:
    torch.onnx.export(
        fold(net), (torch.zeros(1, 3, size, size),), str(HERE / name), opset_version=11, dynamo=False,
        input_names=["input.1"], output_names=outputs, dynamic_axes=dynamic,
    )  # fmt: skip


def make(what: str) -> None:
    if what == "recogniser":
        from safetensors.torch import save_file

        state = train_embedder(Recogniser(), 900, 1).state_dict()
        save_file({k: v.half().contiguous() for k, v in state.items() if v.is_floating_point()}, HERE / "recogniser.safetensors")
    elif what == "judge":
        export(train_embedder(Judge(), 1500, 2), "judge.onnx", 112, ["embedding"], {"input.1": {0: "n"}, "embedding": {0: "n"}})
    else:
        names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES]
        export(train_detector(1500), "detector.onnx", 128, names, {"input.1": {2: "h", 3: "w"}})


def check() -> None:
    """Figures on held-out people, for the README."""
    import onnxruntime
    from safetensors.torch import load_file

    images, landmarks, boxes = dataset(PEOPLE, HELD_OUT)
    x = crops(images.flatten(0, 1), landmarks.flatten(0, 1), 0.0)
    net = Recogniser()
    net.load_state_dict({k: v.float() for k, v in load_file(HERE / "recogniser.safetensors").items()}, strict=False)
    session = onnxruntime.InferenceSession(str(HERE / "judge.onnx"))
    with torch.no_grad():
        embeddings = {"recogniser": net.eval()(x), "judge": torch.from_numpy(session.run(None, {"input.1": x.numpy()})[0])}
    who = torch.arange(HELD_OUT).repeat_interleave(SHOTS)
    for name, e in embeddings.items():
        e = nn.functional.normalize(e)
        cosine = e @ e.T
        same = (who[:, None] == who) & ~torch.eye(len(who), dtype=torch.bool)
        positive, negative = cosine[same], cosine[who[:, None] != who]
        thresholds = torch.linspace(-1, 1, 2001)
        wrong = torch.stack([torch.stack([(positive < t).float().mean(), (negative >= t).float().mean()]) for t in thresholds])
        eer = wrong.max(1).values.min()
        print(f"{name}: same person {positive.mean():.3f}, different {negative.mean():.3f}, equal error rate {100 * eer:.2f} %")
    detector = onnxruntime.InferenceSession(str(HERE / "detector.onnx"))
    for size in (128, 160, 256):
        hits, error = 0, 0.0
        for k in range(HELD_OUT):
            picture = nn.functional.interpolate(images[k, 0][None].float(), size=size, mode="bilinear", antialias=True)
            outs = [torch.from_numpy(o) for o in detector.run(None, {"input.1": ((picture - 127.5) / 128).numpy()})]
            best = max(range(3), key=lambda s: float(outs[s].max()))
            at = int(outs[best].argmax())
            if float(outs[best].max()) > 0.5:
                hits += 1
                points = outs[6 + best][at].reshape(5, 2) * STRIDES[best] + anchors(STRIDES[best], size)[at]
                truth = (landmarks[k, 0] + 0.5) * size / 160 - 0.5
                error += float((points - truth).norm(dim=-1).mean() / (truth[0] - truth[1]).norm())
        print(f"detector at {size}: {hits} of {HELD_OUT} found, landmarks off by {100 * error / max(hits, 1):.1f} % of the eye distance")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["recogniser", "judge", "detector"], choices=["recogniser", "judge", "detector"])
    parser.add_argument("--check", action="store_true", help="measure the shipped files instead")
    arguments = parser.parse_args()
    if arguments.check:
        check()
    else:
        for what in arguments.what:
            make(what)
