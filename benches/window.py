"""Steps through windows against whole images and eager PyTorch, side by side: CPU time, peak memory and gradient of a
step with one face and a VAE of FLUX.1's architecture (random weights). Every way runs in a process of its own, whose
peak memory is what is shown, less what it holds when everything is loaded.

    PYTHONPATH=bindings/python python benches/window.py [--sizes 256 512] [--faces 0.25] [--steps 1] [--ways eager,…] [--plot docs/window.png]

Eager PyTorch works as the method does: it decodes the image with a gradient by diffusers, and looks for a face in
reference and image at every step (with FACEGRAD_TEST_DATA's detector, where it is there; the place is given all the same,
since random weights show no face).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/fixtures"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from decoder import work_of

from step import TEMPLATE, grid

WAYS = {
    "eager": "eager PyTorch",
    "exact": "whole image",
    "recompute": "whole image, recompute",
    "window exact": "window, exact statistics",
    "window cached": "window, cached statistics",
    "window recompute": "window, cached, recompute",
    "window predicted": "window, predicted statistics",
    "window own": "window, its own statistics",
}
DATA = Path(os.environ.get("FACEGRAD_TEST_DATA", Path(__file__).resolve().parents[2] / "shared/data"))


def vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    made = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
        layers_per_block=2, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    made.encoder = None
    return made.eval().requires_grad_(False)


def step_of(way: str, size: int, face: float, halo: int | None) -> Callable[[], torch.Tensor]:
    """A function that makes one step and gives the gradient with respect to the latents."""
    from iresnet import seeded
    from safetensors.torch import save_file

    import facegrad

    decoder, net = vae(), seeded((3, 4, 14, 3), (64, 128, 256, 512))
    torch.manual_seed(1)
    latents = torch.randn(1, 16, size // 8, size // 8)
    reference = torch.rand(1, 3, size, size)
    side = face * size
    points = TEMPLATE.float() * side / 112 + (0.37 * size if face < 0.6 else 0)
    detector = DATA / "models/det_500m.onnx"
    if way == "eager":
        finder = facegrad.Detector(detector, det_sizes=[640]) if detector.exists() else None
        crop = lambda x: torch.nn.functional.grid_sample(x, grid(points, size)[None], align_corners=False)
        embed = lambda x: torch.nn.functional.normalize(net(crop(x) * 2 - 1))

        def step() -> torch.Tensor:
            leaf = latents.clone().requires_grad_()
            image = ((decoder.decode(leaf).sample + 1) / 2).clamp(0, 1)
            if finder is not None:
                finder.detect(image.detach())
                finder.detect(reference)
            with torch.no_grad():
                known = embed(reference)
            (1 - (embed(image) * known).sum(1)).mean().backward()
            assert leaf.grad is not None
            return leaf.grad

        return step
    with tempfile.TemporaryDirectory() as folder:
        save_file(net.state_dict(), Path(folder) / "r50.safetensors")
        recogniser = facegrad.Recogniser(Path(folder) / "r50.safetensors")
    keys = {"face_align_mode": "kps", "face_loss_weight": 1.0, "prediction": {"kind": "sample"}, "latent_format": "none"}
    if way.startswith("window"):
        statistics = {"window exact": "exact", "window own": "window", "window predicted": "predicted"}.get(way, "cached")
        keys |= {"decode": "window_only", "norm_stats": statistics, "window_halo": halo}
    made = facegrad.Vae(decoder, recompute="blocks" if "recompute" in way else "none")
    loss = facegrad.FaceLoss(keys, recogniser=recogniser, vae=made)
    if way == "window predicted":
        # The model does not depend on the size of the images: small ones teach it quickly.
        small = {"landmarks": points[None] * 64 / size, "reference_landmarks": points[None] * 64 / size}
        with torch.no_grad():
            for _ in range(24):
                _, report = loss.step(torch.randn(1, 16, 8, 8), None, 0.3, reference[:, :, :64, :64], **small)
        print("after small images:", report.samples[0].decoded.name)

    def step() -> torch.Tensor:
        leaf = latents.clone().requires_grad_()
        value, _ = loss.step(leaf, None, 0.3, reference, landmarks=points[None], reference_landmarks=points[None])
        value.backward()
        assert leaf.grad is not None
        return leaf.grad

    return step


def status(*names: str) -> float:
    """The sum of these lines of the process's status, in GiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in names) / 2**20


