"""Two optimiser steps through sd-scripts' own ``process_batch`` of a family, with a tiny random model of its own classes.

    python steps_sd_scripts.py REPORT.json CHECKOUT FAMILY VAE [face.json]

The clean latents are those of drawn portraits by the VAE given, so that real faces are found in them. One of the four samples is
a regularisation picture, another one has differential output preservation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from probe import on_step, report, tell_faces, watch_face
from torch.optim.optimizer import register_optimizer_step_pre_hook

L = 12  # text tokens
#: Families in which sd-scripts has no differential output preservation.
WITHOUT_DOP = ("anima", "hunyuan_image")
#: family → module, trainer, the model, the text's encodings of N samples, further arguments
FAMILIES = {}


def family(name, module, trainer, *arguments):
    def keep(make):
        FAMILIES[name] = (module, trainer, make, list(arguments))
        return make

    return keep


@family("flux", "flux_train_network", "FluxNetworkTrainer", "--model_prediction_type", "raw", "--timestep_sampling", "sigmoid")
def flux(n):
    from library import flux_models

    params = flux_models.FluxParams(64, 24, 24, 32, 2.0, 2, 1, 1, [4, 6, 6], 10000, True, False)
    return flux_models.Flux(params), [torch.randn(n, 24), torch.randn(n, L, 24), torch.zeros(n, L, 3), torch.ones(n, L)]


@family(
    "flux-sigma_scaled",
    "flux_train_network",
    "FluxNetworkTrainer",
    "--model_prediction_type",
    "sigma_scaled",
    "--timestep_sampling",
    "sigmoid",
)
def flux_scaled(n):
    return flux(n)


@family("sd3", "sd3_train_network", "Sd3NetworkTrainer")
def sd3(n):
    from library import sd3_models

    model = sd3_models.MMDiT(input_size=None, pos_embed_max_size=16, in_channels=16, depth=1, adm_in_channels=24, context_embedder_in_features=4096,
                             context_embedder_out_features=64, num_patches=256, patch_size=2)  # fmt: skip
    return model, [torch.randn(n, L, 2048), torch.randn(n, L, 4096), torch.randn(n, 24), *[torch.ones(n, L)] * 3]


@family("lumina", "lumina_train_network", "LuminaNetworkTrainer", "--model_prediction_type", "raw", "--timestep_sampling", "sigmoid")
def lumina(n):
    from library import lumina_models

    model = lumina_models.NextDiT(in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=1, cap_feat_dim=24, axes_dims=[4, 6, 6],
                                  axes_lens=[64, 32, 32], multiple_of=8)  # fmt: skip
    return model, [torch.randn(n, L, 24), torch.ones(n, L, dtype=torch.long), torch.ones(n, L)]


@family("anima", "anima_train_network", "AnimaNetworkTrainer", "--timestep_sampling", "sigmoid")
def anima(n):
    from library import anima_models

    whole = anima_models.LLMAdapter
    anima_models.LLMAdapter = lambda **_: whole(source_dim=24, target_dim=24, model_dim=24, num_layers=1, num_heads=2, self_attn=True)
    model = anima_models.Anima(max_img_h=32, max_img_w=32, max_frames=1, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
                               model_channels=96, num_blocks=1, num_heads=2, crossattn_emb_channels=24, pos_emb_cls="rope3d",
                               use_llm_adapter=True)  # fmt: skip
    return model, [torch.randn(n, L, 24), torch.ones(n, L), torch.ones(n, L, dtype=torch.long), torch.ones(n, L), torch.zeros(n)]


@family("hunyuan_image", "hunyuan_image_train_network", "HunyuanImageNetworkTrainer", "--timestep_sampling", "sigmoid")
def hunyuan_image(n):
    from library import hunyuan_image_models
    from tiny_hunyuan import shrink_transformer

    shrink_transformer(text=24, byt5=24)
    model = hunyuan_image_models.HYImageDiffusionTransformer()
    return model, [torch.randn(n, L, 24), torch.ones(n, L), torch.randn(n, L, 24), torch.ones(n, L), torch.zeros(n)]


def hunyuan_vae():
    from library import hunyuan_image_vae
    from tiny_hunyuan import shrink_vae

    shrink_vae()
    return hunyuan_image_vae.HunyuanVAE2D()


def main() -> None:
    out, checkout, name, vae_folder = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    sys.path.insert(0, checkout)
    import importlib

    from diffusers import AutoencoderKL

    module_name, trainer_name, make, arguments = FAMILIES[name]
    module = importlib.import_module(module_name)
    args = module.setup_parser().parse_args([*arguments, "--mixed_precision", "bf16" if "bf16" in sys.argv else "no"])
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/demo_assets"))
    import faces

    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = getattr(module, trainer_name)()
    own = name == "hunyuan_image"
    if len(sys.argv) > 5 and sys.argv[5].endswith(".json"):
        watch_face()
        from facegrad.trainers import TrainerFace, sd_scripts

        section = json.loads(Path(sys.argv[5]).read_text())["face_loss"]
        if own:
            tell_faces()
        else:
            scale, shift = (1.5305, 0.0609) if name == "sd3" else (2.2085, -0.0028)
            section |= {"vae": vae_folder, "latent_format": {"custom": {"scale": scale, "shift": shift}}}
        sd_scripts.install(TrainerFace(section), sd_scripts.find(vars(module)))
    # HunyuanImage's decoder is the trainer's own, with random weights: it draws no faces.
    vae = hunyuan_vae() if own else AutoencoderKL.from_pretrained(vae_folder)
    size = 128 if own else 64
    drawn = torch.stack(
        [torch.from_numpy(faces.portrait(9_500_000 + k, size, zoom=1.1).image).permute(2, 0, 1).float() / 127.5 - 1 for k in range(4)]
    )
    with torch.no_grad():
        latents = vae.encode(drawn).mean if own else vae.encode(drawn).latent_dist.mean
    if name not in ("sd3", "hunyuan_image"):  # sd-scripts scales these latents itself
        latents = (latents + 0.0028) * 2.2085
    n = len(latents)
    model, text = make(n)
    dtype = torch.bfloat16 if "bf16" in sys.argv else torch.float32
    model.to(dtype)
    for p in model.parameters():  # such models start with zeros at their end
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    if hasattr(trainer, "get_text_encoding_strategy"):
        from library import strategy_base

        strategy_base.TextEncodingStrategy.set_strategy(trainer.get_text_encoding_strategy(args))
    for attribute in ("is_swapping_text_encoder", "is_schnell", "model_type"):
        if not hasattr(trainer, attribute):
            setattr(trainer, attribute, None)
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if dtype == torch.bfloat16 else "no")
    text = [x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x for x in text]
    # "face_regularisation" is what the patched data sets add; the image that DOP belongs to is marked as sd-scripts does.
    batch = {
        "latents": latents, "images": None, "captions": ["a person"] * n, "loss_weights": torch.ones(n), "text_encoder_outputs_list": text,
        "face_regularisation": [False, False, True, False], "custom_attributes": [{}, {}, {}, {"diff_output_preservation": name not in WITHOUT_DOP}],
    }  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    register_optimizer_step_pre_hook(on_step)
    network = SimpleNamespace(set_multiplier=lambda value: None)
    scheduler = trainer.get_noise_scheduler(args, accelerator.device)
    for seed in range(2):
        torch.manual_seed(seed)
        loss = trainer.process_batch(
            {**batch}, [None], model, network, vae, scheduler, torch.float32, dtype, accelerator, args,
            None if name != "anima" else trainer.get_text_encoding_strategy(args), None, is_train=True, train_text_encoder=False, train_unet=True)  # fmt: skip
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
