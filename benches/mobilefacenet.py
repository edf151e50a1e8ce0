"""Forward and backward of a MobileFaceNet on libtorch against the same ONNX file through onnx2torch, side by side in
one run: loss and gradient of aligned faces, references known. Prints the ratio of the medians and of the fastest rounds
for every batch.

    make bench      or   PYTHONPATH=bindings/python python benches/mobilefacenet.py DATA [--rounds 15] [--model FILE]

onnx2torch's module is measured as it comes, whose weights take part in the backward pass, and frozen, as facegrad's are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnx2torch import convert

import facegrad

TEMPLATE = torch.tensor([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    path = args.model or args.data / "models/foamliu_mobilefacenet_128d_112.onnx"
    recogniser = facegrad.Recogniser(path)
    config = {"face_align_mode": "kps", "face_loss_weight": 1.0}
    loss = facegrad.FaceLoss(config, recogniser=recogniser)
    for batch in args.batches:
        model = onnx.load(path)
        # The file says one picture at a time where onnx2torch would believe it.
        for node in model.graph.node:
            if node.op_type == "Reshape":
                shape = next(n for n in model.graph.node if n.output[0] == node.input[1])
                value = onnx.numpy_helper.to_array(shape.attribute[0].t).copy()
                value[0] = batch if value[0] == 1 else value[0]
                shape.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(value))
        plain, frozen = convert(model).eval(), convert(model).eval().requires_grad_(False)
        # Images as smooth as photographs: in white noise the last bit decides which units are active.
        smooth = lambda: torch.nn.functional.interpolate(torch.rand(batch, 3, 14, 14), size=(112, 112), mode="bicubic").clamp(0, 1)
        images, references = smooth(), smooth()
        points = TEMPLATE.expand(batch, 5, 2)
        # Both align; the landmarks are the template's own, so that every pixel stays where it is.
        place = (2 * torch.arange(112.0) + 1) / 112 - 1
        v, u = torch.meshgrid(place, place, indexing="ij")
        grid = torch.stack([u, v], -1).expand(batch, 112, 112, 2)

        def embed(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
            crops = torch.nn.functional.grid_sample(x, grid, align_corners=False)
            return torch.nn.functional.normalize(net(crops * 2 - 1))

        def eager(net: torch.nn.Module, known: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return (1 - (embed(net, x) * known).sum(1)).mean()

        with torch.no_grad():
            known = embed(frozen, references)
        ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "onnx2torch": lambda x: eager(plain, known, x),
            "onnx2torch, frozen": lambda x: eager(frozen, known, x),
            "facegrad": lambda x: loss(x, references, landmarks=points, reference_landmarks=points)[0],
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        values = {}
        for _ in range(args.rounds + 2):  # the first rounds warm up
            for name, way in ways.items():
                x = images.clone().requires_grad_()
                start = time.perf_counter()
                value = way(x)
                value.backward()
                times[name].append(time.perf_counter() - start)
                values[name] = (value.item(), x.grad)
        (want, gradient), (got, own) = values["onnx2torch, frozen"], values["facegrad"]
        print(
            f"{batch} faces, {torch.get_num_threads()} threads; loss {got:.6f} for {want:.6f}, gradient off by {float((own - gradient).norm() / gradient.norm()):.1e}"
        )
        for name, seconds in times.items():
            print(f"  {name:20} {1000 * statistics.median(seconds[2:]):8.1f} ms, fastest {1000 * min(seconds[2:]):8.1f} ms")
        for other in ("onnx2torch", "onnx2torch, frozen"):
            median = statistics.median(times["facegrad"][2:]) / statistics.median(times[other][2:])
            print(
                f"  ratio facegrad / {other}: {median:.2f} of the medians, {min(times['facegrad'][2:]) / min(times[other][2:]):.2f} of the fastest"
            )


if __name__ == "__main__":
    main()
