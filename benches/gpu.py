"""What the loss costs in a training step on a GPU: FLUX.1's transformer (random weights, bfloat16, a LoRA of rank 16,
checkpointing) and FLUX.1's decoder (random weights, bfloat16) with an IResNet-50, batch 1, one face of 128 pixels.

    make gpu-bench        or   python benches/gpu.py [--sizes 512 1024] [--steps 5] [--dry]

Writes a table, with the GPU's name, and a plot into docs/performance.md. Where 12·10⁹ parameters do not fit, the transformer
gets fewer blocks, and the table says so. What runs out of memory, or out of the ten minutes, is a line that says so.
`--dry` runs tiny networks on the CPU and writes nothing; `--plot FILE` writes the plot to another file, also of a dry run.

Eager PyTorch works as the method does: it decodes the image with a gradient by diffusers, and looks for a face in reference
and image at every step. Random weights show no face, so the places are given all the same.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MISSING = [name for name in ("torch", "facegrad", "diffusers", "matplotlib", "safetensors") if importlib.util.find_spec(name) is None]
if MISSING:
    sys.exit(f"missing: {', '.join(MISSING)}; run: {sys.executable} -m pip install -r {ROOT / 'tests/gpu/requirements.txt'} (and facegrad)")

import torch
from counts import MODES, PAGE, replace
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from torch.nn import functional as F

import facegrad
from facegrad.trainers.rollout import Rollout

sys.path.append(str(ROOT / "tests/fixtures"))
from iresnet import seeded

from step import TEMPLATE, grid

PLOT = ROOT / "docs/gpu.png"
RANK, PIXELS = 16, 128
#: GiB that are left for activations, optimiser and the loss when the transformer's blocks are chosen.
SPARE = 14


@dataclass(frozen=True)
class Scale:
    """The sizes of the networks."""

    heads: int
    head: int
    axes: tuple[int, int, int]
    joint: int
    pooled: int
    text: int
    blocks: tuple[int, int]
    decoder: tuple[int, ...]
    groups: int
    stages: tuple[int, ...]
    widths: tuple[int, ...]

    def parameters(self) -> float:
        """Of the transformer's blocks."""
        width = self.heads * self.head
        return (self.blocks[0] * 36 + self.blocks[1] * 15) * width**2


FLUX = Scale(24, 128, (16, 56, 56), 4096, 768, 512, (19, 38), (128, 256, 512, 512), 32, (3, 4, 14, 3), (64, 128, 256, 512))
DRY = Scale(2, 16, (4, 6, 6), 32, 16, 8, (1, 2), (16, 16, 32, 32), 8, (1, 1, 1, 1), (8, 8, 16, 16))


