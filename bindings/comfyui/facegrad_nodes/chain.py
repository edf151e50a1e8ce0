"""Nodes over the library's tape: predict x0 → unpack → decode → face loss, and the gradient back to any of them."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

import facegrad
from facegrad.graph import Graph

from . import host, models, references
from .decoder import FaceDecoder
from .draw import overlay
from .layout import frames, pixels
from .loaders import device_input
from .sockets import CATEGORY, DECODER, REFERENCE, TAPE, Reference, TapeNode, detector_input, recogniser_input

FORMATS = ["none", "of the VAE's file", "sd15", "sdxl", "sd3", "flux", "flux2", "qwen_image", "wan21"]
CLAMPS = ["clamp", "straight_through", "soft"]
ALIGN_MODES = ["kps", "bbox"]
ALIGN_TIP = "How a face is brought to the recogniser: by its landmarks (kps, recommended), or by its box."


def coefficients(kind: str, sigma: float) -> tuple[float, float]:
    """a and b of x0 = a·x_t + b·prediction in ComfyUI's parameterisation: epsilon and v see x_t = x0 + sigma·noise, not
    scaled to unit variance (`comfy/model_sampling.py`)."""
    if kind == "sample":
        return 0.0, 1.0
    if kind == "v":
        power = sigma * sigma + 1
        return 1 / power, -sigma / power**0.5
    return 1.0, -sigma


def schema(node_id: str, name: str, description: str, inputs: list[Any], outputs: list[Any]) -> Any:
    """What all nodes of the chain share."""
    aliases = ["arcface loss", "face loss", "gradient", "differentiable"]
    return io.Schema(
        node_id=node_id,
        display_name=name,
        category=CATEGORY + "/chain",
        description=description,
        search_aliases=aliases,
        inputs=inputs,
        outputs=outputs,
    )


class PredictX0(io.ComfyNode):
    """The clean latent that a prediction means."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FacegradPredictX0",
            "Predict x0",
            "Starts a tape with a model's prediction and computes the clean latent x0 = a·x_t + b·prediction. Without x_t the prediction is x0 itself.",
            [
                io.Latent.Input("prediction", tooltip="What the model predicts, in the model's own scaling."),
                io.Combo.Input(
                    "kind",
                    options=["sample", "flow", "epsilon", "v"],
                    default="sample",
                    tooltip="What it is: x0 itself, the velocity noise − x0, the noise, or v.",
                ),
                io.Float.Input(
                    "sigma",
                    default=0.5,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Noise level of x_t: the noise fraction for flow, ComfyUI's sigma for epsilon and v.",
                ),
                device_input(),
                io.Latent.Input("x_t", optional=True, tooltip="The noisy latent; not needed for kind sample."),
            ],
            [
                TAPE.Output("x0", tooltip="The tape, for Unpack Latent."),
                io.Latent.Output("latent", tooltip="The same as a latent, in the model's scaling."),
            ],
        )

    @classmethod
    def execute(cls, prediction: dict[str, Any], kind: str, sigma: float, device: str, x_t: dict[str, Any] | None = None) -> Any:
        if kind != "sample" and x_t is None:
            raise ValueError(f"x_t: kind {kind} needs the noisy latent; connect it, or choose kind sample")
        where = host.device(device)
        graph = Graph(where)
        samples = frames(prediction["samples"]).to(where)
        origin = graph.input(samples, needs_gradient=True)
        noisy = graph.input(frames(x_t["samples"]).to(where)) if kind != "sample" and x_t is not None else None
        pairs = torch.tensor([coefficients(kind, sigma)] * len(samples), dtype=torch.float32)
        node = graph.predict_x0(noisy, origin, pairs, {"kind": "custom"})
        return io.NodeOutput(TapeNode(graph, node, "latent", origin), {"samples": graph.read(node).cpu()})


