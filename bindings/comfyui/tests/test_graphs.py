"""The nodes inside ComfyUI, but for the training: packs, decoders, memory, and ComfyUI's own nodes around them."""

from __future__ import annotations

import pytest
import torch
from graphs import Graph, pictures, run


@pytest.mark.parametrize("name", ["drawn", "far"])
def test_packs_are_found_where_face_nodes_and_extra_paths_keep_them(comfy, name):
    graph = Graph()
    assert comfy.options("FacegradLoadFacePack", "pack") == ["drawn", "far", "drawn (demo)"]
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
    assert comfy.options("FacegradLoadFaceReference", "file") == ["drawn.safetensors"]
    load = comfy.nodes["FacegradLoadFacePack"].execute
    with pytest.raises(FileNotFoundError, match="pack: there is no InsightFace pack 'elsewhere'.*buffalo_l.zip"):
        load(pack="elsewhere", det_sizes="128", device="cpu")
    broken = comfy.folder / "models/insightface/models/half"
    broken.mkdir(exist_ok=True)
    (broken / "something.onnx").write_bytes(b"")
    try:
        with pytest.raises(FileNotFoundError, match="pack: 'half' holds no face detector that is known .something.onnx."):
            load(pack="half", det_sizes="128", device="cpu")
    finally:
        (broken / "something.onnx").unlink()


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
        made = (
            comfy.nodes["FacegradVaeForFaceLoss"].execute(vae=stand_in, recompute="none", slicing=False, dtype="auto", device="cpu").args[0]
        )
        assert torch.allclose(made.vae.decode(latent), tiny.taesd_decoder(latent), atol=1e-4)
        assert made.latents(SD15()) == {"latent_format": "none"}
        assert made.latents(SD15(), in_vae_space=True)["latent_format"]["custom"]["std"] == pytest.approx([0.18215] * 4)
        last = next(p for name, p in tiny.taesd_decoder.named_parameters() if name.startswith("18"))
        before = made.vae.decode(latent)
        last.mul_(1.1)
        assert not torch.allclose(made.vae.decode(latent), before), "the weights are shared"


def decoded_both_ways(comfy, stand_in, channels: int, side: int = 8, device: str = "cpu"):
    """A latent by the chain's nodes and by ComfyUI's own VAE Decode; pixels."""
    latent = {"samples": torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(6))}
    node = lambda name, **given: comfy.nodes[name].execute(**given).args
    (decoder,) = node("FacegradVaeForFaceLoss", vae=stand_in, recompute="none", slicing=False, dtype="f32", device=device)
    start, _ = node("FacegradPredictX0", prediction=latent, kind="sample", sigma=0.5, device=device)
    tape, _ = node("FacegradUnpackLatent", x0=start, face_vae=decoder, latent_format="none", packing="auto")
    _, picture = node("FacegradDecodeOnTape", vae_latent=tape, face_vae=decoder, clamp="clamp")
    return picture, comfy.nodes["VAEDecode"]().decode(stand_in, latent)[0]


def some(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random weights of the same shapes; what is no matrix stays near 1 and 0."""
    noise = torch.Generator().manual_seed(2)
    made = {}
    for name, tensor in weights.items():
        fan = tensor[0].numel() if tensor.ndim > 1 else 0
        made[name] = torch.randn(tensor.shape, generator=noise) * (fan**-0.5 if fan else 0.02)
        if fan == 0 and name.endswith(("weight", "running_var")):
            made[name] += 1
    return made


@pytest.mark.parametrize(("name", "channels"), [("taesd", 4), ("taef1", 16), ("taef2", 128), ("flux2", 128)])
def test_the_chain_decodes_what_comfyuis_own_node_decodes(comfy, name, channels):
    """ComfyUI's VAE scales a latent itself for the TAESD family, and unpacks FLUX.2's; the chain's default does the same."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.sd import VAE
    from comfy.taesd.taesd import TAESD

    if name == "flux2":
        shape = {
            "double_z": True, "z_channels": 32, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1],
            "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0, "batch_norm_latent": True,
        }  # fmt: skip
        weights = some(AutoencoderKL(ddconfig=shape, embed_dim=32).state_dict())
        del weights["bn.num_batches_tracked"]
        stand_in = VAE(sd=weights, config={"params": {"ddconfig": shape, "embed_dim": 32}})
    else:
        weights = {key: tensor for key, tensor in some(TAESD(latent_channels=channels).state_dict()).items() if not key.startswith("vae_")}
        weights |= {
            "taesd": {"vae_scale": torch.tensor(0.18215)},
            "taef1": {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)},
        }.get(name, {})
        stand_in = VAE(sd=weights, metadata={"tae_latent_channels": channels})
    ours, theirs = decoded_both_ways(comfy, stand_in, channels)
    assert ours.shape == theirs.shape and 0.01 < theirs.std()
    assert (ours - theirs).abs().max() < 2e-3, name


def test_face_models_leave_the_memory_when_comfyui_wants_it(comfy):
    import comfy.model_management as memory

    graph = Graph()
    pack = graph.add("FacegradLoadFacePack", pack="drawn", det_sizes="128", device="auto")
    graph.keep("detector", pack)
    graph.keep("recogniser", pack, 1)
    kept = run(comfy, graph)
    detector, recogniser = kept["detector"], kept["recogniser"]
    listed = [entry.model for entry in memory.current_loaded_models]
    assert detector._patcher in listed and recogniser._patcher in listed and detector.loaded
    memory.unload_all_models()
    assert not detector.loaded and not recogniser.loaded and detector._patcher.loaded_size() == 0
    from conftest import portrait

    images = comfy.module("layout").planes(portrait(5_000_000))
    assert len(comfy.module("models").detector(detector).detect(images)[0]) == 1
    assert detector.loaded and detector._patcher in [entry.model for entry in memory.current_loaded_models]


