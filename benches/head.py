"""What a decoder's first blocks on the whole latent cost in a step: everything that a window, however small, pays for the size of
its image. CPU seconds of the forward and of the backward pass through a window of 16 pixels with FLUX.1's architecture (random
weights). Other builds of the library can be given; all of them then take turns, so that their ratios come from one run.

    PYTHONPATH=bindings/python python benches/head.py [LIBRARY …] [--sizes 512 1024 2048] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests/fixtures")]


def serve(size: int, out: Path) -> None:
    """Makes a step for every line that comes in; answers with the seconds of both passes."""
    from iresnet import seeded
    from safetensors.torch import save_file
    from window import vae

    import facegrad
    from step import TEMPLATE

    made = facegrad.Vae(vae())
    with tempfile.TemporaryDirectory() as folder:
        save_file(seeded((1, 1, 1, 1), (8, 16, 32, 64)).state_dict(), Path(folder) / "small.safetensors")
        recogniser = facegrad.Recogniser(Path(folder) / "small.safetensors")
    keys = {"face_align_mode": "kps", "face_loss_weight": 1.0, "prediction": {"kind": "sample"}, "latent_format": "none"}
    loss = facegrad.FaceLoss(keys | {"decode": "window_only", "norm_stats": "window", "window_halo": 0}, recogniser=recogniser, vae=made)
    torch.manual_seed(1)
    latents, reference = torch.randn(1, 16, size // 8, size // 8), torch.rand(1, 3, 64, 64)
    places = {"landmarks": TEMPLATE.float()[None] / 14 + size // 2 + 4, "reference_landmarks": TEMPLATE.float()[None] * 64 / 112}
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        with torch.no_grad():
            loss.step(latents, None, 0.3, reference, **places)
        forward = time.process_time() - start
        leaf = latents.clone().requires_grad_()
        start = time.process_time()
        loss.step(leaf, None, 0.3, reference, **places)[0].backward()
        both = time.process_time() - start
        torch.save(leaf.grad, out)
        print(forward, both, flush=True)


def compare(libraries: list[str], size: int, rounds: int, folder: Path) -> None:
    """Prints the fastest round of every library, and how its gradient differs from the first one's."""
    gradients = [folder / f"{at}.pt" for at in range(len(libraries))]
    workers = []
    for library, out in zip(libraries, gradients, strict=True):
        surroundings = os.environ | ({"FACEGRAD_LIBRARY": library} if library else {})
        worker = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(size), str(out)],
            env=surroundings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin is not None and worker.stdout is not None
        if worker.stdout.readline() != "ready\n":
            raise SystemExit(f"{library or 'this checkout'}: its worker ended, see above")
        workers.append((worker.stdin, worker.stdout))
    times: list[list[tuple[float, float]]] = [[] for _ in workers]
    for _ in range(rounds):
        for seconds, (to, answer) in zip(times, workers, strict=True):
            to.write("go\n")
            to.flush()
            forward, both = map(float, answer.readline().split())
            seconds.append((forward, both))
    for to, _ in workers:
        to.close()
    first = torch.load(gradients[0])
    for library, seconds, out in zip(libraries, times, gradients, strict=True):
        forward, both = (min(column) for column in zip(*seconds, strict=True))
        whole = min(both for _, both in times[0]) / both
        error = float((torch.load(out) - first).norm() / first.norm())
        print(
            f"{size:5} {library or 'this checkout':40} forward {forward:6.2f} CPU s, with the gradient {both:6.2f}"
            f"   x{whole:4.2f} faster than the first   gradient off by {error:.1e}",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", default=[""], help="paths of libfacegrad.so; default: the checkout's own")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            compare(args.libraries, size, args.rounds, Path(folder))


if __name__ == "__main__":
    main()
