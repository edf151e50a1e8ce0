"""The loss inside ComfyUI's own trainer."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from compare import relative
from graphs import Graph, failing, identity, models, pictures, run, train


def plain(comfy, kind: str = "FLOW", **more: Any):
    graph = Graph()
    train(comfy, graph, [graph.add("Model", kind=kind), 0], **more)
    return run(comfy, graph)


def with_identity(comfy, kind: str = "FLOW", settings: dict[str, Any] | None = None, threshold: float = 0.5, **more: Any):
    graph = Graph()
    node = identity(graph, graph.add("Model", kind=kind), models(graph, threshold), **(settings or {}))
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
    lists, connected = {}, {}
    if latents == "two sizes":
        pair = graph.add("LatentList", each=1)
        lists, connected = {"latents": [pair, 0], "positive": [pair, 1]}, {"latents": [pair, 0]}
    if weight is not None:
        model = identity(graph, model, models(graph), weight=weight, **connected)
    model = graph.add("Watch", model=[model, 0], cancel_after=0)
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
    assert "skipped: 6 × no_reference_face" in kept["text"] and kept["similarity"] == 0
    assert kept["picture"].shape[-1] == 3 and list((comfy.folder / "temp").glob("facegrad_*.png"))
    assert "in 3 steps no sample counted" in caplog.text
    graph = Graph()
    train(comfy, graph, [graph.add("Model", kind="FLOW"), 0], [graph.add("Latents", count=2, seed=0, width=8), 0])
    assert same(kept["lora"], run(comfy, graph)["lora"])


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


def test_a_folder_of_references_is_one_input_and_every_picture_is_trained_towards_its_own(comfy, monkeypatch):
    """Core's loader gives a list. The node runs once, and sees as many references as there are pictures."""
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *where: sorted(listdir(*where)))
    graph = Graph()
    images = graph.add("LoadImageDataSetFromFolder", folder=pictures(comfy, 2))
    node = identity(graph, graph.add("Model", kind="FLOW"), models(graph), reference_images=[images, 0])
    graph.keep("model", node)
    graph.keep("log", node, 1)
    train(comfy, graph, [node, 0])
    kept = run(comfy, graph)
    training = kept["model"].wrappers["sampler_sample"]["facegrad"][0].__self__
    assert training.references.count == 2 and len(kept["log"].records) == 3
    # The same as one batch of the two pictures.
    assert same(kept["lora"], with_identity(comfy)["lora"])


def test_pictures_of_several_sizes_find_their_references_by_content_or_are_refused(comfy):
    """Resolution Bucket puts pictures of one size together: small, large, small becomes small, small, large."""
    assert comfy.newer

    def bucketed(connect: bool, references: int = 3, **more: Any):
        graph = Graph()
        latents = graph.add("Mixed")
        bucket = graph.add("ResolutionBucket", latents=[latents, 0], conditioning=[latents, 1])
        images = {"reference_images": [graph.add("Portraits", first=0, count=references), 0], **more}
        if connect:
            images["latents"] = [latents, 0]
        node = identity(graph, graph.add("Model", kind="FLOW"), models(graph), **images)
        graph.keep("model", node)
        graph.keep("log", node, 1)
        train(comfy, graph, [graph.add("Order", model=[node, 0]), 0], [bucket, 0], [bucket, 1], bucket_mode=True, batch_size=1, steps=6)
        return graph

    kept = run(comfy, bucketed(True, data_types="person\nobject\nperson"))
    # The trainer's second sample is the user's third; the user's second, which is no person, is the trainer's last.
    assert kept["orders"] == [[0, 2, 1]]
    wide = [record.outcomes == ["data_type"] for record in kept["log"].records]
    assert any(wide) and not all(wide)
    assert "connect `latents`" in failing(comfy, bucketed(False))
    graph = bucketed(True)
    loss = next(node for node in graph.values() if node["class_type"] == "FacegradFaceIdentityLoss")
    loss["inputs"]["latents"] = [graph.add("Latents", count=3, seed=77, width=8), 0]
    assert "is none of the 3 latents" in failing(comfy, graph)


def test_one_reference_cannot_tell_where_the_faces_of_many_pictures_are(comfy):
    graph = Graph()
    one = [graph.add("Portraits", first=0, count=1), 0]
    train(
        comfy,
        graph,
        [identity(graph, graph.add("Model", kind="FLOW"), models(graph), reference_images=one, landmarks="detect_or_reference"), 0],
    )
    assert "choose landmarks `detect`" in failing(comfy, graph)


