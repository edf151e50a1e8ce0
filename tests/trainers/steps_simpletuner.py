"""Two optimiser steps through SimpleTuner's own model classes, with a tiny random transformer: ``prepare_batch``, ``model_predict``,
``loss_with_logs`` and ``auxiliary_loss``, in the order of its trainer.

    python steps_simpletuner.py REPORT.json FAMILY VAE [face.json] [bf16]

The clean latents are those of drawn portraits by the VAE given.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from probe import on_step, report, watch_face
from torch.optim.optimizer import register_optimizer_step_pre_hook

L = 12  # text tokens
#: family → module, class, what its transformer is made of, the text's part of a batch of N
FAMILIES = {
    "flux": ("flux", "Flux", {"in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
                              "joint_attention_dim": 24, "pooled_projection_dim": 24, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True},
             lambda n: {"prompt_embeds": torch.randn(n, L, 24), "add_text_embeds": torch.randn(n, 24)}),
    "z_image": ("z_image", "ZImage", {"in_channels": 16, "dim": 64, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24,
                                      "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64]},
                lambda n: {"prompt_embeds": torch.randn(n, L, 24), "encoder_attention_mask": torch.ones(n, L, dtype=torch.long)}),
    "lumina2": ("lumina2", "Lumina2", {"in_channels": 16, "hidden_size": 32, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2,
                                       "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": (4, 6, 6), "axes_lens": (64, 32, 32), "cap_feat_dim": 24},
                lambda n: {"prompt_embeds": torch.randn(n, L, 24), "encoder_attention_mask": torch.ones(n, L, dtype=torch.long)}),
}  # fmt: skip


#: Options that SimpleTuner's classes read without a default; all off.
OFF = ["pretrained_vae_model_name_or_path", "vae_path", "flow_matching", "flux_fast_schedule", "flux_attention_masked_training"]


def main() -> None:
    out, family, vae_folder = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    bf16 = "bf16" in sys.argv
    dtype = torch.bfloat16 if bf16 else torch.float32
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/demo_assets"))
    import faces
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    folder, name, arguments, text = FAMILIES[family]
    module = importlib.import_module(f"simpletuner.helpers.models.{folder}.model")
    made = getattr(module, name)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if len(sys.argv) > 4 and sys.argv[4].endswith(".json"):
        watch_face()
        from facegrad.trainers import TrainerFace, simpletuner

        simpletuner.install(TrainerFace(json.loads(Path(sys.argv[4]).read_text())["face_loss"]), simpletuner.find({}))
    vae = AutoencoderKL.from_pretrained(vae_folder)
    drawn = torch.stack(
        [torch.from_numpy(faces.portrait(9_500_000 + k, 64, zoom=1.1).image).permute(2, 0, 1).float() / 127.5 - 1 for k in range(4)]
    )
    with torch.no_grad():
        latents = (vae.encode(drawn).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    FlowMatchEulerDiscreteScheduler().save_pretrained(out.parent / "model/scheduler")
    config = SimpleNamespace(
        **dict.fromkeys(OFF),
        model_family=family, model_type="lora", pretrained_model_name_or_path=str(out.parent / "model"), weight_dtype=dtype, base_weight_dtype=dtype, flow_sigmoid_scale=1.0,
        flow_schedule_shift=0.0, flux_guidance_mode="constant", flux_guidance_value=1.0, loss_type="l2", input_perturbation=0.0, noise_offset=0.0,
        prediction_type="flow_matching", seed=1, snr_gamma=0, offset_noise=False, distillation_method=None, tokenizer_max_length=L,
        flow_use_uniform_schedule=False, flow_use_beta_schedule=False, flow_schedule_auto_shift=False, user_prompt_library=None, gradient_checkpointing=False,
    )  # fmt: skip
    model = made(config, Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no"))
    model.vae, model.model = vae, made.MODEL_CLASS(**arguments).to(dtype)
    for parameter_name, parameter in model.model.named_parameters():
        if parameter_name.endswith("pad_token"):  # Z-Image leaves these to its weights' file
            torch.nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-4)
    register_optimizer_step_pre_hook(on_step)
    n = len(latents)
    for step in range(2):
        torch.manual_seed(step)
        batch = {"latent_batch": latents, "prompts": ["a person"] * n, "filepaths": [f"data/{k}.png" for k in range(n)], **text(n)}
        prepared = model.prepare_batch(batch, {"global_step": step})
        prediction = model.model_predict(prepared_batch=prepared)
        loss, _ = model.loss_with_logs(prepared_batch=prepared, model_output=prediction, apply_conditioning_mask=True)
        loss, _ = model.auxiliary_loss(prepared_batch=prepared, model_output=prediction, loss=loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
