"""The loss inside ComfyUI's own trainer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from compare import relative


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


def plain(comfy, kind: str = "FLOW", **more: Any):
    graph = Graph()
    train(comfy, graph, [graph.add("Model", kind=kind), 0], **more)
    return run(comfy, graph)


def with_identity(comfy, kind: str = "FLOW", settings: dict[str, Any] | None = None, **more: Any):
    graph = Graph()
    node = identity(graph, graph.add("Model", kind=kind), models(graph), **(settings or {}))
    graph.keep("log", node, 1)
    train(comfy, graph, [node, 0], **more)
    return run(comfy, graph)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_graph_without_the_node_trains_as_before_and_one_with_it_does_not(comfy):
    before = plain(comfy)
    touched = with_identity(comfy)
    after = plain(comfy)
    assert same(before["lora"], after["lora"]) and before["loss"] == after["loss"]
    assert not same(before["lora"], touched["lora"])
    log = touched["log"].records
    assert len(log) == 3 and all(math.isfinite(record.similarity) for record in log)
    # The first step sees the same prediction: the trainer's loss and the identity loss add up.
    assert touched["loss"]["loss"][0] == pytest.approx(before["loss"]["loss"][0] + log[0].identity, rel=1e-5)


def watched(comfy, kind: str, weight: float | None, latents: str = "", **more: Any):
    """What the trainer's first predictions were and which gradients reached them; `weight` None: without the node."""
    graph = Graph()
    model = graph.add("Model", kind=kind)
    if weight is not None:
        model = identity(graph, model, models(graph), weight=weight)
    model = graph.add("Watch", model=[model, 0], cancel_after=0)
    lists = {}
    if latents == "two sizes":
        pair = graph.add("LatentList", each=1)
        lists = {"latents": [pair, 0], "positive": [pair, 1]}
    train(comfy, graph, [model, 0], steps=1, **lists, **more)
    return run(comfy, graph)["seen"]


def fused(comfy, seen, kind: str, latent_format: str, detector, recogniser):
    """The fused step for what the trainer's model really predicts, and its gradient with respect to x0."""
    import stand_ins

    import facegrad

    decoder = facegrad.Vae(stand_ins.vae().first_stage_model.state_dict())
    config = {
        "face_align_mode": "kps",
        "landmarks": "reference",
        "face_loss_weight": 1.0,
        "latent_format": latent_format,
        "prediction": {"kind": "custom"},
    }
    loss = facegrad.FaceIdentityLoss(config, vae=decoder, detector=detector, recogniser=recogniser)
    x, x0, sigma = (seen[name].float() for name in ("x", "x0", "sigma"))
    wide = sigma.view(-1, 1, 1, 1)
    # x0 = a·x + b·prediction, as ComfyUI's samplers define it.
    a, b = (torch.ones_like(wide), -wide) if kind != "V_PREDICTION" else (1 / (wide**2 + 1), -wide / (wide**2 + 1).sqrt())
    prediction = ((x0 - a * x) / b).requires_grad_()
    return loss, x, prediction, torch.cat([a.view(-1, 1), b.view(-1, 1)], 1), b


@pytest.mark.parametrize(
    ("kind", "more", "bound"),
    [
        ("FLOW", {}, 1e-4),
        ("EPS", {}, 1e-4),
        ("V_PREDICTION", {}, 1e-4),
        ("FLOW", {"grad_accumulation_steps": 2}, 1e-4),
        ("FLOW", {"gradient_checkpointing": True}, 1e-4),
        ("FLOW", {"training_dtype": "bf16", "lora_dtype": "bf16"}, 0.02),
        ("FLOW", {"offloading": True, "gradient_checkpointing": True}, 1e-4),
        ("FLOW", {"bypass_mode": True}, 1e-4),
    ],
    ids=["flow", "epsilon", "v", "accumulation", "checkpointing", "bf16", "offloading", "bypass"],
)
def test_the_gradient_is_the_fused_steps(comfy, detector, recogniser, kind, more, bound):
    """Beside the trainer's own gradient exactly the fused step's arrives at the first prediction, divided as the trainer divides."""
    without, touched = (watched(comfy, kind, weight, **more)[0] for weight in (None, 1.0))
    assert torch.equal(without["x0"], touched["x0"])
    loss, x, prediction, pairs, b = fused(comfy, touched, kind, "sd15", detector, recogniser)
    from conftest import portrait

    both = torch.cat([portrait(5_000_000), portrait(5_000_001)]).movedim(-1, 1)
    # Which of the two images came first is the trainer's draw: the other order has another gradient.
    errors = []
    for order in ([0, 1], [1, 0]):
        prediction.grad = None
        value, report = loss(prediction=prediction, x_t=x, coefficients=pairs, references=both[order])
        value.backward()
        assert report.counted == 2
        divisor = more.get("grad_accumulation_steps", 1) if comfy.newer else 1
        want = prediction.grad / b / divisor
        got = (touched["gradient"] - without["gradient"]).float()
        errors.append(relative(got, want))
    assert min(errors) < bound < max(errors), errors