def test_the_lora_is_saved_where_the_log_is_empty(comfy):
    """A log of a loss whose model nobody trains: it says so, and the rest of the graph runs."""
    graph = Graph()
    model = graph.add("Model", kind="FLOW")
    node = identity(graph, model, models(graph))
    key = train(comfy, graph, [model, 0])
    shown = graph.add("FacegradFaceLossLog", log=[node, 1], loss_map=[key, 1 if comfy.newer else 2])
    graph.keep("text", shown, 2)
    graph.keep("similarity", shown, 1)
    graph.add("SaveLoRA", lora=[key, 0], prefix="loras/empty_log")
    kept = run(comfy, graph)
    assert kept["text"].startswith("no step was taken") and kept["similarity"] == 0
    assert list((comfy.folder / "output/loras").glob("empty_log*"))


def painting(comfy, steps: int = 40, **settings: Any):
    """A training of a model that paints person 0, with two other looks of theirs as training set, towards person 1."""
    graph = Graph()
    faces = models(graph)
    vae = graph.add("PictureVae")
    faces["face_vae"] = [graph.add("FacegradVaeForFaceLoss", vae=[vae, 0], recompute="none", slicing=False, dtype="auto", device="auto"), 0]
    someone = graph.add(
        "FacegradFaceReference", image=[graph.add("Looks", person=1), 0], detector=faces["detector"], recogniser=faces["recogniser"]
    )
    settings = {"weight": 0.0, "landmarks": "detect", "rollout_every_n_steps": 1, "reference": [someone, 0]} | settings
    node = identity(graph, graph.add("Painter"), faces, **settings)
    graph.keep("log", node, 1)
    looks = graph.add("PictureLatents", image=[graph.add("Looks", person=0), 0])
    key = train(comfy, graph, [node, 0], [looks, 0], [graph.add("Conditioning", count=3), 0], steps=steps, learning_rate=0.02)
    shown = graph.add("FacegradFaceLossLog", log=[node, 1], loss_map=[key, 1 if comfy.newer else 2])
    for at, name in enumerate(("picture", "similarity", "text", "samples")):
        graph.keep(name, shown, at)
    return run(comfy, graph)


def test_rollouts_change_the_lora_and_are_reported(comfy):
    """What the model makes of noise becomes the other person; with a λ that pushes nothing it does not."""
    idle, pushed = (painting(comfy, rollout_weight=weight) for weight in (1e-9, 1.0))
    before = painting(comfy, rollout_weight=0.0)
    assert "rollout" not in before["text"] and not before["log"].rolled()
    assert not same(pushed["lora"], before["lora"])
    similarity = {}
    for name, kept in (("idle", idle), ("pushed", pushed)):
        rolled = kept["log"].rolled()
        assert [step for step, _ in rolled] == list(range(40)), "every rollout shows a face that counts"
        assert "; 40 rollouts, their similarity lately" in kept["text"]
        assert all(record.rollout["rollout/predictions_with_gradient"] == 1 for record in kept["log"].records)
        similarity[name] = [sum(value for _, value in part) / 4 for part in (rolled[:4], rolled[-4:])]
    assert abs(similarity["idle"][1] - similarity["idle"][0]) < 0.05, similarity
    assert similarity["pushed"][1] > similarity["idle"][1] + 0.1, similarity


@pytest.mark.parametrize("kind", ["FLOW", "EPS", "V_PREDICTION"])
def test_rollouts_are_taken_when_due_whatever_the_model_predicts(comfy, kind):
    """The random model's pictures show no face to a strict detector, and the log says so."""
    settings = {"weight": 0.0, "rollout_weight": 1.0, "rollout_every_n_steps": 2, "landmarks": "detect"}
    touched = with_identity(comfy, kind, settings, threshold=0.99, steps=4)["log"]
    assert [bool(record.rollout) for record in touched.records] == [True, False, True, False]
    figures = touched.records[0].rollout
    assert figures["rollout/predictions_with_gradient"] == 1 and figures["rollout/predictions_without_gradient"] >= 4
    assert not touched.rolled() and "2 rollouts, no face counted in them" in touched.summary()


