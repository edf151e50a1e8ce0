"""How many operations of a step launch work on a GPU: those that compute, copy or fill, counted on the CPU by torch's profiler
on the library's own thread. The networks have FLUX.1's decoder's and an IResNet-50's layers and are narrow, which changes no count. A
GPU may run one operation as several kernels, so the counts are not those of kernels.

    PYTHONPATH=bindings/python python benches/launches.py
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

import facegrad

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/fixtures"))
from iresnet import seeded

from step import TEMPLATE

#: Operations that only describe memory, or reserve it.
SILENT = (
    "empty", "as_strided", "resize", "view", "detach", "reshape", "alias", "resolve", "expand", "select", "slice", "permute", "transpose", "squeeze",
    "narrow", "size", "stride", "item", "is_nonzero", "lift", "nnpack", "result_type", "set_", "unbind", "chunk", "split",
)  # fmt: skip


def computes(name: str) -> bool:
    """Whether an operation puts work on a stream, itself or by its parts."""
    return (
        name.startswith("aten::") and not any(word in name for word in SILENT) and name not in ("aten::to", "aten::t", "aten::contiguous")
    )


def launches(step: object) -> Counter[str]:
    """The operations of the library's thread."""
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], experimental_config=everywhere) as profile:
        step()
    events = profile.events()
    busiest = Counter(event.thread for event in events).most_common(1)[0][0]

    def inside(event: object) -> bool:
        return any(computes(part.name) or inside(part) for part in event.cpu_children)

    return Counter(event.name for event in events if event.thread == busiest and computes(event.name) and not inside(event))


def main() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(16, 16, 32, 32), layers_per_block=2,
        latent_channels=16, norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159,
    ).eval().requires_grad_(False)  # fmt: skip
    net = seeded((3, 4, 14, 3), (8, 8, 16, 16))
    with tempfile.TemporaryDirectory() as folder:
        save_file(net.state_dict(), Path(folder) / "net.safetensors")
        recogniser = facegrad.Recogniser(Path(folder) / "net.safetensors")
    x_t, prediction = torch.randn(1, 16, 16, 16), torch.randn(1, 16, 16, 16)
    places = TEMPLATE.float()[None] / 2 + 30
    told = {"landmarks": places, "reference_landmarks": places, "references": torch.rand(1, 3, 128, 128), "sample_ids": ["one"]}
    for name, keys, recompute in (
        ("whole image", {}, "none"), ("whole image, recompute: blocks", {}, "blocks"),
        ("window, exact statistics", {"decode": "window_only", "norm_stats": "exact"}, "none"),
        ("window, cached statistics", {"decode": "window_only", "norm_stats": "cached"}, "none"),
    ):  # fmt: skip
        face = facegrad.FaceIdentityLoss(
            {"face_align_mode": "kps", **keys}, vae=facegrad.Vae(vae, recompute=recompute), detector=False, recogniser=recogniser
        )

        def step(face: facegrad.FaceIdentityLoss = face) -> None:
            value, report = face(prediction=prediction.clone().requires_grad_(), x_t=x_t, t=0.3, **told)
            assert report.counted == 1
            value.backward()

        step()
        found = launches(step)
        print(f"{name}: {found.total()} ({', '.join(n.removeprefix('aten::') + f' {count}' for n, count in found.most_common(6))}, …)")


if __name__ == "__main__":
    main()
