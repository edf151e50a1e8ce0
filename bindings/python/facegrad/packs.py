"""InsightFace's model packs: their files, their licences, and where they are on a disk.

InsightFace keeps a pack in ``~/.insightface/models/<pack>/``. The functions here also find a pack in its own folder, in the
nested folder that antelopev2's zip makes, and in ComfyUI's ``models/insightface``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

HOME = "~/.insightface"

RESEARCH = (
    "InsightFace's models are for non-commercial research only (https://github.com/deepinsight/insightface#license); "
    "ask recognition-oss-pack@insightface.ai for other uses"
)
AURAFACE = (
    "AuraFace's recogniser is published under Apache-2.0 (https://huggingface.co/fal/AuraFace-v1); the detector beside "
    "it, scrfd_10g_bnkps.onnx, is InsightFace's file and for non-commercial research only"
)


@dataclass(frozen=True)
class Source:
    """A file to download: a zip of the pack, or one of its files."""

    url: str
    sha256: str


@dataclass(frozen=True)
class Pack:
    """A pack: its detector, its recogniser, and where they come from.

    Attributes:
        hashes: sha256 of detector and recogniser; empty: not known
    """

    name: str
    detector: str
    recogniser: str
    licence: str
    sources: tuple[Source, ...]
    hashes: tuple[str, ...] = ()


def _zip(name: str, sha256: str) -> tuple[Source, ...]:
    return (Source(f"https://github.com/deepinsight/insightface/releases/download/v0.7/{name}.zip", sha256),)


def _auraface(name: str, sha256: str) -> Source:
    revision = "af6d057c9b0ec4071d4c49c80e3539258798b609"
    return Source(f"https://huggingface.co/fal/AuraFace-v1/resolve/{revision}/{name}", sha256)


#: sha256 of the models that facegrad uses. det_10g.onnx and scrfd_10g_bnkps.onnx are one file under two names.
KNOWN_FILES = {
    "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91": ("det_10g.onnx", RESEARCH),
    "041f73f47371333d1d17a6fee6c8ab4e6aecabefe398ff32cca4e2d5eaee0af9": ("det_2.5g.onnx", RESEARCH),
    "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a": ("det_500m.onnx", RESEARCH),
    "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43": ("w600k_r50.onnx", RESEARCH),
    "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f": ("w600k_mbf.onnx", RESEARCH),
    "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf": ("antelopev2's glintr100.onnx", RESEARCH),
    "a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60": ("AuraFace's glintr100.onnx", "Apache-2.0"),
}

_HASHES = {name.split()[-1]: sha for sha, (name, _) in reversed(KNOWN_FILES.items())}
_HASHES["scrfd_10g_bnkps.onnx"] = _HASHES["det_10g.onnx"]

PACKS = {
    pack.name: replace(pack, hashes=pack.hashes or (_HASHES[pack.detector], _HASHES[pack.recogniser]))
    for pack in (
        Pack("buffalo_l", "det_10g.onnx", "w600k_r50.onnx", RESEARCH, _zip("buffalo_l", "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f")),
        Pack("antelopev2", "scrfd_10g_bnkps.onnx", "glintr100.onnx", RESEARCH, _zip("antelopev2", "8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5")),
        Pack("buffalo_m", "det_2.5g.onnx", "w600k_r50.onnx", RESEARCH, _zip("buffalo_m", "d98264bd8f2dc75cbc2ddce2a14e636e02bb857b3051c234b737bf3b614edca9")),
        Pack("buffalo_s", "det_500m.onnx", "w600k_mbf.onnx", RESEARCH, _zip("buffalo_s", "d85a87f503f691807cd8bb97128bdf7a0660326cd9cd02657127fa978bab8b5e")),
        Pack("buffalo_sc", "det_500m.onnx", "w600k_mbf.onnx", RESEARCH, _zip("buffalo_sc", "57d31b56b6ffa911c8a73cfc1707c73cab76efe7f13b675a05223bf42de47c72")),
        Pack("auraface", "scrfd_10g_bnkps.onnx", "glintr100.onnx", AURAFACE, (
            _auraface("scrfd_10g_bnkps.onnx", "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"),
            _auraface("glintr100.onnx", "a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60"),
        ), (
            "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
            "a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60",
        )),
    )
}  # fmt: skip

DETECTORS = ("det_10g.onnx", "scrfd_10g_bnkps.onnx", "det_2.5g.onnx", "scrfd_2.5g_bnkps.onnx", "det_500m.onnx", "scrfd_500m_bnkps.onnx")
RECOGNISERS = {"r50": ("w600k_r50.onnx",), "r100": ("glintr100.onnx",), None: ("w600k_r50.onnx", "glintr100.onnx", "w600k_mbf.onnx")}


def bases(root: str | os.PathLike[str] | None) -> list[Path]:
    """The folders that may hold packs, where ``root`` is InsightFace's folder, ComfyUI's, or the user's own."""
    base = Path(os.fsdecode(root) if root is not None else HOME).expanduser()
    return [base, base / "models", base / "models" / "insightface" / "models"]


