"""Nodes that load the frozen networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfy_api.latest import io

import facegrad
from facegrad import packs

from . import host
from .decoder import FaceDecoder
from .models import from_file
from .sockets import CATEGORY, DECODER, DETECTOR, RECOGNISER

LOADERS = CATEGORY + "/loaders"
NO_PACK = "(no pack found)"
NO_FILE = "(no file found)"
#: The demo's own models, which come with these nodes. They know drawn faces only.
DRAWN = "drawn (demo)"
DRAWN_FOLDER = Path(__file__).resolve().parents[1] / "demo"
ADVICE = (
    "run the node Download Face Pack, or unzip InsightFace's buffalo_l.zip "
    "(https://github.com/deepinsight/insightface/releases/tag/v0.7) to ComfyUI/models/insightface/models/buffalo_l"
)


def device_input() -> Any:
    """The widget of every node that loads a network."""
    return io.Combo.Input(
        "device",
        options=["auto", "cpu", "cuda"],
        default="auto",
        tooltip="auto: where ComfyUI computes. The trainer needs the face models on its own device.",
    )


def sizes_input() -> Any:
    """The widget of every node that loads a detector."""
    return io.String.Input(
        "det_sizes",
        default="640, 320",
        tooltip="Sides of the detection canvases, multiples of 32. What they find is merged. A face that fills the picture is found at small sizes only.",
    )


def sizes(text: str) -> list[int]:
    """Detection sizes from text such as `640, 320`.

    Raises:
        ValueError: not multiples of 32
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and int(word) >= 32 and int(word) % 32 == 0 for word in words):
        raise ValueError(f"det_sizes: expected multiples of 32 such as `640, 320`, got {text!r}")
    return [int(word) for word in words]


@contextmanager
def naming(widget: str) -> Iterator[None]:
    """Puts the widget's name before the library's errors."""
    try:
        yield
    except facegrad.FacegradError as error:
        raise ValueError(f"{widget}: {error}") from error


def pack_folders() -> dict[str, Path]:
    """The packs below every `insightface` folder, as `<pack>` or `models/<pack>`, and the demo's."""
    found: dict[str, Path] = {}
    for root in host.roots("insightface"):
        for parent in (root / "models", root):
            for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
                if folder.is_dir() and folder.name != "models" and any(folder.rglob("*.onnx")):
                    found.setdefault(folder.name, folder)
    return found | {DRAWN: DRAWN_FOLDER}


class LoadFacePack(io.ComfyNode):
    """Detector and recogniser of an InsightFace pack."""

    @classmethod
    def define_schema(cls) -> Any:
        known = [*packs.PACKS]
        names = sorted(pack_folders(), key=lambda name: (name == DRAWN, known.index(name) if name in known else len(known), name))
        return io.Schema(
            node_id="FacegradLoadFacePack",
            display_name="Load Face Pack",
            category=LOADERS,
            description="Loads the face detector and the face recogniser of an InsightFace pack (buffalo_l, antelopev2, …) from models/insightface/models/<pack>, the folder that FaceAnalysis, IPAdapter and InstantID use. Needs neither insightface nor opencv.",
            search_aliases=["arcface", "insightface", "buffalo_l", "antelopev2", "face analysis", "face recognition"],
            inputs=[
                io.Combo.Input("pack", options=names, tooltip=f"The pack. Is yours missing? Then {ADVICE}, and press R."),
                sizes_input(),
                device_input(),
            ],
            outputs=[
                DETECTOR.Output("detector", tooltip="Finds faces."),
                RECOGNISER.Output("recogniser", tooltip="Compares faces (ArcFace)."),
            ],
        )

    @classmethod
    def execute(cls, pack: str, det_sizes: str, device: str) -> Any:
        folder = pack_folders().get(pack)
        if folder is None:
            looked = ", ".join(map(str, host.roots("insightface"))) or "no folder"
            raise FileNotFoundError(f"pack: there is no InsightFace pack {pack!r} below {looked}. To get one, {ADVICE}")
        where, canvases = host.device(device), sizes(det_sizes)
        found, recognises = finding("pack", pack, packs.find_detector, folder), finding("pack", pack, packs.find_recogniser, folder)
        return io.NodeOutput(
            from_file(found, where, lambda: facegrad.Detector(found, device=where, det_sizes=canvases)),
            from_file(recognises, where, lambda: facegrad.Recogniser(recognises, device=where)),
        )


def finding(widget: str, value: str, find: Any, folder: Path) -> Path:
    """What `find` finds in a folder; its error in words that name the widget."""
    try:
        return Path(find(folder))
    except FileNotFoundError as error:
        part = "detector" if find is packs.find_detector else "recogniser"
        held = ", ".join(sorted(path.name for path in folder.rglob("*.onnx")))
        raise FileNotFoundError(
            f"{widget}: {value!r} holds no face {part} that is known ({held}); choose another pack, or load the file with "
            f"Load Face {part.capitalize()}"
        ) from error