class UnpackLatent(io.ComfyNode):
    """Model space → VAE space."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FacegradUnpackLatent",
            "Unpack Latent",
            "Undoes the model's packing and scaling: the latent as its VAE takes it.",
            [
                TAPE.Input("x0", tooltip="From Predict x0."),
                DECODER.Input("face_vae", tooltip="From VAE for Face Loss."),
                io.Combo.Input(
                    "latent_format",
                    options=FORMATS,
                    default=FORMATS[0],
                    tooltip="none: the latent is as ComfyUI's VAE takes it, as all LATENT links of ComfyUI are. Else the model whose scaling it is in.",
                ),
                io.Combo.Input(
                    "packing",
                    options=["none", "flux2", "auto"],
                    default="auto",
                    tooltip="auto: as the channels of latent and VAE tell. flux2: 2×2 patches as channels.",
                ),
                io.Model.Input("model", optional=True, tooltip="Takes format and packing from the model instead."),
            ],
            [
                TAPE.Output("vae_latent", tooltip="The tape, for Decode (with gradient)."),
                io.Latent.Output("latent", tooltip="The same as a latent, as the VAE takes it."),
            ],
        )

    @classmethod
    def execute(cls, x0: TapeNode, face_vae: FaceDecoder, latent_format: str, packing: str, model: Any = None) -> Any:
        x0.expect("latent", "x0")
        if model is not None:
            config = face_vae.latents(model.model.latent_format)
        else:
            if packing == "auto":
                packing = face_vae.packing(x0.graph.shape(x0.node)[1])
            config = {"packing": packing} | (face_vae.links(latent_format, packing) if latent_format != FORMATS[1] else {})
        node = x0.graph.unpack(x0.node, face_vae.vae, config)
        return io.NodeOutput(x0.then(node, "vae latent"), {"samples": x0.graph.read(node).cpu()})


class DecodeOnTape(io.ComfyNode):
    """VAE space → images."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FacegradDecodeOnTape",
            "Decode (with gradient)",
            "Decodes with the frozen VAE, on the tape: the gradient can walk back.",
            [
                TAPE.Input("vae_latent", tooltip="From Unpack Latent."),
                DECODER.Input("face_vae", tooltip="From VAE for Face Loss."),
                io.Combo.Input("clamp", options=CLAMPS, default=CLAMPS[0], tooltip="How the image is brought into [0, 1]."),
            ],
            [
                TAPE.Output("images", tooltip="The tape, for Face Loss (with gradient)."),
                io.Image.Output("image", tooltip="The decoded images."),
            ],
        )

    @classmethod
    def execute(cls, vae_latent: TapeNode, face_vae: FaceDecoder, clamp: str) -> Any:
        vae_latent.expect("vae latent", "vae_latent")
        node = vae_latent.graph.decode(vae_latent.node, face_vae.vae, {"clamp": clamp})
        return io.NodeOutput(vae_latent.then(node, "images"), pixels(vae_latent.graph.read(node)))


class FaceLossOnTape(io.ComfyNode):
    """Images → identity loss."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FacegradFaceLossOnTape",
            "Face Loss (with gradient)",
            "Weighted mean of 1 − cos between the faces of the images and a reference.",
            [
                TAPE.Input("images", tooltip="From Decode (with gradient)."),
                REFERENCE.Input("reference", tooltip="The person."),
                detector_input(),
                recogniser_input(),
                io.Float.Input("weight", default=0.1, min=0.0, max=10.0, step=0.01, tooltip="λ, the factor of the loss."),
                io.Combo.Input("align_mode", options=ALIGN_MODES, default=ALIGN_MODES[0], tooltip=ALIGN_TIP),
            ],
            [
                TAPE.Output("loss", tooltip="The tape, for Gradient of Loss."),
                io.Float.Output("value", tooltip="The weighted loss."),
                io.Float.Output("similarity", tooltip="The mean cosine of the images that count."),
                io.Image.Output("overlay", tooltip="The images with the faces that count."),
            ],
        )

    @classmethod
    def execute(cls, images: TapeNode, reference: Reference, detector: Any, recogniser: Any, weight: float, align_mode: str) -> Any:
        graph = images.expect("images", "images").graph
        config = {"face_loss_weight": weight, "face_align_mode": align_mode}
        loss = facegrad.FaceLoss(config, detector=models.detector(detector), recogniser=models.recogniser(recogniser))
        loss.set_reference("person", *references.stacked(reference))
        node, report = graph.face_loss(images.node, loss, reference_ids=["person"] * graph.shape(images.node)[0])
        if not report.counted:
            reasons = ", ".join(sorted({sample.outcome.name.lower() for sample in report.samples}))
            raise ValueError(
                f"images: none counts for the loss: {reasons}. Look at the image that Decode gives; lower the detector's threshold or add a smaller det_size"
            )
        shown = []
        for image, sample in zip(pixels(graph.read(images.node)), report.samples):
            faces = [facegrad.Face(tuple(sample.bbox), sample.score, sample.landmarks)] if sample.bbox else []
            shown.append(overlay(image, faces, [f"{sample.similarity:.3f}"]))
        text = f"similarity {report.similarity:.3f}, loss {report.loss:.4f}"
        return io.NodeOutput(images.then(node, "loss"), report.loss, report.similarity, torch.cat(shown), ui={"text": [text]})


class GradientOfLoss(io.ComfyNode):
    """The walk back."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "FacegradGradientOfLoss",
            "Gradient of Loss",
            "Walks back from the loss: its gradient with respect to the prediction that the tape began with, and where in the picture it acts.",
            [TAPE.Input("loss", tooltip="From Face Loss (with gradient).")],
            [
                io.Latent.Output("gradient", tooltip="With respect to the prediction."),
                io.Image.Output("map", tooltip="Its strength at every place of the latent, the strongest white."),
                io.Float.Output("norm", tooltip="Its length."),
            ],
        )

    @classmethod
    def execute(cls, loss: TapeNode) -> Any:
        graph = loss.expect("loss", "loss").graph
        graph.backward(loss.node)
        gradient = graph.gradient(loss.origin).cpu()
        strength = gradient.norm(dim=1)
        picture = strength / strength.flatten(1).amax(1).clamp_min(1e-30)[:, None, None]
        shown = torch.nn.functional.interpolate(picture[:, None], scale_factor=8, mode="nearest")
        return io.NodeOutput({"samples": gradient}, pixels(shown.expand(-1, 3, -1, -1)), float(gradient.norm()))
