"""Check the installation: library, torch, CUDA, ONNX Runtime, models, and one loss with its gradient.

Every line that is not ok says how to fix the problem.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .._library import FacegradError, build_info, library, onnxruntime_folder, part, version
from .._part import compiled_for
from ..loss import FaceLoss
from ..models import Recogniser
from ..packs import DETECTORS, KNOWN_FILES, PACKS, RECOGNISERS, folders, sha256

EPILOG = "exit codes: 0 nothing fails; 1 a line fails; 2 a wrong argument"

OK, NOTE, FAIL = "ok", "note", "FAIL"
Line = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--root", help="the folder that the packs are in (default: ~/.insightface)")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    checks: list[tuple[str, Callable[[], Iterator[Line]]]] = [
        ("library", _library), ("torch", _torch), ("ONNX Runtime", _onnxruntime), ("tools", _tools),
        ("models", lambda: _models(arguments.root)), ("self-test", _self_test),
    ]  # fmt: skip
    failed = False
    for name, check in checks:
        try:
            lines = list(check())
        except (FacegradError, OSError, ImportError) as error:
            lines = [(FAIL, f"{error}")]
        for status, text in lines:
            failed |= status == FAIL
            print(f"{status:4}  {name:12}  {text}")
    return int(failed)


def _library() -> Iterator[Line]:
    info = build_info()
    yield OK, f"{version}, ABI {info['abi']}, {library._name}"
    yield OK, f"{part._name}, compiled for torch {compiled_for(Path(part._name))}"


def _torch() -> Iterator[Line]:
    yield OK, f"{torch.__version__}, {torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count()))
        yield OK, f"CUDA {torch.version.cuda}: {names}"
    elif torch.version.cuda is None:
        yield NOTE, "no CUDA in this torch; for a GPU: https://pytorch.org has the builds for CUDA"
    else:
        yield NOTE, f"torch was built for CUDA {torch.version.cuda}, but finds no GPU; `nvidia-smi` says whether the driver does"


def _onnxruntime() -> Iterator[Line]:
    folder = onnxruntime_folder()
    if folder is None:
        yield NOTE, "not installed: libtorch runs every model, more slowly on a CPU; pip install onnxruntime"
        return
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
        if _installed(name)
    ]
    yield OK, f"{', '.join(versions) or 'a build of unknown name'} in {folder}"
    if len(versions) > 1:
        yield NOTE, "two builds overwrite each other's files: pip uninstall them all, then install one"


def _tools() -> Iterator[Line]:
    missing = [name for name in ("pillow", "requests", "tqdm") if not _installed(name)]
    if missing:
        yield NOTE, f"{', '.join(missing)} missing, for `download` and `inspect`: pip install {' '.join(missing)}"
    else:
        yield OK, "pillow, requests and tqdm for `download` and `inspect`"


def _models(root: str | None) -> Iterator[Line]:
    wanted = set(DETECTORS) | {name for names in RECOGNISERS.values() for name in names}
    files = sorted({file for folder in folders(root) for file in folder.glob("*.onnx") if file.name in wanted})
    for file in files:
        if not file.is_file():
            yield FAIL, f"{file}: expected a file, got a folder, a pipe or a link to nothing; remove it"
            continue
        known = KNOWN_FILES.get(sha256(file))
        if known is None:
            pack = next((pack.name for pack in PACKS.values() if file.name in (pack.detector, pack.recogniser)), None)
            how = f"`python -m facegrad download {pack}` fetches the published one" if pack else "download it again"
            yield (
                FAIL,
                f"{file}: not the published file of that name: damaged, or another model. {how}; give a model of your own another name",
            )
        else:
            name, licence = known
            yield OK, f"{file}: {name}, {licence.split(' (')[0]}"
    names = {file.name for file in files}
    if not names & set(DETECTORS) or not names - set(DETECTORS):
        lacking = "detector" if not names & set(DETECTORS) else "recogniser"
        yield (
            FAIL,
            f"no {lacking} in {folders(root)[0]} or its packs: python -m facegrad download buffalo_l, or name the folder with --root",
        )


def _self_test() -> Iterator[Line]:
    """A loss through a small random recogniser, its gradient against a finite difference."""
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        torch.save(_random_iresnet(generator), path)
        recogniser = Recogniser(path)
    loss = FaceLoss({"face_align_mode": "kps", "face_loss_weight": 1.0}, recogniser=recogniser)
    coarse = torch.rand(2, 3, 14, 14, generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, size=112, mode="bicubic").clamp(0, 1)
    points = torch.tensor([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])[None]

    def value(image: torch.Tensor) -> torch.Tensor:
        return loss(image, pictures[1:], landmarks=points, reference_landmarks=points)[0]

    image = pictures[:1].clone().requires_grad_()
    result = value(image)
    (gradient,) = torch.autograd.grad(result, image)
    along = gradient / gradient.norm()
    step = 0.05
    with torch.no_grad():
        difference = (value(image + step * along) - value(image - step * along)).item() / (2 * step)
    slope = gradient.norm().item()
    text = f"loss {result.item():.6f}; its gradient's slope {slope:.4e}, by a finite difference {difference:.4e}"
    if abs(slope - difference) <= 0.03 * abs(slope):
        yield OK, text
    else:
        yield FAIL, f"{text}; they should agree: install facegrad again, and report this line if it stays"


def _random_iresnet(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights of the smallest IResNet, named as arcface_torch names them."""
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, outputs: int, inputs: int, side: int) -> None:
        spread = (inputs * side * side) ** -0.5
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator) * spread

    def norm(name: str, count: int) -> None:
        state.update({f"{name}.weight": torch.ones(count), f"{name}.bias": torch.zeros(count)})
        state.update({f"{name}.running_mean": torch.zeros(count), f"{name}.running_var": torch.ones(count)})

    widths = [8, 8, 8, 8, 8]
    conv("conv1", widths[0], 3, 3)
    norm("bn1", widths[0])
    state["prelu.weight"] = torch.full((widths[0],), 0.25)
    for stage, (inputs, outputs) in enumerate(zip(widths, widths[1:]), 1):
        block = f"layer{stage}.0"
        norm(f"{block}.bn1", inputs)
        conv(f"{block}.conv1", outputs, inputs, 3)
        norm(f"{block}.bn2", outputs)
        state[f"{block}.prelu.weight"] = torch.full((outputs,), 0.25)
        conv(f"{block}.conv2", outputs, outputs, 3)
        norm(f"{block}.bn3", outputs)
        conv(f"{block}.downsample.0", outputs, inputs, 1)
        norm(f"{block}.downsample.1", outputs)
    norm("bn2", widths[-1])
    state["fc.weight"] = torch.randn(128, widths[-1] * 49, generator=generator) * (widths[-1] * 49) ** -0.5
    state["fc.bias"] = torch.zeros(128)
    norm("features", 128)
    return state


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
