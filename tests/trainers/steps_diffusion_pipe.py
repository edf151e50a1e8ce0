"""Two steps through diffusion-pipe's own ``prepare_inputs``, ``split_batch`` and ``get_loss_fn`` of a family.

    python steps_diffusion_pipe.py REPORT.json CHECKOUT FAMILY VAE [face.json]

Neither ComfyUI nor DeepSpeed is there, and no model: what diffusion-pipe imports of them is a stand-in that nothing here calls, and
the prediction is the target with a trained tensor added. The clean latents are those of drawn portraits by the VAE given. diffusers,
transformers, accelerate, peft and einops are needed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import diffusers
import torch
from probe import on_step, report, watch_face
from torch.optim.optimizer import register_optimizer_step_pre_hook

#: Packages that need a GPU, or more than a pipeline's loss does.
ABSENT = ("comfy", "comfy_api", "comfy_kitchen", "deepspeed", "torchaudio", "torchvision", "bitsandbytes", "datasets", "imageio", "av", "multiprocess",
          "optimum", "toml", "wandb", "loguru", "einops_exts", "sentencepiece")  # fmt: skip


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of absent packages, whose every name is there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in ABSENT else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> object:
        made = MagicMock(name=spec.name)
        made.__path__, made.__spec__, made.__name__ = [], spec, spec.name
        return made

    def exec_module(self, module: object) -> None:
        pass


def text(n: int) -> dict[str, object]:
    """The text's encodings, under all the names that the families here have for them."""
    return {
        "clip_embed": torch.randn(n, 24), "t5_embed": torch.randn(n, 12, 24), "text_embeds_0": list(torch.randn(n, 12, 24)),
        "attention_mask_0": list(torch.ones(n, 12)), "prompt_embeds": list(torch.randn(n, 12, 24)), "caption": ["a person"] * n,
    }  # fmt: skip


#: family → module, class, what its prepare_inputs asks of the pipeline, whether its latents have a frame. Of diffusers' pipeline only
#: functions that need no instance are asked for.
FAMILIES = {
    "flux": ("flux", "FluxPipeline", {"model_config": {"guidance": 1.0}, "is_flex2": False, "diffusers_pipeline": diffusers.FluxPipeline}, False),
    "z_image": ("z_image", "ZImagePipeline", {"model_config": {}}, False),
    "qwen_image": ("qwen_image", "QwenImagePipeline", {"model_config": {}, "transformer": SimpleNamespace(config=SimpleNamespace(in_channels=64)),
                                                       "diffusers_pipeline": diffusers.QwenImagePipeline}, True),
    "sdxl": ("sdxl", "SDXLPipeline", {"v_pred": False, "min_snr_gamma": None, "debiased_estimation_loss": None}, False),
}  # fmt: skip


def main() -> None:
    out, checkout, name, vae_folder = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    sys.meta_path.insert(0, StandIns())
    sys.path.insert(0, checkout)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/demo_assets"))
    import faces
    from diffusers import AutoencoderKL, DDPMScheduler

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if len(sys.argv) > 5:
        watch_face()
        from facegrad.trainers import TrainerFace, diffusion_pipe

        section = json.loads(Path(sys.argv[5]).read_text())["face_loss"] | {"vae": vae_folder}
        diffusion_pipe.install(TrainerFace(section), diffusion_pipe.find({}))
    module_name, class_name, attributes, framed = FAMILIES[name]
    made = getattr(importlib.import_module(f"models.{module_name}"), class_name)
    split_batch = importlib.import_module("utils.dataset").split_batch
    pipeline = made.__new__(made)
    vars(pipeline).update({"config": {}, "diffusers_pipeline": None, **attributes})
    if name == "sdxl":
        pipeline.scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        apart = {
            "vae_scale_factor": 8,
            "tokenizer": None,
            "tokenizer_2": None,
            "text_encoder_2": SimpleNamespace(config=SimpleNamespace(projection_dim=24)),
        }
        vars(pipeline).update(apart)
        pipeline._get_input_ids = lambda captions, _: torch.zeros(len(captions), 12, dtype=torch.long)
        pipeline._get_add_time_ids = lambda *_, **__: torch.zeros(1, 6)
    vae = AutoencoderKL.from_pretrained(vae_folder)
    drawn = torch.stack(
        [torch.from_numpy(faces.portrait(9_500_000 + k, 64, zoom=1.1).image).permute(2, 0, 1).float() / 127.5 - 1 for k in range(4)]
    )
    with torch.no_grad():
        latents = (vae.encode(drawn).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    loss_fn = pipeline.get_loss_fn()
    batch = {"latents": latents.unsqueeze(2) if framed else latents, "mask": None, **text(len(latents))}
    with torch.no_grad():
        _, (target, *_) = pipeline.prepare_inputs(batch)
    wrong = torch.nn.Parameter(0.2 * torch.randn_like(target[:2]))
    optimizer = torch.optim.SGD([wrong], lr=1e-3)
    register_optimizer_step_pre_hook(on_step)
    for step in range(2):
        torch.manual_seed(step)
        features, label = pipeline.prepare_inputs(batch)
        for _, part in split_batch((features, label), 2):
            prediction = part[0] + wrong
            loss_fn((prediction, features[1][:2]) if name == "sdxl" else prediction, part).backward()
        optimizer.step()
        optimizer.zero_grad()
    out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
