"""The nodes for ComfyUI's Train LoRA: the loss, and what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy_api.latest import io

import facegrad

from . import host, models
from .chain import ALIGN_MODES, ALIGN_TIP
from .decoder import FaceDecoder
from .draw import curves, from_pil
from .faces import detect
from .layout import frames, planes
from .references import OnePerson, PerImage, TrueLatents
from .sockets import CATEGORY, DECODER, LOG, LOSS_MAP, REFERENCE, Log, Reference, detector_input, recogniser_input
from .trainer import IdentityTraining, References, Rollouts

WEIGHTS = ["constant", "one_minus_t", "one_minus_t_squared", "inverse_t_squared", "min_snr"]
MIN_SNR_GAMMA = 5.0
LANDMARKS = ["detect", "detect_or_reference", "reference"]
DECODES = ["auto", "window", "full"]
#: What the optional inputs are where nothing is connected and a saved graph does not know them.
DEFAULTS = {
    "data_types": "",
    "options": "",
    "decode": DECODES[0],
    "rollout_weight": 0.0,
    "rollout_every_n_steps": 4,
    "sample_every_n_steps": 0,
}


class FaceIdentityLoss(io.ComfyNode):
    """The identity loss for the trainer."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradFaceIdentityLoss",
            display_name="Face Identity Loss",
            category=CATEGORY,
            description="Put it between the model and Train LoRA: the training then also pulls the face of every predicted image to the reference. Connect one reference for all images, or reference images; with neither, every image is its own reference. Sampling with the model is not changed.",
            search_aliases=["arcface", "arcface loss", "identity loss", "face loss", "train lora", "insightface", "likeness"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that Train LoRA trains."),
                DECODER.Input("face_vae", tooltip="From VAE for Face Loss."),
                detector_input(),
                recogniser_input(),
                io.Float.Input("weight", default=0.1, min=0.0, max=10.0, step=0.01, tooltip="λ, the factor of the loss: usually 0.05–0.2."),
                io.Combo.Input("align_mode", options=ALIGN_MODES, default=ALIGN_MODES[0], tooltip=ALIGN_TIP),
                io.Combo.Input(
                    "landmarks",
                    options=LANDMARKS,
                    default=LANDMARKS[0],
                    tooltip="Where the predicted face is looked for. detect: in the predicted image. reference: where it is in its reference image, which must show the training image itself. detect_or_reference: the first, else the second.",
                ),
                io.Float.Input(
                    "t_min", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="The least noise fraction that counts: 0 clean, 1 noise."
                ),
                io.Float.Input(
                    "t_max",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The largest noise fraction that counts: near pure noise there is no face to judge.",
                ),
                io.Combo.Input(
                    "time_weight", options=WEIGHTS, default=WEIGHTS[0], tooltip="How much a step counts by its noise fraction t."
                ),
                io.Int.Input("every_n_steps", default=1, min=1, max=1000, tooltip="Only every n-th step pays for the loss."),
                io.Float.Input(
                    "target_similarity",
                    default=1.0,
                    min=-0.99,
                    max=1.0,
                    step=0.01,
                    tooltip="No push beyond this cosine. Two photographs of one person lie near 0.5 and above.",
                ),
                REFERENCE.Input("reference", optional=True, tooltip="One person for every training image."),
                io.Image.Input(
                    "reference_images",
                    optional=True,
                    tooltip="One for every image of the training set, in its order, or one for all. A batch, or the list that a folder loader gives.",
                ),
                io.String.Input(
                    "data_types",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="One line for every image of the training set; only person and person_head count. Empty: all count.",
                ),
                io.String.Input(
                    "options",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip='Further keys of the loss as JSON, such as {"clamp": "soft"}.',
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="The training set's latents as they are before Resolution Bucket. Needed only where the pictures have several sizes: by them every reference image and data type finds its picture.",
                ),
                io.Combo.Input(
                    "decode",
                    options=DECODES,
                    default=DECODES[0],
                    optional=True,
                    tooltip="window: decodes only what the face's crop shows, which is much faster and smaller for large images. full: the whole image. auto: window, but full for the TAESD family, which is small already.",
                ),
                io.Float.Input(
                    "rollout_weight",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="λ of rollouts: the loss on what the model makes of pure noise. 0: none. They take several predictions more in the steps that have one.",
                ),
                io.Int.Input(
                    "rollout_every_n_steps", default=4, min=1, max=1000, optional=True, tooltip="Only every n-th step has a rollout."
                ),
                io.Int.Input(
                    "sample_every_n_steps",
                    default=0,
                    min=0,
                    max=100_000,
                    optional=True,
                    tooltip="After every n steps the model makes a picture of noise with the first training image's caption, and its similarity is measured. Train LoRA and Face Loss Log show the pictures. 0: none. There is no classifier-free guidance, so a model that needs it makes duller pictures than later.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For Train LoRA."),
                LOG.Output("log", tooltip="For Face Loss Log: what the loss did in the training."),
            ],
        )

    @classmethod
    def execute(cls, **lists: list[Any]) -> Any:
        given = {name: values[0] for name, values in lists.items() if values}
        many = [name for name in ("model", "face_vae", "reference") if len({id(value) for value in lists.get(name) or []}) > 1]
        if many:
            raise ValueError(f"{many[0]}: got a list of {len(lists[many[0]])}; connect one. Several persons go in as reference_images")
        value = {**DEFAULTS, **given}
        decoder: FaceDecoder = value["face_vae"]
        landmarks, decode = value["landmarks"], value["decode"]
        options = parse_options(value["options"])
        config = {
            "face_loss_weight": value["weight"],
            "face_align_mode": value["align_mode"],
            "landmarks": landmarks,
            "t_min": value["t_min"],
            "t_max": value["t_max"],
            "time_weight": {"min_snr": MIN_SNR_GAMMA} if value["time_weight"] == "min_snr" else value["time_weight"],
            "every_n_steps": value["every_n_steps"],
            "target_similarity": value["target_similarity"],
            "decode": ("full" if decoder.tiny else "window") if decode == "auto" else decode,
            **options,
        }
        reference, images = value.get("reference"), lists.get("reference_images") or []
        if reference is not None and landmarks != "detect":
            raise ValueError(
                f"landmarks: {landmarks} needs reference images that show the training images; with one reference for all choose detect"
            )
        log = Log()
        references = whom(decoder, value["detector"], reference, images, landmarks != "detect")
        types = [line.strip() for text in lists.get("data_types") or [] for line in text.strip().splitlines()]
        connected = [row for latent in lists.get("latents") or [] if latent is not None for row in frames(latent["samples"])]
        rollouts = Rollouts(value["rollout_weight"], value["rollout_every_n_steps"])
        training = IdentityTraining(
            config,
            decoder,
            value["detector"],
            value["recogniser"],
            references,
            types,
            connected,
            rollouts,
            value["sample_every_n_steps"],
            log,
        )
        # Wrong keys, a VAE of another model: said here, not in the middle of a training.
        latents = decoder.latents(value["model"].model.latent_format)
        try:
            training.make_loss(latents)
        except (ValueError, facegrad.FacegradError) as error:
            if options and sound(lambda: training.make_loss(latents, without=options)):
                raise ValueError(f"options: {error}") from error
            raise
        return io.NodeOutput(host.add_wrappers(value["model"], training.sampler_sample, training.predict_noise), log)


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