class Lora(torch.nn.Module):
    """A frozen linear layer with a trained addition of low rank."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = torch.nn.Parameter(torch.randn(RANK, base.in_features, **like) / base.in_features**0.5)
        self.up = torch.nn.Parameter(torch.zeros(base.out_features, RANK, **like))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


def transformer(scale: Scale, device: torch.device, blocks: tuple[int, int]) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = FluxTransformer2DModel(
                num_layers=blocks[0], num_single_layers=blocks[1], attention_head_dim=scale.head, num_attention_heads=scale.heads,
                joint_attention_dim=scale.joint, pooled_projection_dim=scale.pooled, guidance_embeds=True, axes_dims_rope=scale.axes,
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False)
    for part in list(model.modules()):
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            if isinstance(getattr(part, name, None), torch.nn.Linear):
                setattr(part, name, Lora(getattr(part, name)))
    model.enable_gradient_checkpointing()
    return model.train()


def decoder(scale: Scale, device: torch.device) -> AutoencoderKL:
    torch.manual_seed(0)
    made = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=scale.decoder,
        layers_per_block=2, latent_channels=16, norm_num_groups=scale.groups, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip
    made.encoder = None
    return made.eval().requires_grad_(False).to(device, torch.bfloat16)


class Training:
    """One sample's step at one size."""

    def __init__(self, scale: Scale, device: torch.device, model: FluxTransformer2DModel, vae: AutoencoderKL, folder: Path) -> None:
        self.scale, self.device, self.model, self.vae, self.folder = scale, device, model, vae, folder
        self.net = seeded(scale.stages, scale.widths).to(device)
        save_file(self.net.state_dict(), folder / "recogniser.safetensors")
        self.optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        self.recogniser = facegrad.Recogniser(folder / "recogniser.safetensors", device=device)
        self.detector = facegrad.Detector(
            ROOT / "examples/demo_assets/detector.onnx", device=device, det_sizes=[640 if scale is FLUX else 64]
        )

    def at(self, size: int) -> None:
        """Prepares the inputs of a size."""
        torch.manual_seed(1)
        side, device, scale = size // 16, self.device, self.scale
        self.side, self.size, like = size // 8, size, {"device": device, "dtype": torch.bfloat16}
        self.x_t, self.target, self.noise = (torch.randn(1, side * side, 64, **like) for _ in range(3))
        self.text, self.pooled = torch.randn(1, scale.text, scale.joint, **like), torch.randn(1, scale.pooled, **like)
        self.places = torch.zeros(side * side, 3, **like)
        self.places[:, 1] = torch.arange(side, **like).repeat_interleave(side)
        self.places[:, 2] = torch.arange(side, **like).repeat(side)
        self.text_places = torch.zeros(scale.text, 3, **like)
        self.reference = torch.rand(1, 3, size, size, device=device)
        face = min(PIXELS, size // 2)
        self.points = TEMPLATE.float() * face / 112 + 0.3 * size
        self.grid = grid(self.points, size)[None].to(device)

    def predict(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.model(
            hidden_states=x, timestep=t.to(x), guidance=torch.ones_like(t).to(x), encoder_hidden_states=self.text, pooled_projections=self.pooled,
            img_ids=self.places, txt_ids=self.text_places, return_dict=False,
        )[0]  # fmt: skip

    def eager(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The method's way in plain PyTorch: the weighted loss of a prediction."""

        def embed(images: torch.Tensor) -> torch.Tensor:
            crops = F.grid_sample(images.float(), self.grid, align_corners=False)
            return F.normalize(self.net(crops * 2 - 1))

        def loss(prediction: torch.Tensor) -> torch.Tensor:
            x0 = self.x_t.float() - 0.3 * prediction.float()
            half = self.side // 2
            z = x0.transpose(1, 2).reshape(1, 16, 2, 2, half, half).permute(0, 1, 4, 2, 5, 3).reshape(1, 16, self.side, self.side)
            z = (z / self.vae.config.scaling_factor + self.vae.config.shift_factor).to(torch.bfloat16)
            image = ((self.vae.decode(z).sample + 1) / 2).clamp(0, 1)
            self.detector.detect(image.detach().float())
            self.detector.detect(self.reference)
            with torch.no_grad():
                known = embed(self.reference)
            return 0.1 * (1 - (embed(image) * known).sum(1)).mean()

        return loss

    def facegrads(self, mode: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], Rollout | None]:
        """The same by the library, and the rollout where the mode has one."""
        keys: dict[str, Any] = {"face_align_mode": "kps", "packing": "flux"}
        if mode.startswith("window"):
            keys |= {"decode": "window_only", "norm_stats": mode.split()[1]}
        made = facegrad.Vae(self.vae, recompute="blocks" if mode == "recompute" else "none")
        face = facegrad.FaceIdentityLoss(keys, vae=made, detector=self.detector, recogniser=self.recogniser)
        told = self.told = {
            "references": self.reference, "landmarks": self.points[None], "reference_landmarks": self.points[None], "size": (self.side, self.side),
            "sample_ids": ["one"],
        }  # fmt: skip

        def loss(prediction: torch.Tensor) -> torch.Tensor:
            value, report = face(prediction=prediction, x_t=self.x_t, t=0.3, **told)
            if report.counted != 1:
                raise RuntimeError(f"{mode}: the sample did not count: {report.samples}")
            return value

        return loss, Rollout(face, ramp=0, min_score=0.0) if mode == "rollout" else None

    def step(self, loss: Callable[[torch.Tensor], torch.Tensor] | None, rollout: Rollout | None) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        prediction = self.predict(self.x_t, torch.full((1,), 0.3, device=self.device))
        main = F.mse_loss(prediction.float(), self.target.float())
        total = main if loss is None else main + loss(prediction)
        if rollout is not None:
            total = total + rollout(self.predict, self.noise, main=(main, prediction), **self.told)
        total.backward()
        self.optimiser.step()

    def measure(self, mode: str | None, steps: int) -> tuple[float, float] | str:
        """Milliseconds of the median step and GiB at its peak; a text where memory does not suffice."""
        on_gpu = self.device.type == "cuda"

        def settle() -> None:
            gc.collect()
            if on_gpu:
                torch.cuda.synchronize(self.device)

        loss: Callable[[torch.Tensor], torch.Tensor] | None = None
        rollout: Rollout | None = None
        try:
            if mode == "eager":
                loss = self.eager()
            elif mode is not None:
                loss, rollout = self.facegrads(mode)
            times = []
            # The first steps choose kernels, fill caches, and take the statistics that later steps remember.
            warming = 2 if on_gpu else 1
            for at in range(steps + warming):
                settle()
                if at == warming and on_gpu:
                    torch.cuda.reset_peak_memory_stats(self.device)
                start = time.perf_counter()
                self.step(loss, rollout)
                if on_gpu:
                    torch.cuda.synchronize(self.device)
                times.append(time.perf_counter() - start)
            peak = torch.cuda.max_memory_allocated(self.device) / 2**30 if on_gpu else float("nan")
            return 1e3 * statistics.median(times[warming:]), peak
        except (torch.OutOfMemoryError, facegrad.FacegradError) as error:
            if "out of memory" not in str(error).lower():
                raise
            return "out of memory"
        finally:
            self.optimiser.zero_grad(set_to_none=True)
            loss = rollout = None
            settle()
            if on_gpu:
                torch.cuda.empty_cache()


def blocks_that_fit(scale: Scale, device: torch.device) -> tuple[int, int]:
    """The transformer's blocks, fewer where memory is short."""
    if device.type != "cuda":
        return scale.blocks
    free, _ = torch.cuda.mem_get_info(device)
    share = min(1.0, max(0.05, (free / 2**30 - SPARE) / (2 * scale.parameters() / 2**30)))
    return (
        (scale.blocks[0], scale.blocks[1]) if share == 1.0 else (max(1, int(scale.blocks[0] * share)), max(1, int(scale.blocks[1] * share)))
    )


def fitting(scale: Scale, device: torch.device) -> tuple[FluxTransformer2DModel, tuple[int, int]]:
    """The transformer and its blocks: half of them where memory was shorter than it looked."""
    blocks = blocks_that_fit(scale, device)
    while True:
        try:
            return transformer(scale, device, blocks), blocks
        except torch.OutOfMemoryError:
            if blocks == (1, 1):
                raise
        blocks = (max(1, blocks[0] // 2), max(1, blocks[1] // 2))
        gc.collect()
        torch.cuda.empty_cache()


def report(rows: list[dict[str, Any]], about: str) -> str:
    """The rows as a page shows them."""
    lines = [
        about,
        "",
        "| side | step | ms | more than without the loss | of the step without it | GiB | more GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        base = next(r for r in rows if r["size"] == row["size"] and r["mode"] is None)
        name = "without the loss" if row["mode"] is None else MODES[row["mode"]]
        if isinstance(row["found"], str) or isinstance(base["found"], str):
            time_taken = row["found"] if isinstance(row["found"], str) else f"{row['found'][0]:.0f}"
            lines.append(f"| {row['size']} | {name} | {time_taken} | | | | |")
            continue
        (ms, gib), (base_ms, base_gib) = row["found"], base["found"]
        more = "| | " if row["mode"] is None else f"| {ms - base_ms:+.0f} | {100 * (ms - base_ms) / base_ms:.1f} % "
        # A CPU's allocator does not tell.
        held = "" if math.isnan(gib) else f"{gib:.2f}"
        grown = "" if math.isnan(gib) or row["mode"] is None else f"{gib - base_gib:+.2f}"
        lines.append(f"| {row['size']} | {name} | {ms:.0f} {more}| {held} | {grown} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """What the loss adds to a step, in milliseconds and GiB, by mode. A rollout takes several steps of the model, so its bars
    leave the frame; every bar has its number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes, modes = sorted({row["size"] for row in rows}), list(MODES)
    found = {(row["size"], row["mode"]): row["found"] for row in rows}
    height = 0.8 / len(sizes)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True)
    for axis, at, what in zip(axes, (0, 1), ("milliseconds more than without the loss", "GiB more than without the loss"), strict=True):
        drawn: dict[tuple[int, str], float | str] = {}
        for size, mode in itertools.product(sizes, modes):
            base, own = found[size, None], found[size, mode]
            drawn[size, mode] = own if isinstance(own, str) else base if isinstance(base, str) else own[at] - base[at]
        numbers = {key: value for key, value in drawn.items() if isinstance(value, float) and math.isfinite(value)}
        least, most = min([0.0, *numbers.values()]), max([0.0, *(value for (_, mode), value in numbers.items() if mode != "rollout")])
        most = most or max([1.0, *numbers.values()])
        axis.set_xlim(1.3 * least, 1.25 * most)
        for number, size in enumerate(sizes):
            places = [k + height * (number - (len(sizes) - 1) / 2) for k in range(len(modes))]
            axis.barh(places, [numbers.get((size, mode), 0.0) for mode in modes], height=0.9 * height, label=f"{size}²")
            for place, mode in zip(places, modes, strict=True):
                value = drawn[size, mode]
                text = (
                    value
                    if isinstance(value, str)
                    else "not measured"
                    if math.isnan(value)
                    else f"{value:.0f}"
                    if at == 0
                    else f"{value:.2f}"
                )
                end = max(0.0, numbers.get((size, mode), 0.0))
                inside = end > 1.1 * most
                axis.text(
                    1.24 * most if inside else end + 0.01 * most, place, text, va="center", ha="right" if inside else "left",
                    size=8, color="white" if inside else "black",
                )  # fmt: skip
        axis.set(yticks=range(len(modes)), yticklabels=[MODES[m].replace("`", "") for m in modes], title=what)
        axis.grid(alpha=0.3, axis="x")
        axis.set_axisbelow(True)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="upper left", ncols=len(sizes))
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help="sides of the images; default: 512 1024")
    parser.add_argument("--steps", type=int, default=5, help="steps of which the median counts")
    parser.add_argument("--minutes", type=float, default=9, help="after which no further mode is begun")
    parser.add_argument("--plot", type=Path, help="where the plot goes; default: docs/gpu.png, for a dry run nowhere")
    parser.add_argument("--dry", action="store_true", help="tiny networks on the CPU; writes nothing")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU; `--dry` runs tiny networks on the CPU")
        return 2
    scale, device = (DRY, torch.device("cpu")) if args.dry else (FLUX, torch.device("cuda", 0))
    sizes, steps = args.sizes or ([64, 96] if args.dry else [512, 1024]), 1 if args.dry else args.steps
    begun = time.monotonic()
    model, blocks = fitting(scale, device)
    vae = decoder(scale, device)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        training = Training(scale, device, model, vae, Path(folder))
        for size in sizes:
            training.at(size)
            for mode in (None, *MODES):
                late = time.monotonic() - begun > 60 * args.minutes
                rows.append({"size": size, "mode": mode, "found": "no time was left" if late else training.measure(mode, steps)})
                print(size, mode or "without the loss", rows[-1]["found"], flush=True)
    name = "a dry run on the CPU" if args.dry else torch.cuda.get_device_name(device)
    whole = blocks == scale.blocks
    about = (
        f"Measured on {name} with torch {torch.__version__}, {facegrad.version}, Python {platform.python_version()}: the median of {steps} "
        f"step(s). The transformer has {blocks[0]} double and {blocks[1]} single blocks"
        + (
            "."
            if whole
            else f" of FLUX.1's {scale.blocks[0]} and {scale.blocks[1]}, because memory was short; the shares are those of this smaller step."
        )
    )
    text = report(rows, about)
    print(text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PLOT.name
        plot(rows, f"What the loss adds to a step of {'tiny networks' if args.dry else 'the size of FLUX.1'} ({name})", path)
        if not args.dry:
            (args.plot or PLOT).write_bytes(path.read_bytes())
            replace("gpu", f"{text}\n\n![milliseconds and memory that the loss adds, by mode]({PLOT.name})", PAGE)
            print(f"written to {PAGE}")
        elif args.plot:
            args.plot.write_bytes(path.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