def test_the_model_makes_pictures_on_the_way_and_trains_as_without(comfy, detector, recogniser):
    plain, sampled = (painting(comfy, steps=6, weight=0.5, sample_every_n_steps=every) for every in (0, 3))
    assert same(plain["lora"], sampled["lora"]) and plain["loss"] == sampled["loss"] and "samples" not in plain
    samples = sampled["log"].samples
    assert [one.step for one in samples] == [3, 6]
    from conftest import call, portrait

    from facegrad_nodes import people, similarity

    assert (samples[0].image - portrait(5_000_000)[0]).abs().mean() < 0.05, "the model paints person 0"
    looks = torch.cat([portrait(5_000_001, look) for look in range(3)])
    wanted, *_ = call(people.FaceReference, image=looks, detector=detector, recogniser=recogniser)
    images = torch.stack([one.image for one in samples])
    _, judged, _ = call(similarity.FaceSimilarity, image=images, reference=wanted, detector=detector, recogniser=recogniser)
    assert [one.similarity for one in samples] == pytest.approx(judged, abs=0.01)
    assert torch.equal(sampled["samples"], samples[-1].image[None]), "the last one of the list"
    assert sampled["picture"].shape[1] > plain["picture"].shape[1], "the log shows them"
    blind = with_identity(comfy, "EPS", {"sample_every_n_steps": 2}, threshold=0.99, steps=2)["log"]
    assert [one.similarity for one in blind.samples] == [None], "the random model's picture has no face"


@pytest.mark.parametrize("mode", ["multi-resolution", "bucket"])
def test_pictures_on_the_way_have_the_first_training_images_size(comfy, mode):
    if not comfy.newer:
        pytest.skip("this ComfyUI's trainer has no such mode")
    graph = Graph()
    pair = graph.add("LatentList", each=1)
    settings = {"landmarks": "detect", "sample_every_n_steps": 1, "latents": [pair, 0]}
    node = identity(graph, graph.add("Model", kind="FLOW"), models(graph), **settings)
    graph.keep("log", node, 1)
    train(comfy, graph, [node, 0], [pair, 0], [pair, 1], bucket_mode=mode == "bucket", batch_size=1, steps=2)
    assert [one.image.shape for one in run(comfy, graph)["log"].samples] == [(64, 64, 3)] * 2


def test_a_model_as_flow_matching_gives_back_its_own_x0(comfy):
    """Whatever a model predicts: x − t·velocity is the x0 that ComfyUI's model gives for the same signal-to-noise ratio."""
    import stand_ins

    from facegrad_nodes.rollouts import ModelAsFlow

    for kind in ("FLOW", "EPS", "V_PREDICTION"):
        sampling = stand_ins.model(kind).model.model_sampling
        x0, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.7])
        seen = {}

        def guider(x, sigma, seen=seen, x0=x0):
            seen.update(x=x, sigma=sigma)
            return x0

        wide = t.view(-1, 1, 1, 1)
        x = (1 - wide) * x0 + wide * noise
        velocity = ModelAsFlow(guider, sampling, {}, 4)(x, t)
        assert torch.allclose(x - wide * velocity, x0, atol=1e-5) and torch.allclose(velocity, noise - x0, atol=1e-4)
        # The model got what ComfyUI's own sampling would have made of the same picture and noise.
        assert torch.allclose(seen["x"], sampling.noise_scaling(seen["sigma"], noise, x0, False), atol=1e-4), kind


def test_the_similarity_is_shown_on_the_node_that_trains(comfy, monkeypatch):
    host, trainer = comfy.module("host"), comfy.module("trainer")
    shown, previews = [], []
    monkeypatch.setattr(trainer, "SHOW_SECONDS", 0.0)
    monkeypatch.setattr(host, "show_text", lambda text, node: shown.append((text, node)))
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", lambda value, total, preview, node_id=None: previews.append(preview))
    graph = Graph()
    faces = models(graph)
    node = identity(graph, graph.add("Model", kind="FLOW"), faces)
    key = train(comfy, graph, [node, 0])
    graph.keep("detector", faces["detector"][0])
    assert not run(comfy, graph)["detector"].loaded, "after a training the face models are not on the card"
    assert len(shown) == 3 and all(who == key and "similarity lately" in text for text, who in shown)
    assert sum(preview is not None for preview in previews) == 3