@pytest.mark.parametrize("mode", ["multi-resolution", "bucket"])
def test_batches_that_the_trainer_does_not_scale_are_decoded_as_they_are(comfy, detector, recogniser, mode):
    if not comfy.newer:
        pytest.skip("this ComfyUI's trainer has no such mode")
    more = {"latents": "two sizes", "bucket_mode": mode == "bucket", "batch_size": 1}
    without, touched = (watched(comfy, "FLOW", weight, **more)[0] for weight in (None, 1.0))
    loss, x, prediction, pairs, b = fused(comfy, touched, "FLOW", "none", detector, recogniser)
    from conftest import portrait

    which = 0 if touched["x"].shape[-1] == 8 else 1
    value, _ = loss(prediction=prediction, x_t=x, coefficients=pairs, references=portrait(5_000_000 + which).movedim(-1, 1))
    value.backward()
    want, got = prediction.grad / b, touched["gradient"] - without["gradient"]
    assert relative(got, want) < 1e-4


def test_a_lora_trained_with_the_loss_is_more_similar(comfy):
    """The same training with λ = 0 and λ = 3: the log of the first shows what the trainer's own loss does to the similarity."""
    ends = {}
    for weight in (0.0, 3.0):
        log = with_identity(comfy, settings={"weight": weight, "t_max": 0.9}, steps=30, learning_rate=0.01)["log"]
        ends[weight] = [sum(r.similarity for r in part) / len(part) for part in (log.records[:6], log.records[-6:])]
    assert ends[3.0][1] > ends[0.0][1] + 0.1 and ends[3.0][1] > ends[3.0][0] + 0.1, ends


def test_a_cancelled_training_leaves_nothing_behind_and_the_queue_goes_on(comfy):
    before = plain(comfy)
    graph = Graph()
    source = graph.add("Model", kind="FLOW")
    node = identity(graph, source, models(graph))
    graph.keep("patched", node)
    graph.keep("source", source)
    graph.keep("log", node, 1)
    train(comfy, graph, [graph.add("Watch", model=[node, 0], cancel_after=2), 0], steps=50)
    torch.manual_seed(11)
    done = comfy.run(graph)
    assert done.interrupted and done.failed is None and "lora" not in done.kept
    assert len(done.kept["log"].records) == 2, "stopped at the step at which cancel was pressed"
    source, patched = done.kept["source"], done.kept["patched"]
    assert not any(source.wrappers.values()) and not source.model_options["transformer_options"]
    wrapper = patched.wrappers["predict_noise"]["facegrad"][0]
    assert wrapper.__self__._training is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in source.model.modules())
    assert same(plain(comfy)["lora"], before["lora"])


def test_sampling_with_the_model_is_not_changed(comfy):
    results = []
    for patched in (False, True):
        graph = Graph()
        model = graph.add("Model", kind="FLOW")
        if patched:
            model = identity(graph, model, models(graph))
            graph.keep("log", model, 1)
        positive = graph.add("Conditioning", count=1)
        sampler = graph.add(
            "KSampler", model=[model, 0], seed=1, steps=3, cfg=2.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            positive=[positive, 0], negative=[positive, 0], latent_image=[graph.add("Latents", count=1, seed=1, width=8), 0],
        )  # fmt: skip
        graph.keep("latent", sampler)
        kept = run(comfy, graph)
        results.append(kept["latent"]["samples"])
    assert torch.equal(*results) and not kept["log"].records