def test_faces_go_into_comfyuis_crop_and_mask_nodes_and_back(comfy):
    graph = Graph()
    pack = graph.add("FacegradLoadFacePack", pack="drawn", det_sizes="128", device="auto")
    image = [graph.add("Portraits", first=0, count=1), 0]
    found = graph.add("FacegradDetectFaces", image=image, detector=[pack, 0])
    picked = graph.add("FacegradPickFace", image=image, faces=[found, 0], margin=0.2)
    crop = graph.add("ImageCropV2", image=[picked, 0], crop_region=[picked, 1])
    again = graph.add("FacegradDetectFaces", image=image, detector=[pack, 0], bboxes=[found, 4], mask=[found, 5])
    inverted = graph.add("InvertMask", mask=[found, 5])
    nobody = graph.add("FacegradDetectFaces", image=image, detector=[pack, 0], mask=[inverted, 0])
    for name, key, at in (("box", picked, 1), ("crop", crop, 0), ("count", again, 2), ("none", nobody, 2), ("mask", found, 5)):
        graph.keep(name, key, at)
    graph.keep("drawn", graph.add("DrawBBoxes", image=image, bboxes=[found, 4]))
    kept = run(comfy, graph)
    box = kept["box"]
    assert kept["crop"].shape[1:3] == (box["height"], box["width"]) and kept["count"] == 1 and kept["none"] == 0
    assert 0 < kept["mask"].mean() < 0.9 and kept["drawn"].shape == (1, 128, 128, 3)


def test_the_objects_of_other_packs_are_read_by_their_files(comfy):
    from types import SimpleNamespace

    from conftest import ASSETS, call, portrait

    from facegrad_nodes import people

    part = lambda name, **more: SimpleNamespace(model_file=str(ASSETS / name), **more)
    analysis = SimpleNamespace(models={"detection": part("detector.onnx", input_size=(128, 128)), "recognition": part("judge.onnx")})
    reference, *_ = call(people.FaceReference, image=portrait(5_000_000), detector=analysis, recogniser=analysis)
    assert "judge.onnx" in reference.recogniser
    with pytest.raises(ValueError, match="use Load Face Pack instead"):
        call(people.FaceReference, image=portrait(5_000_000), detector=SimpleNamespace(models={}), recogniser=analysis)
    accepted = comfy.inputs("FacegradFaceReference")["detector"][0]
    assert {"FACE_DETECTOR", "INSIGHTFACE", "FACEANALYSIS"} <= set(accepted.split(","))


def test_a_folder_is_sorted_by_who_is_on_its_pictures(comfy):
    graph = Graph()
    pack = graph.add("FacegradLoadFacePack", pack="drawn", det_sizes="128", device="auto")
    parts = {"detector": [pack, 0], "recogniser": [pack, 1]}
    person = graph.add("FacegradFaceReference", image=[graph.add("Looks", person=1), 0], **parts)
    images = graph.add("LoadImageDataSetFromFolder", folder=pictures(comfy, 3))
    sort = graph.add(
        "FacegradSortBySimilarity", image=[images, 0], reference=[person, 0], **parts, min_similarity=0.6, best_n=1,
        sort="most similar first", face="most similar", face_index=0, columns=2,
    )  # fmt: skip
    for at, name in enumerate(("images", "similarity", "index", "person", "rejected", "grid")):
        graph.keep(name, sort, at)
    kept = run(comfy, graph)
    from conftest import portrait

    assert torch.allclose(kept["images"], portrait(5_000_001), atol=1 / 255)
    assert kept["similarity"] > 0.6 and kept["index"] in (0, 1, 2) and kept["person"] == 0 and kept["grid"].ndim == 4
    # Nobody is similar enough: the graph goes on, and what hangs on the list does not run.
    graph[sort]["inputs"]["min_similarity"] = 1.0
    assert "images" not in run(comfy, graph)


def test_a_pack_is_downloaded_after_its_licence_was_accepted(comfy, monkeypatch):
    import facegrad.download

    asked = []

    def download(name, root):
        asked.append((name, root))
        from types import SimpleNamespace

        return SimpleNamespace(detector=root / "models" / name / "det.onnx")

    monkeypatch.setattr(facegrad.download, "download_pack", download)
    node = comfy.nodes["FacegradDownloadFacePack"]
    shown = node.execute(pack="buffalo_l", accept_licence=False)
    assert not asked and "research" in shown.ui["text"][0] and "accept_licence" in shown.ui["text"][0]
    assert node.execute(pack="buffalo_l", accept_licence=True).args[0].endswith("models/insightface/models/buffalo_l")
    assert asked[0][0] == "buffalo_l"


def test_linked_folders_are_listed(comfy):
    host, folder = comfy.module("host"), comfy.folder / "models/insightface"
    (comfy.folder / "far").mkdir()
    (comfy.folder / "far/linked.onnx").write_bytes(b"")
    (folder / "link").symlink_to(comfy.folder / "far")
    (folder / "models/linked").symlink_to(comfy.folder / "elsewhere/faces/far")
    (comfy.folder / "far/up").symlink_to(folder)  # a circle
    try:
        assert "link/linked.onnx" in host.files("insightface", (".onnx",))
        assert "linked" in comfy.options("FacegradLoadFacePack", "pack")
        assert "models/linked/det_500m.onnx" in comfy.options("FacegradLoadFaceDetector", "file")
    finally:
        (folder / "link").unlink()
        (folder / "models/linked").unlink()
