"""The nodes for ComfyUI's Train LoRA: the loss, and what it did."""

from __future__ import annotations

import json
from typing import Any

import torch

import facegrad

from . import host
from .decoder import FaceDecoder
from .draw import curves, from_pil
from .faces import detect, on_device
from .layout import planes
from .references import OnePerson, PerImage, TrueLatents
from .sockets import CATEGORY, DECODER, DETECTOR, LOG, RECOGNISER, REFERENCE, Log, Reference
from .trainer import IdentityTraining, References

WEIGHTS = ["constant", "one_minus_t", "one_minus_t_squared", "inverse_t_squared", "min_snr"]
MIN_SNR_GAMMA = 5.0


class FaceIdentityLoss:
    """The identity loss for the trainer."""

    DESCRIPTION = (
        "Put it between the model and Train LoRA: the training then also pulls the face of every predicted image to the reference. "
        "Connect one reference for all images, or reference images; with neither, every image is its own reference. "
        "Sampling with the model is not changed."
    )
    CATEGORY = CATEGORY
    RETURN_TYPES = ("MODEL", LOG)
    RETURN_NAMES = ("model", "log")
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        level = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL",),
                "face_vae": (DECODER, {"tooltip": "From VAE for Face Loss."}),
                "detector": (DETECTOR,),
                "recogniser": (RECOGNISER,),
                "weight": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 10.0, "step": 0.01, "tooltip": "λ: usually 0.05–0.2."}),
                "align_mode": (
                    ["kps", "bbox"],
                    {
                        "default": "kps",
                        "tooltip": "How a face is brought to the recogniser: by its landmarks (recommended), or by its box.",
                    },
                ),
                "landmarks": (
                    ["detect", "detect_or_reference", "reference"],
                    {
                        "default": "detect",
                        "tooltip": "Where the predicted face is looked for. reference: where it is in its reference image; right only if that shows the training image itself.",
                    },
                ),
                "t_min": ("FLOAT", {"default": 0.0, **level, "tooltip": "Least noise fraction that counts: 0 clean, 1 noise."}),
                "t_max": (
                    "FLOAT",
                    {"default": 0.6, **level, "tooltip": "Largest noise fraction that counts: near pure noise there is no face to judge."},
                ),
                "time_weight": (WEIGHTS, {"default": "constant", "tooltip": "How much a step counts by its noise fraction t."}),
                "every_n_steps": ("INT", {"default": 1, "min": 1, "max": 1000, "tooltip": "Only every n-th step pays for the loss."}),
                "target_similarity": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -0.99,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "No push beyond this cosine. Two photographs of one person lie near 0.5 and above.",
                    },
                ),
            },
            "optional": {
                "reference": (REFERENCE, {"tooltip": "One person for every training image."}),
                "reference_images": ("IMAGE", {"tooltip": "One an image of the training set, in its order, or one for all."}),
                "data_types": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "One line an image of the training set; only person and person_head count. Empty: all count.",
                    },
                ),
                "options": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": 'Further keys of the loss as JSON, such as {"clamp": "soft"}.'},
                ),
            },
        }

    def apply(
        self,
        model: Any,
        face_vae: FaceDecoder,
        detector: facegrad.Detector,
        recogniser: facegrad.Recogniser,
        weight: float,
        align_mode: str,
        landmarks: str,
        t_min: float,
        t_max: float,
        time_weight: str,
        every_n_steps: int,
        target_similarity: float,
        reference: Reference | None = None,
        reference_images: torch.Tensor | None = None,
        data_types: str = "",
        options: str = "",
    ) -> tuple[Any, Log]:
        config = {
            "face_loss_weight": weight,
            "face_align_mode": align_mode,
            "landmarks": landmarks,
            "t_min": t_min,
            "t_max": t_max,
            "time_weight": {"min_snr": MIN_SNR_GAMMA} if time_weight == "min_snr" else time_weight,
            "every_n_steps": every_n_steps,
            "target_similarity": target_similarity,
            **parse_options(options),
        }
        if reference is not None and landmarks != "detect":
            raise ValueError(
                f"landmarks {landmarks} needs reference images that show the training images; with one reference for all choose detect"
            )
        log = Log()
        references = whom(face_vae, detector, reference, reference_images)
        types = [line.strip() for line in data_types.strip().splitlines()]
        training = IdentityTraining(config, face_vae, detector, recogniser, references, types, log)
        # Wrong keys, a VAE of another model: said here, not in the middle of a training.
        training.make_loss(face_vae.latents(model.model.latent_format))
        return host.add_wrappers(model, training.sampler_sample, training.predict_noise), log


def parse_options(text: str) -> dict[str, Any]:
    """Further keys of the loss's configuration from a JSON text.

    Raises:
        ValueError: not a JSON object
    """
    if not text.strip():
        return {}
    try:
        keys = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'options: expected a JSON object such as {{"clamp": "soft"}}, got text that breaks at {error}') from error
    if not isinstance(keys, dict):
        raise ValueError(f"options: expected a JSON object, got {type(keys).__name__}")
    return keys


def whom(decoder: FaceDecoder, detector: facegrad.Detector, reference: Reference | None, images: torch.Tensor | None) -> References:
    """The references that are connected."""
    if reference is not None and images is not None:
        raise ValueError("connect reference (one person for all images) or reference_images (one an image), not both")
    if reference is not None:
        return OnePerson(reference)
    if images is None:
        return TrueLatents(decoder)
    rows = planes(images)
    if not any(detect(detector, on_device(rows, detector)).found):
        raise ValueError(
            f"no face was found in any of the {len(rows)} reference image(s); lower the detector's threshold or add a smaller det_size"
        )
    return PerImage(rows)


class FaceLossLog:
    """What the loss did in the last training."""

    DESCRIPTION = "After a training: the losses and the similarity of every step, and why samples did not count. Connect Train LoRA's loss too, so that this runs after it."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("picture", "similarity", "text")
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "log": (LOG,),
                "loss_map": ("LOSS_MAP", {"tooltip": "Of the Train LoRA node: it makes this node wait for the training."}),
            }
        }

    def show(self, log: Log, loss_map: Any) -> dict[str, Any]:
        if not log.records:
            raise ValueError("the log is empty: no training ran with this Face Identity Loss; connect its model to Train LoRA")
        picture = from_pil(curves(log))
        last = [record.similarity for record in log.records[-max(1, len(log.records) // 10) :] if record.similarity == record.similarity]
        similarity = sum(last) / len(last) if last else float("nan")
        skipped = ", ".join(f"{count} × {reason}" for reason, count in log.skipped().items()) or "none"
        text = f"{len(log.records)} steps; {log.counted()} samples counted; skipped: {skipped}; similarity over the last tenth: {similarity:.3f}"
        return {"ui": {"images": host.preview(picture), "text": [text]}, "result": (picture, similarity, text)}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """The log fills while another node runs: never the same."""
        return float("nan")
