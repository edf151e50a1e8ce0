"""Nodes over the library's tape: predict x0 → unpack → decode → face loss, and the gradient back to any of them."""

from __future__ import annotations

from typing import Any

import torch

import facegrad
from facegrad.graph import Graph

from . import host, references
from .decoder import FaceDecoder
from .draw import overlay
from .layout import frames, pixels
from .loaders import DEVICE
from .sockets import CATEGORY, DECODER, DETECTOR, RECOGNISER, REFERENCE, TAPE, Reference, TapeNode

CHAIN = CATEGORY + "/chain"
FORMATS = ["none", "of the VAE's file", "sd15", "sdxl", "sd3", "flux", "flux2", "qwen_image", "wan21"]


def coefficients(kind: str, sigma: float) -> tuple[float, float]:
    """a and b of x0 = a·x_t + b·prediction in ComfyUI's parameterisation: epsilon and v see x_t = x0 + sigma·noise, not
    scaled to unit variance (`comfy/model_sampling.py`)."""
    if kind == "sample":
        return 0.0, 1.0
    if kind == "v":
        power = sigma * sigma + 1
        return 1 / power, -sigma / power**0.5
    return 1.0, -sigma


class PredictX0:
    """The clean latent that a prediction means."""

    DESCRIPTION = "Starts a tape with a model's prediction and computes the clean latent x0 = a·x_t + b·prediction. Without x_t the prediction is x0 itself."
    CATEGORY = CHAIN
    RETURN_TYPES = (TAPE, "LATENT")
    RETURN_NAMES = ("x0", "latent")
    FUNCTION = "predict"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "prediction": ("LATENT", {"tooltip": "What the model predicts, in the model's own scaling."}),
                "kind": (
                    ["sample", "flow", "epsilon", "v"],
                    {"default": "sample", "tooltip": "What it is: x0 itself, the velocity noise − x0, the noise, or v."},
                ),
                "sigma": (
                    "FLOAT",
                    {
                        "default": 0.5,
                        "min": 0.0,
                        "max": 1000.0,
                        "step": 0.01,
                        "tooltip": "Noise level of x_t: the noise fraction for flow, ComfyUI's sigma for epsilon and v.",
                    },
                ),
                "device": DEVICE,
            },
            "optional": {"x_t": ("LATENT", {"tooltip": "The noisy latent; not needed for kind sample."})},
        }

    def predict(
        self, prediction: dict[str, Any], kind: str, sigma: float, device: str, x_t: dict[str, Any] | None = None
    ) -> tuple[TapeNode, dict[str, Any]]:
        if kind != "sample" and x_t is None:
            raise ValueError(f"x_t: kind {kind} needs the noisy latent; connect it, or choose kind sample")
        where = host.device(device)
        graph = Graph(where)
        samples = frames(prediction["samples"]).to(where)
        origin = graph.input(samples, needs_gradient=True)
        noisy = graph.input(frames(x_t["samples"]).to(where)) if kind != "sample" and x_t is not None else None
        pairs = torch.tensor([coefficients(kind, sigma)] * len(samples), dtype=torch.float32)
        node = graph.predict_x0(noisy, origin, pairs, {"kind": "custom"})
        return TapeNode(graph, node, "latent", origin), {"samples": graph.read(node).cpu()}


class UnpackLatent:
    """Model space → VAE space."""

    DESCRIPTION = "Undoes the model's packing and scaling: the latent as its VAE takes it."
    CATEGORY = CHAIN
    RETURN_TYPES = (TAPE, "LATENT")
    RETURN_NAMES = ("vae_latent", "latent")
    FUNCTION = "unpack"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "x0": (TAPE,),
                "face_vae": (DECODER,),
                "latent_format": (
                    FORMATS,
                    {
                        "default": FORMATS[0],
                        "tooltip": "How the model scales its latents. ComfyUI's LATENT links carry latents as the VAE takes them: none.",
                    },
                ),
                "packing": (["none", "flux2"], {"default": "none", "tooltip": "flux2: 2×2 patches as channels."}),
            },
            "optional": {"model": ("MODEL", {"tooltip": "Takes format and packing from the model instead."})},
        }

    def unpack(
        self, x0: TapeNode, face_vae: FaceDecoder, latent_format: str, packing: str, model: Any = None
    ) -> tuple[TapeNode, dict[str, Any]]:
        x0.expect("latent")
        config: dict[str, Any] = {"packing": packing}
        if model is not None:
            config = face_vae.latents(model.model.latent_format)
        elif latent_format != FORMATS[1]:
            config["latent_format"] = latent_format
        node = x0.graph.unpack(x0.node, face_vae.vae, config)
        return x0.then(node, "vae latent"), {"samples": x0.graph.read(node).cpu()}