def test_own_images_as_references_are_decoded_and_a_training_without_faces_says_so(comfy, caplog):
    """The decodes of empty latents have no face: every step is skipped with its reason, and the LoRA is the plain one."""
    graph = Graph()
    settings = {"reference_images": None, "landmarks": "detect"}
    empty = [graph.add("Latents", count=2, seed=0, width=8), 0]
    faces = models(graph, threshold=0.99)
    node = identity(graph, graph.add("Model", kind="FLOW"), faces, **settings)
    del graph[node]["inputs"]["reference_images"]
    key = train(comfy, graph, [node, 0], empty)
    shown = graph.add("FacegradFaceLossLog", log=[node, 1], loss_map=[key, 1 if comfy.newer else 2])
    for at, name in enumerate(("picture", "similarity", "text")):
        graph.keep(name, shown, at)
    kept = run(comfy, graph)
    assert "skipped: 6 × no_reference_face" in kept["text"] and math.isnan(kept["similarity"])
    assert kept["picture"].shape[-1] == 3 and list((comfy.folder / "temp").glob("facegrad_*.png"))
    assert "in 3 steps no sample counted" in caplog.text
    graph = Graph()
    train(comfy, graph, [graph.add("Model", kind="FLOW"), 0], [graph.add("Latents", count=2, seed=0, width=8), 0])
    assert same(kept["lora"], run(comfy, graph)["lora"])


def failing(comfy, graph: Graph) -> str:
    """The message of the node that fails; the queue must go on."""
    torch.manual_seed(11)
    done = comfy.run(graph)
    assert done.failed is not None, "the graph did not fail"
    return done.failed["exception_message"]


def test_bad_input_ends_in_a_message_of_the_node(comfy):
    before = plain(comfy)

    def start() -> tuple[Graph, str, dict[str, Any]]:
        graph = Graph()
        return graph, graph.add("Model", kind="FLOW"), models(graph)

    graph, model, faces = start()
    twice = identity(graph, identity(graph, model, faces), faces)
    train(comfy, graph, [twice, 0])
    assert "already carries a Face Identity Loss" in failing(comfy, graph)

    graph, model, faces = start()
    train(comfy, graph, [identity(graph, model, faces, reference_images=[graph.add("Portraits", first=0, count=3), 0]), 0])
    assert "3 reference images for a training set of 2" in failing(comfy, graph)

    graph, model, faces = start()
    train(comfy, graph, [identity(graph, model, faces, reference_images=[graph.add("Blank", count=2), 0]), 0])
    assert "no face was found in any of the 2 reference" in failing(comfy, graph)

    graph, model, faces = start()
    train(comfy, graph, [identity(graph, model, faces, options='{"clmap": "soft"}'), 0])
    assert "clamp" in failing(comfy, graph)
    assert same(plain(comfy)["lora"], before["lora"])


def test_an_unknown_latent_format_is_refused(comfy, monkeypatch):
    from comfy.latent_formats import SD15

    monkeypatch.setattr(SD15, "process_out", lambda self, x: x.tanh(), raising=False)
    graph = Graph()
    train(comfy, graph, [identity(graph, graph.add("Model", kind="EPS"), models(graph)), 0])
    assert "latent format is not a scale and shift" in failing(comfy, graph)


