"""Memory of a step by decoder, number format and side, one face whose crop takes 128 pixels: the peak above the loaded models.

    PYTHONPATH=bindings/python python benches/memory.py [--rows taesd:f32:512:exact,…]

A row is DECODER:DTYPE:SIDE:WAY. DECODER is `flux`, FLUX.1's architecture, or `taesd`; weights are random. WAY is one of
`benches/window.py`. Every row runs in a process of its own. On CUDA the peak is that of torch's allocator.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/fixtures"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from window import resident, vae

ROWS = "taesd:f32:512:exact,taesd:f32:1024:exact"
PIXELS = 128


def tiny() -> Any:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    made = AutoencoderTiny(latent_channels=16)
    made.encoder = None
    return made.eval().requires_grad_(False)


def work(decoder: str, dtype: str, size: int, way: str) -> float:
    """GiB of one row."""
    from iresnet import seeded
    from safetensors.torch import save_file

    import facegrad
    from step import TEMPLATE

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        save_file(seeded((3, 4, 14, 3), (64, 128, 256, 512)).state_dict(), Path(folder) / "r50.safetensors")
        recogniser = facegrad.Recogniser(Path(folder) / "r50.safetensors", device=device)
    recompute = "blocks" if "recompute" in way else "none"
    made = facegrad.Vae((tiny if decoder == "taesd" else vae)().to(device), dtype=dtype, device=device, recompute=recompute)
    keys: dict[str, Any] = {"face_align_mode": "kps", "prediction": {"kind": "sample"}, "latent_format": "none"}
    if way.startswith("window"):
        keys |= {"decode": "window_only", "norm_stats": "exact" if way == "window exact" else "cached"}
    loss = facegrad.FaceLoss(keys, recogniser=recogniser, vae=made, device=device)
    torch.manual_seed(1)
    latents, reference = torch.randn(1, 16, size // 8, size // 8, device=device), torch.rand(1, 3, size, size, device=device)
    points = (TEMPLATE.float() * PIXELS / 112 + 0.37 * size)[None]

    def step() -> None:
        leaf = latents.clone().requires_grad_()
        value, report = loss.step(leaf, None, 0.3, reference, landmarks=points, reference_landmarks=points)
        value.backward()
        assert leaf.grad is not None and leaf.grad.any() and report.counted == 1

    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    loaded = torch.cuda.memory_allocated() / 2**30 if device.type == "cuda" else resident()
    if way in ("window cached", "window recompute"):
        step()  # Fills the cache of statistics.
        trim(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**30 - loaded
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return peak() - loaded


def peak() -> float:
    """The most GiB that the process has held since the kernel was told to forget."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=ROWS, help="separated by commas")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        decoder, dtype, size, way = args.worker.split(":")
        print(json.dumps(work(decoder, dtype, int(size), way)))
        return
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for row in args.rows.split(","):
        done = subprocess.run([sys.executable, __file__, "--worker", row], capture_output=True, text=True)
        figure = f"{json.loads(done.stdout.splitlines()[-1]):6.2f} GiB" if done.returncode == 0 else done.stderr[-600:]
        print(f"{row:32} {figure} on {where}", flush=True)


if __name__ == "__main__":
    main()