class LoadFaceDetector(io.ComfyNode):
    """One detector file."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradLoadFaceDetector",
            display_name="Load Face Detector",
            category=LOADERS,
            description="Loads an SCRFD face detector (det_10g.onnx, det_500m.onnx, scrfd_10g_bnkps.onnx, …) from anywhere below models/insightface.",
            search_aliases=["scrfd", "face detection", "insightface", "retinaface"],
            inputs=[
                io.Combo.Input(
                    "file", options=host.files("insightface", (".onnx",)) or [NO_FILE], tooltip="The ONNX file, below models/insightface."
                ),
                sizes_input(),
                io.Float.Input("threshold", default=0.5, min=0.05, max=0.99, step=0.05, tooltip="The least score of a face."),
                device_input(),
            ],
            outputs=[DETECTOR.Output("detector", tooltip="Finds faces.")],
        )

    @classmethod
    def execute(cls, file: str, det_sizes: str, threshold: float, device: str) -> Any:
        path, where, canvases = host.file("insightface", file), host.device(device), sizes(det_sizes)
        with naming("file"):
            made = from_file(path, where, lambda: facegrad.Detector(path, device=where, det_sizes=canvases, threshold=threshold))
        return io.NodeOutput(made)


class LoadFaceRecogniser(io.ComfyNode):
    """One recogniser file."""

    @classmethod
    def define_schema(cls) -> Any:
        files = host.files("insightface", (".onnx", ".pth", ".pt", ".safetensors"))
        return io.Schema(
            node_id="FacegradLoadFaceRecogniser",
            display_name="Load Face Recogniser",
            category=LOADERS,
            description="Loads a face recogniser (w600k_r50.onnx, glintr100.onnx, arcface_torch .pth or .safetensors, …) from anywhere below models/insightface.",
            search_aliases=["arcface", "face recognition", "face embedding", "glintr100", "w600k_r50"],
            inputs=[
                io.Combo.Input("file", options=files or [NO_FILE], tooltip="The weights, below models/insightface."),
                io.Combo.Input(
                    "dtype", options=["f32", "bf16", "f16"], default="f32", tooltip="Number format of the weights in memory; f32 is exact."
                ),
                device_input(),
            ],
            outputs=[RECOGNISER.Output("recogniser", tooltip="Compares faces (ArcFace).")],
        )

    @classmethod
    def execute(cls, file: str, dtype: str, device: str) -> Any:
        path, where = host.file("insightface", file), host.device(device)
        with naming("file"):
            made = from_file(path, where, lambda: facegrad.Recogniser(path, device=where, dtype=dtype))
        return io.NodeOutput(made)


class VaeForFaceLoss(io.ComfyNode):
    """ComfyUI's VAE as the differentiable decoder."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradVaeForFaceLoss",
            display_name="VAE for Face Loss",
            category=LOADERS,
            description="Makes the differentiable decoder of the loss from ComfyUI's VAE. The weights are shared where they have the wanted number format and device.",
            search_aliases=["differentiable vae", "decoder", "taesd", "arcface loss"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model. The TAESD family is quicker and needs less memory."),
                io.Combo.Input(
                    "recompute",
                    options=["none", "blocks"],
                    default="none",
                    tooltip="blocks: keeps less for the backward pass and computes it again. Takes longer, needs less memory.",
                ),
                io.Boolean.Input("slicing", default=False, tooltip="Decodes one image at a time."),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "f32", "bf16", "f16"],
                    default="auto",
                    tooltip="auto: that of the weights on CUDA, f32 on the CPU. Weights of another number format are copied.",
                ),
                device_input(),
            ],
            outputs=[DECODER.Output("face_vae", tooltip="The decoder, for Face Identity Loss and the chain.")],
        )

    @classmethod
    def execute(cls, vae: Any, recompute: str, slicing: bool, dtype: str, device: str) -> Any:
        return io.NodeOutput(FaceDecoder(vae, host.device(device), dtype, recompute, slicing))


class DownloadFacePack(io.ComfyNode):
    """A pack from where it is published."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradDownloadFacePack",
            display_name="Download Face Pack",
            category=LOADERS,
            description="Downloads a face pack into models/insightface/models/<pack> and checks its sha256. The pack's licence is shown on the node; accept it first. A pack that is there already is left alone.",
            search_aliases=["arcface", "insightface", "buffalo_l", "antelopev2", "download model"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Combo.Input("pack", options=[*packs.PACKS], default="buffalo_l", tooltip="The pack. Run once to see its licence."),
                io.Boolean.Input(
                    "accept_licence",
                    default=False,
                    tooltip="Whether you accept the licence that the node shows. Nothing is downloaded before.",
                ),
            ],
            outputs=[io.String.Output("folder", tooltip="Where the pack is; empty where the licence is not accepted.")],
        )

    @classmethod
    def execute(cls, pack: str, accept_licence: bool) -> Any:
        licence = f"{pack}: {packs.PACKS[pack].licence}"
        if not accept_licence:
            text = f"{licence}\n\nNothing was downloaded. Set accept_licence to accept this licence, and run again."
            return io.NodeOutput("", ui={"text": [text], "facegrad_warning": [True]})
        from facegrad.download import download_pack

        files = download_pack(pack, host.models_folder("insightface"))
        folder = str(files.detector.parent)
        return io.NodeOutput(folder, ui={"text": [f"{licence}\n\nThe pack is in {folder}. Press R, then choose it in Load Face Pack."]})