@pytest.mark.parametrize("name", ["drawn", "far"])
def test_packs_are_found_where_face_nodes_and_extra_paths_keep_them(comfy, name):
    graph = Graph()
    assert comfy.inputs("FacegradLoadFacePack")["pack"][0] == ["drawn", "far"]
    pack = graph.add("FacegradLoadFacePack", pack=name, det_sizes="128", device="auto")
    looks = [graph.add("Looks", person=0), 0]
    parts = {"detector": [pack, 0], "recogniser": [pack, 1]}
    reference = graph.add("FacegradFaceReference", image=looks, **parts)
    graph.add("FacegradSaveFaceReference", reference=[reference, 0], name="drawn")
    similarity = graph.add("FacegradFaceSimilarity", image=looks, reference=[reference, 0], **parts)
    found = graph.add("FacegradDetectFaces", image=looks, detector=[pack, 0])
    graph.keep("crops", graph.add("FacegradAlignedFaceCrops", image=looks, faces=[found, 0], recogniser=[pack, 1]))
    graph.keep("mean", similarity)
    kept = run(comfy, graph)
    assert kept["mean"] > 0.7 and kept["crops"].shape == (3, 112, 112, 3)
    assert (comfy.folder / "output/face_references/drawn.safetensors").is_file()
    assert comfy.inputs("FacegradLoadFaceReference")["file"][0] == ["drawn.safetensors"]
    node = comfy.nodes["FacegradLoadFacePack"]()
    with pytest.raises(FileNotFoundError, match="buffalo_l.zip"):
        node.load("elsewhere", "128", "cpu")


def test_decoders_are_comfyuis_over_the_same_memory(comfy):
    """KL as the VAE's latents, TAESD as the model's; both as ComfyUI's own networks decode them."""
    import stand_ins
    from comfy.latent_formats import SD15
    from comfy.taesd.taesd import TAESD

    graph = Graph()
    decoder = graph.add("FacegradVaeForFaceLoss", vae=[graph.add("Vae"), 0], recompute="blocks", slicing=True, dtype="auto", device="auto")
    graph.keep("decoder", decoder)
    ours, latent = run(comfy, graph)["decoder"], torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        want = stand_ins.vae().first_stage_model.decode(latent) / 2 + 0.5
        assert torch.allclose(ours.vae.decode(latent), want, atol=1e-4)
        assert ours.latents(SD15()) == {"latent_format": {"custom": {"std": pytest.approx([1 / 0.18215] * 4), "mean": [0.0] * 4}}}
        assert ours.latents(SD15(), in_vae_space=True) == {"latent_format": "none"}

        torch.manual_seed(2)
        tiny = TAESD(latent_channels=4)
        for parameter in tiny.taesd_decoder.parameters():  # ComfyUI's layers start empty.
            parameter.copy_(torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.02))
        stand_in = type("Vae", (), {"first_stage_model": tiny})
        made = comfy.nodes["FacegradVaeForFaceLoss"]().make(stand_in, "none", False, "auto", "cpu")[0]
        assert torch.allclose(made.vae.decode(latent), tiny.taesd_decoder(latent), atol=1e-4)
        assert made.latents(SD15()) == {"latent_format": "none"}
        assert made.latents(SD15(), in_vae_space=True)["latent_format"]["custom"]["std"] == pytest.approx([0.18215] * 4)
        last = next(p for name, p in tiny.taesd_decoder.named_parameters() if name.startswith("18"))
        before = made.vae.decode(latent)
        last.mul_(1.1)
        assert not torch.allclose(made.vae.decode(latent), before), "the weights are shared"


@pytest.mark.parametrize("name", ["train_lora_with_identity_loss", "face_similarity", "gradient_chain"])
def test_example_graphs_fit_the_nodes(comfy, name):
    """Every node and input of the examples exists, in both forms, and the examples use every kind of node."""
    import json

    from inside import NODES

    folder = NODES / "example_workflows"
    prompt, page = (json.loads((folder / f"{name}{form}.json").read_text()) for form in ("_api", ""))
    assert sorted(node["class_type"] for node in prompt.values()) == sorted(node["type"] for node in page["nodes"])
    for node in prompt.values():
        if node["class_type"].startswith("Facegrad"):
            inputs = comfy.nodes[node["class_type"]].INPUT_TYPES()
            known = inputs["required"] | inputs.get("optional", {})
            assert inputs["required"].keys() <= node["inputs"].keys() <= known.keys(), node
            for key, value in node["inputs"].items():
                kind = known[key][0]
                if isinstance(value, list):
                    source = prompt[value[0]]["class_type"]
                    if source.startswith("Facegrad"):
                        assert comfy.nodes[source].RETURN_TYPES[value[1]] == kind
                elif isinstance(kind, list) and key not in ("pack", "file"):
                    assert value in kind
