"""Measures the three shipped files on people who were never drawn in training."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import torch
from safetensors.torch import load_file

import faces
from align import crop
from nets import STRIDES, IResNet
from train import HELD_OUT, HERE, draw_people, draw_scenes


def session(path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_recogniser() -> IResNet:
    net = IResNet()
    net.load_state_dict({k: v.float() if v.is_floating_point() else v
                         for k, v in load_file(HERE / "recogniser.safetensors").items()})
    return net.eval().requires_grad_(False)


def detect(run: ort.InferenceSession, image: np.ndarray, size: int, threshold: float = .5):
    """SCRFD's decoding of one uint8 RGB picture: the [k, 15] rows score, box, landmarks after NMS at .4."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    scale = size / max(image.shape[:2])
    x = torch.nn.functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    x = torch.nn.functional.pad(x, (0, size - x.shape[3], 0, size - x.shape[2]))
    out = run.run(None, {"input.1": ((x - 127.5) / 128).numpy()})
    rows = []
    for k, stride in enumerate(STRIDES):
        n = -(-size // stride)
        centre = np.stack(np.mgrid[:n, :n][::-1], -1).reshape(-1, 2).repeat(2, 0) * stride
        keep = out[k][:, 0] >= threshold
        c, b, p = centre[keep], out[3 + k][keep] * stride, out[6 + k][keep] * stride
        rows.append(np.concatenate([out[k][keep], c - b[:, :2], c + b[:, 2:], p + np.tile(c, 5)], 1))
    rows = np.concatenate(rows)
    rows[:, 1:] /= scale
    rows, best = rows[np.argsort(-rows[:, 0])], []
    for row in rows:
        if all(overlap(row[1:5], b[1:5]) <= .4 for b in best):
            best.append(row)
    return np.array(best).reshape(-1, 15)


def overlap(a, b) -> float:
    w = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = max(w[0], 0) * max(w[1], 0)
    return inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter)


def separation(e: torch.Tensor, labels: torch.Tensor) -> str:
    e = torch.nn.functional.normalize(e)
    cos = e @ e.T
    same = labels[:, None] == labels[None]
    upper = torch.triu(torch.ones_like(same), 1)
    pos, neg = cos[same & upper].numpy(), cos[~same & upper].numpy()
    cuts = np.linspace(-1, 1, 2001)
    miss = np.searchsorted(np.sort(pos), cuts) / len(pos)
    false = 1 - np.searchsorted(np.sort(neg), cuts) / len(neg)
    k = int(np.argmin(np.abs(miss - false)))
    return (f"same person {pos.mean():.3f} ± {pos.std():.3f}, different people {neg.mean():.3f} ± {neg.std():.3f}, "
            f"EER {100 * (miss[k] + false[k]) / 2:.2f} % at cosine {cuts[k]:.2f} "
            f"({len(pos)} and {len(neg)} pairs)")


def check() -> None:
    torch.set_num_threads(2)
    images, points, labels = draw_people(HELD_OUT, 60, 6, seed=99)
    x = crop(images.float() / 255, points) * 2 - 1
    if (HERE / "recogniser.safetensors").exists():
        with torch.no_grad():
            print("recogniser:", separation(load_recogniser()(x), labels))
    if (HERE / "judge.onnx").exists():
        print("judge:     ", separation(torch.from_numpy(session(HERE / "judge.onnx").run(None, {"data": x.numpy()})[0]), labels))
    if (HERE / "detector.onnx").exists():
        run = session(HERE / "detector.onnx")
        for picture, size in ((128, 128), (192, 192), (256, 128), (256, 160), (256, 256), (256, 320)):
            found, off, extra, low = 0, [], 0, 1.
            for k in range(60):
                p = faces.portrait(HELD_OUT + 1000 + k, picture)
                rows = detect(run, p.image, size)
                hit = [r for r in rows if overlap(r[1:5], p.box) > .5]
                found, extra = found + bool(hit), extra + len(rows) - len(hit[:1])
                if hit:
                    eyes = np.linalg.norm(p.landmarks[0] - p.landmarks[1])
                    off.append(np.linalg.norm(hit[0][5:].reshape(5, 2) - p.landmarks, axis=1).mean() / eyes)
                    low = min(low, hit[0][0])
            print(f"detector:   {picture} px pictures at size {size}: {found}/60 found, {extra} false, lowest score {low:.2f}, "
                  f"landmarks off by {100 * np.mean(off or [1]):.1f} % of the eye distance")
        scenes, truth = draw_scenes(80, 224, 77, HELD_OUT)
        hits = total = false = 0
        for image, (boxes, _) in zip(scenes, truth):
            rows = detect(run, image.permute(1, 2, 0).numpy(), 224)
            hits += sum(any(overlap(r[1:5], b) > .5 for r in rows) for b in boxes)
            total += len(boxes)
            false += sum(all(overlap(r[1:5], b) <= .5 for b in boxes) for r in rows)
        print(f"detector:   80 cluttered scenes of 224 px: {hits} of {total} faces found, {false} false")