class Peak(threading.Thread):
    """The most memory that the process holds until `end`. The kernel's own figure does not count what lies in swap space."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib, self.over = 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.gib = max(self.gib, status("VmRSS", "VmSwap"))

    def end(self) -> float:
        self.over.set()
        self.join()
        return max(self.gib, status("VmHWM"))


def work(way: str, size: int, face: float, steps: int, out: Path, halo: int | None) -> None:
    """Measures one way; writes its figures and its gradient."""
    step = step_of(way, size, face, halo)
    ctypes.CDLL(None).malloc_trim(0)
    loaded = status("VmRSS", "VmSwap")
    if way in ("window cached", "window recompute"):
        # The exact pass that fills the cache is not part of what is measured, so neither is what it leaves in malloc's
        # arenas, nor its peak, which the kernel forgets when told to.
        step()
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    peak = Peak()
    peak.start()
    times = []
    for _ in range(steps):
        # The process's own time: others on the machine do not count.
        start = time.process_time()
        gradient = step()
        times.append(time.process_time() - start)
    figures = {"seconds": min(times), "gib": peak.end() - loaded}
    torch.save(gradient, out / f"{way}.pt")
    (out / f"{way}.json").write_text(json.dumps(figures))


def measure(ways: list[str], size: int, face: float, steps: int, halo: int | None) -> dict[str, dict[str, float]]:
    """The figures of every way, each in its own process."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for way in ways:
            code = subprocess.run(
                [sys.executable, __file__, "--worker", way, str(size), str(face), str(steps), name, json.dumps(halo)]
            ).returncode
            if code != 0:
                print(f"{WAYS[way]}: failed with {code}")
                continue
            found[way] = json.loads((out / f"{way}.json").read_text())
            row = found[way]
            base = next((w for w in ("eager", "exact", "recompute") if w in found), None)
            text = f"{size:5} {face:5} {WAYS[way]:28} {row['seconds']:8.2f} CPU s {row['gib']:7.2f} GiB"
            if base is not None:
                want, got = torch.load(out / f"{base}.pt").flatten(), torch.load(out / f"{way}.pt").flatten()
                row["cosine"] = float(torch.nn.functional.cosine_similarity(got, want, dim=0))
                row["norm"] = float(got.norm() / want.norm())
                faster, less = found[base]["seconds"] / row["seconds"], found[base]["gib"] / max(row["gib"], 1e-9)
                text += f"   x{faster:5.1f} faster   1/{less:4.1f} memory   cosine {row['cosine']:.4f}   norms {row['norm']:.3f}"
            print(text, flush=True)
    return found


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Time and memory against the image's side, one line a way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for axis, key, title in zip(axes, ("seconds", "gib"), ("CPU seconds a step", "GiB above the loaded models"), strict=True):
        for way, name in WAYS.items():
            points = sorted((row["size"], row[key]) for row in rows if row["way"] == way)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xlabel="side of the image, pixels", title=title, yscale="log")
        axis.set_xticks(sorted({row["size"] for row in rows}))
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"One face of {rows[0]['pixels']} pixels, FLUX.1's VAE, loss and gradient; CPU threads: {torch.get_num_threads()}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        way, size, face, steps, out, halo = sys.argv[2:]
        work(way, int(size), float(face), int(steps), Path(out), json.loads(halo))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides of the images")
    parser.add_argument("--faces", type=float, nargs="+", default=[0.25], help="sides of the faces' crops, as parts of the image's")
    parser.add_argument("--pixels", type=int, help="one size of the crop in pixels for all images, in place of --faces")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--ways", default=",".join(WAYS), help="separated by commas")
    parser.add_argument("--results", type=Path, help="a JSON file that figures are added to")
    parser.add_argument("--plot", type=Path, help="draw the results")
    parser.add_argument("--halo", type=int, help="window_halo; default: the library's; with --work the receptive field")
    parser.add_argument("--work", action="store_true", help="count multiply-adds instead of measuring")
    args = parser.parse_args()
    if args.work:
        for size in args.sizes:
            for face in [args.pixels / size] if args.pixels else args.faces:
                whole, window = (work_of(size, round(face * size), way, args.halo) for way in (False, True))
                parts = ", ".join(f"{name} {value:.0f}" for name, value in window.items())
                ratio = sum(whole.values()) / sum(window.values())
                print(f"{size}: whole image {sum(whole.values()):.0f}, window {sum(window.values()):.0f} (1/{ratio:.1f}): {parts}")
        return
    rows: list[dict[str, Any]] = json.loads(args.results.read_text()) if args.results and args.results.exists() else []
    for size in args.sizes:
        for face in [args.pixels / size] if args.pixels else args.faces:
            found = measure(args.ways.split(","), size, face, args.steps, args.halo)
            rows += [{"way": way, "size": size, "pixels": round(face * size), **row} for way, row in found.items()]
            if args.results:
                args.results.write_text(json.dumps(rows, indent=1))
    if args.plot:
        plot(args.plot, rows)


if __name__ == "__main__":
    main()
