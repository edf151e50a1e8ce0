"""Graphs in the API's form, written and run by the tests inside ComfyUI."""

from __future__ import annotations

from typing import Any

import torch


class Graph(dict):
    """A prompt in the API's form, written node by node."""

    def add(self, node: str, **inputs: Any) -> str:
        key = str(len(self) + 1)
        self[key] = {"class_type": node, "inputs": inputs}
        return key

    def keep(self, name: str, key: str, output: int = 0) -> None:
        self.add("Keep", value=[key, output], name=name)


def models(graph: Graph, threshold: float = 0.5) -> dict[str, list[Any]]:
    """The face models, and the VAE."""
    detector = graph.add("FacegradLoadFaceDetector", file="models/drawn/det_500m.onnx", det_sizes="128", threshold=threshold, device="auto")
    recogniser = graph.add("FacegradLoadFaceRecogniser", file="recogniser.safetensors", dtype="f32", device="auto")
    vae = graph.add("FacegradVaeForFaceLoss", vae=[graph.add("Vae"), 0], recompute="none", slicing=False, dtype="auto", device="auto")
    return {"detector": [detector, 0], "recogniser": [recogniser, 0], "face_vae": [vae, 0]}


def identity(graph: Graph, model: str, faces: dict[str, list[Any]], **more: Any) -> str:
    """The Face Identity Loss node: own images as references, every step counts."""
    settings = {
        "weight": 1.0, "align_mode": "kps", "landmarks": "reference", "t_min": 0.0, "t_max": 1.0, "time_weight": "constant",
        "every_n_steps": 1, "target_similarity": 1.0, "decode": "full",
    } | more  # fmt: skip
    if "reference_images" not in settings and "reference" not in settings:
        settings["reference_images"] = [graph.add("Portraits", first=0, count=2), 0]
    return graph.add("FacegradFaceIdentityLoss", model=[model, 0], **faces, **settings)


def train(comfy, graph: Graph, model: list[Any], latents: list[Any] | None = None, positive: list[Any] | None = None, **more: Any) -> str:
    """The Train LoRA node of whichever version."""
    settings = {
        "batch_size": 2, "grad_accumulation_steps": 1, "steps": 3, "learning_rate": 0.01, "rank": 4, "optimizer": "AdamW", "loss_function": "MSE",
        "seed": 3, "training_dtype": "fp32", "lora_dtype": "fp32", "algorithm": "LoRA", "gradient_checkpointing": False, "existing_lora": "[None]",
        "quantized_backward": False, "checkpoint_depth": 1, "offloading": False, "bucket_mode": False, "bypass_mode": False,
    } | more  # fmt: skip
    settings = {name: value for name, value in settings.items() if name in comfy.inputs("TrainLoraNode")}
    latents = latents or [graph.add("Latents", count=2, seed=5, width=8), 0]
    positive = positive or [graph.add("Conditioning", count=2), 0]
    key = graph.add("TrainLoraNode", model=model, latents=latents, positive=positive, **settings)
    first = 0 if comfy.newer else 1
    for at, name in enumerate(("lora", "loss", "steps")):
        graph.keep(name, key, first + at)
    return key


def run(comfy, graph: Graph):
    torch.manual_seed(11)
    done = comfy.run(graph)
    assert done.failed is None, done.failed["exception_message"] + "".join(done.failed["traceback"])
    return done.kept


def failing(comfy, graph: Graph) -> str:
    """The message of the node that fails; the queue must go on."""
    torch.manual_seed(11)
    done = comfy.run(graph)
    assert done.failed is not None, "the graph did not fail"
    return done.failed["exception_message"]


def pictures(comfy, count: int = 3):
    """A folder of drawn people of several sizes in ComfyUI's input folder; its name."""
    import folder_paths
    from conftest import portrait

    from facegrad_nodes.draw import to_pil

    folder = comfy.folder / f"input/people_{count}"
    folder.mkdir(parents=True, exist_ok=True)
    folder_paths.set_input_directory(str(comfy.folder / "input"))
    for at in range(count):
        to_pil(portrait(5_000_000 + at)[0]).save(folder / f"{at}.png")
    return folder.name