def pack_folders(name: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders that may hold one pack, best first."""
    packs = [base / name for base in bases(root)]
    # Without doubles: a name that is a whole path is one place.
    return list(dict.fromkeys([*packs, *(pack / name for pack in packs), bases(root)[0]]))


@dataclass(frozen=True)
class Files:
    """A pack on the disk."""

    detector: Path
    recogniser: Path


def find_pack(name: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Files:
    """The files of a pack. In InsightFace's packs the names tell them, in any other folder the models' inputs and outputs.

    Raises:
        FileNotFoundError: no such pack; the text lists the places searched, the files of the pack, and how to get them
        TypeError: the name is no text
        ValueError: a folder of that name has no detector or no recogniser
    """
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise TypeError(f"model_name: expected a pack's name, such as buffalo_l, or its folder, got {name!r}")
    searched = pack_folders(name, root)
    if name not in PACKS:
        return _own_pack(name, searched[:-1])
    pack = PACKS[name]
    for folder in searched:
        files = Files(folder / pack.detector, folder / pack.recogniser)
        if files.detector.is_file() and files.recogniser.is_file():
            return files
    raise FileNotFoundError(
        f"the pack {name} was not found. It must hold {pack.detector} and {pack.recogniser} in one of{_places(searched)}\n"
        f"Get it with `python -m facegrad download {name}`, or give `root`, the folder that it is in"
    )


def damaged(name: str, files: Files) -> list[Path]:
    """The files of a pack that are not the published ones: they are cut off, damaged, or other files of that name."""
    known = zip((files.detector, files.recogniser), PACKS[name].hashes)
    return [file for file, digest in known if sha256(file) != digest]


def _own_pack(name: str | os.PathLike[str], searched: list[Path]) -> Files:
    """The first detector and the first recogniser among the models of a folder in the order of their names, as InsightFace
    chooses them."""
    folder = next((folder for folder in searched if any(folder.glob("*.onnx"))), None)
    if folder is None:
        raise FileNotFoundError(
            f"the pack {name} was not found: expected one of {', '.join(PACKS)}, or a folder with a detector's and a "
            f"recogniser's ONNX model at one of{_places(searched)}"
        )
    models = sorted(folder.glob("*.onnx"))
    tasks = {model: onnx_task(model) for model in models}
    found = {task: next((model for model in models if tasks[model] == task), None) for task in ("detector", "recogniser")}
    detector, recogniser = found["detector"], found["recogniser"]
    if detector is None or recogniser is None:
        missing = " and no ".join(task for task, model in found.items() if model is None)
        listed = ", ".join(f"{model.name} ({tasks[model]})" for model in models)
        raise ValueError(f"{folder}: no {missing} among its models: {listed}")
    return Files(detector, recogniser)


def onnx_task(path: Path) -> str:
    """``detector``, ``recogniser`` or ``other``, by the rules of InsightFace's ``model_zoo.get_model``: a detector has five or
    more outputs; a recogniser's input is a square whose side is a multiple of 16, at least 112 and not 192."""
    if path.name in DETECTORS:
        return "detector"
    if any(path.name in names for names in RECOGNISERS.values()):
        return "recogniser"
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f"telling what {path} is needs ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"{path}: ONNX Runtime cannot read it: {error}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(outputs) >= 5:
        return "detector"
    shape = inputs[0].shape
    if len(inputs) == 1 and len(outputs) == 1 and len(shape) == 4:
        height, width = shape[2:]
        if isinstance(height, int) and height == width and height >= 112 and height % 16 == 0 and height != 192:
            return "recogniser"
    return "other"


def _places(folders: list[Path]) -> str:
    return "".join(f"\n  {folder}" for folder in folders)


def sha256(path: Path) -> str:
    """The sha256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def folders(root: str | os.PathLike[str] | None) -> list[Path]:
    """All folders that may hold a pack's files."""
    every = [folder for name in PACKS for folder in pack_folders(name, root)]
    return list(dict.fromkeys([*bases(root), *every]))


#: What else helps where no pack has the recogniser.
_RECOGNISER = "give its file: `pretrained_path` of DifferentiableFaceLoss, `arcface_weights` in a configuration"


def _find(root: str | os.PathLike[str] | None, names: tuple[str, ...], what: str, remedy: str) -> Path:
    for folder in folders(root):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    base = bases(root)[0]
    raise FileNotFoundError(
        f"no {what} ({', '.join(names)}) in {base}, {base}/models or a pack below them; get InsightFace's buffalo_l.zip "
        f"with `python -m facegrad download buffalo_l`, or {remedy}"
    )


def find_detector(root: str | os.PathLike[str] | None = None) -> Path:
    """The detector of the first pack that has one."""
    return _find(root, DETECTORS, "face detector", "give `detector`")


def find_recogniser(root: str | os.PathLike[str] | None = None, model_name: str | None = None) -> Path:
    """The recogniser of a pack: ``w600k_r50.onnx`` for r50, ``glintr100.onnx`` for r100."""
    names = RECOGNISERS.get(model_name)
    if names is None:
        raise FileNotFoundError(f"no pack holds a recogniser {model_name!r}; {_RECOGNISER}")
    return _find(root, names, "recogniser", _RECOGNISER)