def sound(make: Callable[[], Any]) -> bool:
    """Whether something can be made."""
    try:
        make()
    except (ValueError, facegrad.FacegradError):
        return False
    return True


def whom(
    decoder: FaceDecoder, detector: Any, reference: Reference | None, images: Sequence[torch.Tensor | None], places: bool
) -> References:
    """The references that are connected.

    Args:
        images: of `reference_images`, a list of batches
        places: whether places in a reference image are taken for places in the training image
    """
    batches = [planes(batch) for batch in images if batch is not None]
    if reference is not None and batches:
        raise ValueError("connect reference (one person for all images) or reference_images (one an image), not both")
    if reference is not None:
        return OnePerson(reference)
    if not batches:
        return TrueLatents(decoder)
    finder = models.detector(detector)
    rows = [row for batch in batches for row in batch]
    if not any(any(detect(finder, batch).found) for batch in batches):
        raise ValueError(
            f"reference_images: no face was found in any of the {len(rows)} reference image(s); lower the detector's threshold or add a smaller det_size"
        )
    return PerImage(rows, places)


class FaceLossLog(io.ComfyNode):
    """What the loss did in the last training."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="FacegradFaceLossLog",
            display_name="Face Loss Log",
            category=CATEGORY,
            description="After a training: the losses and the similarity of every step, and why samples did not count. Connect Train LoRA's loss too, so that this runs after it. The node turns orange where no sample counted.",
            search_aliases=["arcface", "loss graph", "similarity curve", "training chart"],
            is_output_node=True,
            inputs=[
                LOG.Input("log", tooltip="From Face Identity Loss."),
                LOSS_MAP.Input("loss_map", tooltip="From Train LoRA: it makes this node wait for the training."),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="The curves."),
                io.Float.Output(
                    "similarity", tooltip="The mean over the last tenth of the steps in which a sample counted; 0 where none counted."
                ),
                io.String.Output("text", tooltip="The same in words."),
                io.Image.Output(
                    "samples",
                    is_output_list=True,
                    tooltip="The pictures of sample_every_n_steps, the first one first. What hangs on this does not run where there are none.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """The log fills while another node runs: never the same."""
        return float("nan")

    @classmethod
    def execute(cls, log: Log, loss_map: Any) -> Any:
        picture, similarity, text = from_pil(curves(log)), log.similarity(), log.summary()
        ui = {"images": host.preview(picture), "text": [text]} | ({"facegrad_warning": [True]} if similarity is None else {})
        return io.NodeOutput(picture, similarity or 0.0, text, host.or_blocked([one.image[None] for one in log.samples]), ui=ui)