class DecodeOnTape:
    """VAE space → images."""

    DESCRIPTION = "Decodes with the frozen VAE, on the tape: the gradient can walk back."
    CATEGORY = CHAIN
    RETURN_TYPES = (TAPE, "IMAGE")
    RETURN_NAMES = ("images", "image")
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        clamp = (["clamp", "straight_through", "soft"], {"default": "clamp", "tooltip": "How the image is brought into [0, 1]."})
        return {"required": {"vae_latent": (TAPE,), "face_vae": (DECODER,), "clamp": clamp}}

    def decode(self, vae_latent: TapeNode, face_vae: FaceDecoder, clamp: str) -> tuple[TapeNode, torch.Tensor]:
        vae_latent.expect("vae latent")
        node = vae_latent.graph.decode(vae_latent.node, face_vae.vae, {"clamp": clamp})
        return vae_latent.then(node, "images"), pixels(vae_latent.graph.read(node))


class FaceLossOnTape:
    """Images → identity loss."""

    DESCRIPTION = "Weighted mean of 1 − cos between the faces of the images and a reference."
    CATEGORY = CHAIN
    RETURN_TYPES = (TAPE, "FLOAT", "FLOAT", "IMAGE")
    RETURN_NAMES = ("loss", "value", "similarity", "overlay")
    FUNCTION = "measure"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": (TAPE,),
                "reference": (REFERENCE,),
                "detector": (DETECTOR,),
                "recogniser": (RECOGNISER,),
                "weight": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 10.0, "step": 0.01}),
                "align_mode": (["kps", "bbox"], {"default": "kps"}),
            }
        }

    def measure(
        self,
        images: TapeNode,
        reference: Reference,
        detector: facegrad.Detector,
        recogniser: facegrad.Recogniser,
        weight: float,
        align_mode: str,
    ) -> tuple[TapeNode, float, float, torch.Tensor]:
        graph = images.expect("images").graph
        config = {"face_loss_weight": weight, "face_align_mode": align_mode}
        loss = facegrad.FaceLoss(config, detector=detector, recogniser=recogniser)
        loss.set_reference("person", *references.stacked(reference))
        node, report = graph.face_loss(images.node, loss, reference_ids=["person"] * graph.shape(images.node)[0])
        if not report.counted:
            reasons = ", ".join(sorted({sample.outcome.name.lower() for sample in report.samples}))
            raise ValueError(
                f"no image counts for the loss: {reasons}. Look at the image that Decode gives; lower the detector's threshold or add a smaller det_size"
            )
        shown = []
        for image, sample in zip(pixels(graph.read(images.node)), report.samples):
            faces = [facegrad.Face(tuple(sample.bbox), sample.score, sample.landmarks)] if sample.bbox else []
            shown.append(overlay(image, faces, [f"{sample.similarity:.3f}"]))
        return images.then(node, "loss"), report.loss, report.similarity, torch.cat(shown)


class GradientOfLoss:
    """The walk back."""

    DESCRIPTION = (
        "Walks back from the loss: its gradient with respect to the prediction that the tape began with, and where in the picture it acts."
    )
    CATEGORY = CHAIN
    RETURN_TYPES = ("LATENT", "IMAGE", "FLOAT")
    RETURN_NAMES = ("gradient", "map", "norm")
    FUNCTION = "walk"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"loss": (TAPE,)}}

    def walk(self, loss: TapeNode) -> tuple[dict[str, Any], torch.Tensor, float]:
        graph = loss.expect("loss").graph
        graph.backward(loss.node)
        gradient = graph.gradient(loss.origin).cpu()
        strength = gradient.norm(dim=1)
        picture = strength / strength.flatten(1).amax(1).clamp_min(1e-30)[:, None, None]
        shown = torch.nn.functional.interpolate(picture[:, None], scale_factor=8, mode="nearest")
        return {"samples": gradient}, pixels(shown.expand(-1, 3, -1, -1)), float(gradient.norm())
