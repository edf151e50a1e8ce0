"""Nodes that load the frozen networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import facegrad
from facegrad import packs

from . import host
from .decoder import FaceDecoder
from .sockets import CATEGORY, DECODER, DETECTOR, RECOGNISER

NO_PACK = "(no pack found)"
NO_FILE = "(no file found)"
DEVICES = ["auto", "cpu", "cuda"]
DEVICE = (DEVICES, {"default": "auto", "tooltip": "auto: where ComfyUI computes. The trainer needs the face models on its own device."})
ADVICE = "unzip InsightFace's buffalo_l.zip (https://github.com/deepinsight/insightface/releases/tag/v0.7) to ComfyUI/models/insightface/models/buffalo_l"


def sizes(text: str) -> list[int]:
    """Detection sizes from text such as `640, 320`.

    Raises:
        ValueError: not multiples of 32
    """
    words = [word for word in text.replace(",", " ").split()]
    if not words or not all(word.isdecimal() and int(word) >= 32 and int(word) % 32 == 0 for word in words):
        raise ValueError(f"det_sizes: expected multiples of 32 such as `640, 320`, got {text!r}")
    return [int(word) for word in words]


def pack_folders() -> dict[str, Path]:
    """The packs below every `insightface` folder, as `<pack>` or `models/<pack>`."""
    found: dict[str, Path] = {}
    for root in host.roots("insightface"):
        for parent in (root / "models", root):
            for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
                if folder.is_dir() and folder.name != "models" and any(folder.rglob("*.onnx")):
                    found.setdefault(folder.name, folder)
    return found


class LoadFacePack:
    """Detector and recogniser of an InsightFace pack."""

    DESCRIPTION = (
        "Loads the face detector and the face recogniser of an InsightFace pack (buffalo_l, antelopev2, …) from "
        "models/insightface/models/<pack>, the folder that FaceAnalysis, IPAdapter and InstantID use. Needs neither insightface nor opencv."
    )
    CATEGORY = CATEGORY + "/loaders"
    RETURN_TYPES = (DETECTOR, RECOGNISER)
    RETURN_NAMES = ("detector", "recogniser")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        known = list(packs.PACKS)
        names = sorted(pack_folders(), key=lambda name: (known.index(name) if name in known else len(known), name))
        return {
            "required": {
                "pack": (names or [NO_PACK], {"tooltip": f"Nothing here? Then {ADVICE} and refresh (R)."}),
                "det_sizes": (
                    "STRING",
                    {
                        "default": "640, 320",
                        "tooltip": "Sides of the detection canvases, multiples of 32; what they find is merged. A face that fills the picture is found at small sizes only.",
                    },
                ),
                "device": DEVICE,
            }
        }

    def load(self, pack: str, det_sizes: str, device: str) -> tuple[facegrad.Detector, facegrad.Recogniser]:
        folder = pack_folders().get(pack)
        if folder is None:
            looked = ", ".join(map(str, host.roots("insightface"))) or "no folder"
            raise FileNotFoundError(f"no InsightFace pack {pack!r} below {looked}: {ADVICE}")
        where = host.device(device)
        detector = facegrad.Detector(packs.find_detector(folder), device=where, det_sizes=sizes(det_sizes))
        return detector, facegrad.Recogniser(packs.find_recogniser(folder), device=where)


class LoadFaceDetector:
    """One detector file."""

    DESCRIPTION = (
        "Loads an SCRFD face detector (det_10g.onnx, det_500m.onnx, scrfd_10g_bnkps.onnx, …) from anywhere below models/insightface."
    )
    CATEGORY = CATEGORY + "/loaders"
    RETURN_TYPES = (DETECTOR,)
    RETURN_NAMES = ("detector",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "file": (host.files("insightface", (".onnx",)) or [NO_FILE],),
                "det_sizes": (
                    "STRING",
                    {"default": "640, 320", "tooltip": "Sides of the detection canvases, multiples of 32; what they find is merged."},
                ),
                "threshold": ("FLOAT", {"default": 0.5, "min": 0.05, "max": 0.99, "step": 0.05, "tooltip": "Least score of a face."}),
                "device": DEVICE,
            }
        }

    def load(self, file: str, det_sizes: str, threshold: float, device: str) -> tuple[facegrad.Detector]:
        path = host.file("insightface", file)
        return (facegrad.Detector(path, device=host.device(device), det_sizes=sizes(det_sizes), threshold=threshold),)


class LoadFaceRecogniser:
    """One recogniser file."""

    DESCRIPTION = "Loads a face recogniser (w600k_r50.onnx, glintr100.onnx, arcface_torch .pth or .safetensors, …) from anywhere below models/insightface."
    CATEGORY = CATEGORY + "/loaders"
    RETURN_TYPES = (RECOGNISER,)
    RETURN_NAMES = ("recogniser",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "file": (host.files("insightface", (".onnx", ".pth", ".pt", ".safetensors")) or [NO_FILE],),
                "dtype": (["f32", "bf16", "f16"], {"default": "f32"}),
                "device": DEVICE,
            }
        }

    def load(self, file: str, dtype: str, device: str) -> tuple[facegrad.Recogniser]:
        return (facegrad.Recogniser(host.file("insightface", file), device=host.device(device), dtype=dtype),)


class VaeForFaceLoss:
    """ComfyUI's VAE as the differentiable decoder."""

    DESCRIPTION = "Makes the differentiable decoder of the loss from ComfyUI's VAE. The weights are shared, not loaded again."
    CATEGORY = CATEGORY + "/loaders"
    RETURN_TYPES = (DECODER,)
    RETURN_NAMES = ("face_vae",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae": ("VAE", {"tooltip": "The VAE that belongs to the model; the TAESD family is quicker and needs less memory."}),
                "recompute": (
                    ["none", "blocks"],
                    {
                        "default": "none",
                        "tooltip": "blocks: keeps less for the backward pass and computes it again. Takes longer, needs less memory.",
                    },
                ),
                "slicing": ("BOOLEAN", {"default": False, "tooltip": "Decodes one image at a time."}),
                "dtype": (
                    ["auto", "f32", "bf16", "f16"],
                    {
                        "default": "auto",
                        "tooltip": "auto: that of the weights on CUDA, f32 on the CPU. Weights of another dtype are copied.",
                    },
                ),
                "device": DEVICE,
            }
        }

    def make(self, vae: Any, recompute: str, slicing: bool, dtype: str, device: str) -> tuple[FaceDecoder]:
        return (FaceDecoder(vae, host.device(device), dtype, recompute, slicing),)
