"""Detection and embedding of photographs against insightface's FaceAnalysis, side by side in one run on the CPU:
SCRFD-500M at 640, and one of two recognisers. Prints the ratios of the medians and of the fastest rounds; on a machine with
other work the latter is the steadier.

    make bench      or   PYTHONPATH=bindings/python python benches/evaluate.py DATA [--rounds 7] [--recogniser mobile]

DATA is the folder of real models and photographs (FACEGRAD_TEST_DATA).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch

import facegrad

warnings.filterwarnings("ignore")
from insightface.app import FaceAnalysis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/fixtures"))
from iresnet import seeded


def pack(folder: Path, data: Path, recogniser: str) -> Path:
    """A pack in InsightFace's layout: the real detector, and a MobileFaceNet or an IResNet-50 of random weights."""
    made = folder / "models/buffalo_bench"
    made.mkdir(parents=True)
    (made / "det_500m.onnx").symlink_to((data / "models/det_500m.onnx").resolve())
    if recogniser == "mobile":
        (made / "w600k_mbf.onnx").symlink_to((data / "models/foamliu_mobilefacenet_128d_112.onnx").resolve())
    else:
        torch.onnx.export(
            seeded((3, 4, 14, 3), (64, 128, 256, 512)), (torch.zeros(1, 3, 112, 112),), str(made / "w600k_r50.onnx"), opset_version=11,
            dynamo=False, input_names=["input.1"], output_names=["embedding"], dynamic_axes={"input.1": {0: "None"}},
        )  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--recogniser", choices=["mobile", "r50"], nargs="+", default=["mobile", "r50"])
    args = parser.parse_args()
    bgr = [cv2.imread(str(path)) for path in sorted((args.data / "photos").iterdir())]
    rgb = [torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1])).permute(2, 0, 1)[None] for image in bgr]
    for name in args.recogniser:
        with tempfile.TemporaryDirectory() as folder:
            models = pack(Path(folder), args.data, name)
            app = FaceAnalysis(
                "buffalo_bench", root=folder, allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
            )
            app.prepare(-1, det_size=(640, 640))
            recogniser = next(models.glob("w600k_*.onnx"))
            evaluator = facegrad.Evaluator(models / "det_500m.onnx", recogniser, engine="ort")
            ways = {"insightface": lambda: [app.get(x) for x in bgr], "facegrad": lambda: [evaluator.faces(x)[0] for x in rgb]}
            times: dict[str, list[float]] = {way: [] for way in ways}
            found = {}
            for _ in range(args.rounds + 1):  # the first round warms up
                for way, run in ways.items():
                    start = time.perf_counter()
                    found[way] = run()
                    times[way].append(time.perf_counter() - start)
        cosines = [
            float(face.embedding.numpy() @ other.normed_embedding)
            for ours, theirs in zip(found["facegrad"], found["insightface"])
            for face, other in zip(ours, theirs, strict=True)
        ]
        print(f"{len(bgr)} photographs, {len(cosines)} faces, det_500m at 640, {recogniser.stem}, {torch.get_num_threads()} threads")
        medians = {way: statistics.median(t[1:]) for way, t in times.items()}
        fastest = {way: min(t[1:]) for way, t in times.items()}
        for way in ways:
            print(f"  {way:12} median {1000 * medians[way]:8.1f} ms, fastest {1000 * fastest[way]:8.1f} ms")
        print(
            f"ratio facegrad / insightface: {medians['facegrad'] / medians['insightface']:.2f} of the medians, "
            f"{fastest['facegrad'] / fastest['insightface']:.2f} of the fastest; least cosine of the embeddings {min(cosines):.6f}"
        )


if __name__ == "__main__":
    main()
