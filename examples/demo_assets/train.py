"""Makes and checks the demo's three models from drawn faces alone.

    python examples/demo_assets/train.py recogniser     # each writes one file next to this script
    python examples/demo_assets/train.py judge
    python examples/demo_assets/train.py detector
    python examples/demo_assets/train.py detector --refine
    python examples/demo_assets/train.py --check        # measures the files that are here
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import faces
from align import crop
from nets import ANCHORS, STRIDES, Detector, IResNet, Judge

HERE = Path(__file__).resolve().parent
HELD_OUT = 5_000_000          # identities from here on are never trained on
CANVAS = 128


def draw_people(first: int, people: int, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 [N, 3, 128, 128], landmarks [N, 5, 2] and identity indices [N]."""
    r = np.random.default_rng(seed)
    images = np.empty((people * each, CANVAS, CANVAS, 3), np.uint8)
    points = np.empty((people * each, 5, 2), np.float32)
    for k in range(people * each):
        canvas = faces.background(r, CANVAS, CANVAS, clutter=r.random() < .3)
        place = faces.similarity(r.uniform(46, 57), r.uniform(-.25, .25), *r.uniform(60, 68, 2))
        _, points[k] = faces.paint(canvas, faces.Person(first + k // each), faces.Look.random(r), place)
        images[k] = faces.finish(canvas)
    labels = torch.arange(people).repeat_interleave(each)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(points), labels


def trait_table(first: int, people: int) -> torch.Tensor:
    """[people, T] standardised numbers that describe each drawn person: an auxiliary target that teaches the
    embedding what distinguishes people long before the margin loss alone would."""
    rows = []
    for k in range(people):
        row = []
        for name, v in sorted(faces.Person(first + k).traits.items()):
            kinds = {"style": faces.HAIR_STYLES, "beard": ["none", "full", "goatee", "moustache", "stubble"],
                     "glasses": ["none", "round", "square"]}.get(name)
            if kinds:
                row += [float(v == kind) for kind in kinds]
            elif name == "frame":
                continue
            else:
                row += np.ravel(float(v is not None) if name == "mole" else v).tolist()
        rows.append(row)
    table = torch.tensor(rows)
    return (table - table.mean(0)) / (table.std(0) + 1e-3)


def spoil(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Colour, blur, grain, low-frequency stains and cutout for crops in [0, 1]. A recogniser that must look
    past these has gradients that point at the drawing and not at the pixels' texture."""
    n, _, h, w = x.shape
    u = lambda *s, a=0., b=1.: torch.rand(*s, generator=g) * (b - a) + a
    x = x * u(n, 3, 1, 1, a=.85, b=1.15) * u(n, 1, 1, 1, a=.7, b=1.3) + u(n, 1, 1, 1, a=-.12, b=.12)
    mean = x.mean((2, 3), keepdim=True)
    x = (x - mean) * u(n, 1, 1, 1, a=.65, b=1.25) + mean
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * u(n, 1, 1, 1, a=.5, b=1.3)
    order = torch.randperm(n, generator=g)
    for part, scale in ((order[: n // 4], .5), (order[n // 4: n * 2 // 5], .3)):
        small = F.interpolate(x[part], scale_factor=scale, mode="area")
        x[part] = F.interpolate(small, size=(h, w), mode="bilinear", align_corners=False)
    for cells, weight in ((14, .08), (5, .1)):
        stain = torch.randn(n, 3, cells, cells, generator=g) * u(n, 1, 1, 1) * weight
        x = x + F.interpolate(stain, size=(h, w), mode="bilinear", align_corners=False)
    x = x + torch.randn(n, 3, h, w, generator=g) * u(n, 1, 1, 1, b=.1)
    for k in range(0, n, 3):
        top, left, size = (int(v) for v in (u(1, a=0, b=90), u(1, a=0, b=90), u(1, a=12, b=36)))
        x[k, :, top:top + size, left:left + size] = u(3, 1, 1)
    return x.clamp(0, 1)


def batch_of(images, points, index, g, jitter: float) -> torch.Tensor:
    """Aligned, spoilt crops in [-1, 1]; `jitter` is the landmarks' error in canvas pixels."""
    p = points[index]
    shared = torch.randn(len(index), 1, 2, generator=g) * jitter
    p = p + torch.randn(p.shape, generator=g) * jitter + shared
    return spoil(crop(images[index].float() / 255, p), g) * 2 - 1


def train_embedding(net, minutes: float, seed: int, people: int, each: int, batch: int, adversarial: float,
                    trait_weight: float) -> None:
    """CosFace (m rising to .35, s = 24) and, weighed, the traits, with Adam and a cosine rate, for `minutes` of wall
    time. In the last
    part of training `adversarial` is the size of one signed-gradient step taken against the network first."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    start = time.time()
    images, points, labels = draw_people(seed * 100_000, people, each, seed)
    print(f"drew {len(images)} pictures in {time.time() - start:.0f} s", flush=True)
    centres = torch.nn.Parameter(torch.randn(people, 128) * .05)
    traits = trait_table(seed * 100_000, people)
    guess = torch.nn.Linear(128, traits.shape[1])
    params = [p for p in net.parameters() if p.requires_grad] + [centres, *guess.parameters()]
    top = 4e-3
    opt = torch.optim.AdamW(params, lr=top, weight_decay=5e-4)
    start, step, seen, running = time.time(), 0, 0, 0.
    order = torch.randperm(len(labels), generator=g)
    net.train()
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        rate = top * min(1, .1 + done / .08) * (.5 + .5 * math.cos(math.pi * min(done, 1))) + 1e-5
        for group in opt.param_groups:
            group["lr"] = rate
        if (seen + 1) * batch > len(order):
            order, seen = torch.randperm(len(labels), generator=g), 0
        index = order[seen * batch:(seen + 1) * batch]
        seen += 1
        x = batch_of(images, points, index, g, 1.2)
        margin = .35 * min(1, done / .4)

        def loss_of(x):
            e = net(x)
            cos = F.normalize(e) @ F.normalize(centres).T
            identity = F.cross_entropy(24 * (cos - margin * F.one_hot(labels[index], people)), labels[index])
            return identity + trait_weight * F.mse_loss(guess(e), traits[labels[index]])

        if adversarial and done > .6 and step % 2:
            x.requires_grad_(True)
            grad, = torch.autograd.grad(loss_of(x), x)
            grad = F.avg_pool2d(grad, 5, 1, 2)
            x = (x + adversarial * torch.rand(len(x), 1, 1, 1, generator=g) * grad.sign()).clamp(-1, 1).detach()
        loss = loss_of(x)
        opt.zero_grad()
        loss.backward()
        opt.step()
        running += .05 * (loss.item() - running)
        step += 1
        if step % 50 == 0:
            print(f"{done:5.0%} step {step} loss {running:.3f}", flush=True)
    settle(net, images, points, g)


def settle(net, images, points, g) -> None:
    """Measures the BatchNorm statistics again, on pictures as spoilt as in training."""
    for m in net.modules():
        if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            m.reset_running_stats()
            m.momentum = None
    with torch.no_grad():
        for _ in range(12):
            net(batch_of(images, points, torch.randint(len(images), (64,), generator=g), g, .8))
    net.eval()


def draw_scenes(count: int, size: int, seed: int, first: int):
    """Pictures with none to three faces: uint8 [N, 3, S, S] and a list of (boxes [k, 4], points [k, 5, 2])."""
    r = np.random.default_rng(seed)
    images, truth = np.empty((count, size, size, 3), np.uint8), []
    for k in range(count):
        canvas = faces.background(r, size, size, clutter=True)
        boxes, points = [], []
        kind = r.random()
        places = []
        if kind < .62:
            scale = size * r.uniform(.2, .5)
            places = [(scale, *(size * .5 + r.uniform(-.5, .5, 2) * max(size - 1.9 * scale, 8)))]
        elif kind < .92:
            for _ in range(int(r.integers(1, 4))):
                scale = size * r.uniform(.07, .2)
                x, y = r.uniform(scale, size - scale, 2)
                if all(math.hypot(x - a, y - b) > 1.8 * max(scale, s) for s, a, b in places):
                    places.append((scale, x, y))
        for scale, x, y in places:
            lo, hi = np.maximum([int(y - 1.7 * scale), int(x - 1.7 * scale)], 0), [int(y + 2.4 * scale), int(x + 1.7 * scale)]
            part = canvas[lo[0]:hi[0], lo[1]:hi[1]]
            seed_ = first + int(r.integers(100_000))
            box, p = faces.paint(part, faces.Person(seed_), faces.Look.random(r),
                                 faces.similarity(scale, r.uniform(-.35, .35), x - lo[1], y - lo[0]))
            boxes.append(box + np.tile(lo[::-1], 2))
            points.append(p + lo[::-1])
        images[k] = faces.finish(canvas, r, r.uniform(0, .04))
        truth.append((np.array(boxes, np.float32).reshape(-1, 4), np.array(points, np.float32).reshape(-1, 5, 2)))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), truth


def targets(truth, scale: float, size: int, stride: int):
    """Where this stride must answer: score [H, W], weight [H, W], box [H, W, 4] and points [H, W, 10] in strides."""
    n = math.ceil(size / stride)
    score, weight = torch.zeros(n, n), torch.ones(n, n)
    box, points = torch.zeros(n, n, 4), torch.zeros(n, n, 10)
    low, high = {8: (0, 48), 16: (40, 112), 32: (96, 1e9)}[stride]
    y, x = torch.meshgrid(torch.arange(n) * stride, torch.arange(n) * stride, indexing="ij")
    for b, p in zip(*truth):
        b, p = torch.from_numpy(b) * scale, torch.from_numpy(p) * scale
        extent = float(((b[2] - b[0]) * (b[3] - b[1])).sqrt())
        cx, cy = float(b[0] + b[2]) / 2, float(b[1] + b[3]) / 2
        far = torch.maximum((x - cx).abs(), (y - cy).abs())
        reach = max(.16 * extent, .55 * stride)
        near = far <= reach
        weight[(far <= 2 * reach) & ~near & (score == 0)] = 0
        if not low * .8 <= extent <= high * 1.2:
            continue
        if not low <= extent <= high:
            weight[near] = 0
            continue
        score[near], weight[near] = 1, 1
        edge = torch.stack([x - b[0], y - b[1], b[2] - x, b[3] - y], -1) / stride
        spot = torch.stack([v for q in p for v in (q[0] - x, q[1] - y)], -1) / stride
        box[near], points[near] = edge[near].float(), spot[near].float()
    return score, weight, box, points


def resume_detector(net: Detector, path: Path) -> None:
    """Puts the exported file's weights back: each BatchNorm was folded into its convolution, so it becomes that
    convolution's bias and stays frozen in its statistics."""
    import onnx
    graph = onnx.load(str(path)).graph
    named = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    nodes = [n for n in graph.node if n.op_type == "Conv"]
    order = [m for k in ("stem", "down") for m in getattr(net, k).modules() if isinstance(m, torch.nn.Conv2d)]
    for k in (2, 1, 0):
        order += [net.lateral[k], net.tower[k][0], net.score[k], net.box[k], net.points[k]]
    owner = {m[0]: m[1] for m in net.modules() if isinstance(m, torch.nn.Sequential) and isinstance(m[0], torch.nn.Conv2d)}
    with torch.no_grad():
        for conv, node in zip(order, nodes, strict=True):
            weight, bias = named[node.input[1]], named[node.input[2]]
            conv.weight.copy_(weight)
            if conv.bias is not None:
                conv.bias.copy_(bias)
            else:
                owner[conv].bias.copy_(bias)
                owner[conv].weight.fill_(math.sqrt(1 + owner[conv].eps))


def train_detector(net: Detector, minutes: float, seed: int, count: int, batch: int = 16, refine: bool = False) -> None:
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    start = time.time()
    images, truth = draw_scenes(count, 224, seed, 3_000_000)
    print(f"drew {count} scenes in {time.time() - start:.0f} s", flush=True)
    top = 2e-3 if refine else 4e-3
    opt = torch.optim.AdamW(net.parameters(), lr=top, weight_decay=1e-4)
    start, step, running = time.time(), 0, torch.zeros(3)
    net.train(not refine)
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        for group in opt.param_groups:
            group["lr"] = top * min(1, .1 + done / .05) * (.5 + .5 * math.cos(math.pi * done)) + 1e-5
        size = int(torch.randint(4, 11, (1,), generator=g)) * 32
        inner = int(size * (1 if step % 3 else .6))          # letterboxed: the rest of the canvas stays black
        index = torch.randint(count, (batch,), generator=g)
        x = F.interpolate(images[index].float() / 255, size=(inner, inner), mode="bilinear", align_corners=False)
        x = F.pad(spoil(x, g), (0, size - inner, 0, size - inner))
        scale = inner / 224
        loss = torch.zeros(3)
        for stride, (s, b, p) in zip(STRIDES, net.levels((x * 255 - 127.5) / 128)):
            want = [torch.stack(t) for t in zip(*(targets(truth[i], scale, size, stride) for i in index))]
            score, weight, box, points = (t[:, None] for t in want)
            positive = score.expand(-1, ANCHORS, -1, -1) > 0
            prob = s.sigmoid()
            focal = torch.where(positive, 1 - prob, prob).square() * torch.where(positive, .6, .4)
            cells = positive.sum().clamp(min=4)
            bce = F.binary_cross_entropy_with_logits(s, score.expand_as(s), reduction="none")
            split = lambda y, k: y.unflatten(1, (ANCHORS, k)).permute(0, 1, 3, 4, 2)[positive]
            pick = lambda t, k: t.expand(-1, ANCHORS, -1, -1, -1)[positive]
            loss = loss + torch.stack([
                6 * (focal * bce * weight).sum() / cells,
                F.smooth_l1_loss(split(b, 4), pick(box, 4), beta=.2, reduction="sum") / cells / 4,
                (10 if refine else 2) * F.smooth_l1_loss(split(p, 10), pick(points, 10), beta=.1, reduction="sum") / cells / 10])
        opt.zero_grad()
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5)
        opt.step()
        running += .05 * (loss.detach() - running)
        step += 1
        if step % 50 == 0:
            print(f"{done:5.0%} step {step} score {running[0]:.3f} box {running[1]:.3f} points {running[2]:.3f}", flush=True)
    net.eval()


def export(net, example, path: Path, inputs, outputs, axes) -> None:
    torch.onnx.export(net, example, str(path), input_names=inputs, output_names=outputs, dynamic_axes=axes,
                      opset_version=11, dynamo=False)
    print(f"wrote {path.name}, {path.stat().st_size / 1024:.0f} KiB")


def make(what: str, minutes: float, people: int, refine: bool) -> None:
    if what == "recogniser":
        from safetensors.torch import save_file
        net = IResNet()
        train_embedding(net, minutes, seed=1, people=people, each=8, batch=64, adversarial=.08, trait_weight=4)
        path = HERE / "recogniser.safetensors"
        state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, path)
        print(f"wrote {path.name}, {path.stat().st_size / 1024:.0f} KiB")
    elif what == "judge":
        net = Judge()
        train_embedding(net, minutes, seed=2, people=people, each=8, batch=64, adversarial=.04, trait_weight=0)
        export(net, torch.zeros(1, 3, 112, 112), HERE / "judge.onnx", ["data"], ["embedding"],
               {"data": {0: "n"}, "embedding": {0: "n"}})
    else:
        net = Detector()
        path = HERE / "detector.onnx"
        if refine:
            resume_detector(net, path)
        train_detector(net, minutes, seed=4 if refine else 3, count=people * 2, refine=refine)
        names = [f"{kind}_{s}" for kind in ("score", "bbox", "kps") for s in STRIDES]
        export(net, torch.zeros(1, 3, 160, 160), path, ["input.1"], names,
               {"input.1": {2: "height", 3: "width"}, **{n: {0: "cells"} for n in names}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["recogniser", "judge", "detector"])
    parser.add_argument("--check", action="store_true", help="measure the files that are here")
    parser.add_argument("--minutes", type=float, default=8, help="wall time of the training itself")
    parser.add_argument("--people", type=int, default=900, help="how many identities to draw (half as many scenes)")
    parser.add_argument("--refine", action="store_true", help="detector: go on from detector.onnx, landmarks first")
    a = parser.parse_args()
    if a.what:
        make(a.what, a.minutes, a.people, a.refine)
    if a.check:
        from check import check
        check()
    if not (a.what or a.check):
        parser.print_help()


if __name__ == "__main__":
    main()
