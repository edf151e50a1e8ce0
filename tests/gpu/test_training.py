"""A LoRA that is trained with the face loss and rollouts on the device, against the same training on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from compare import relative
from safetensors.torch import load_file
from world import ROOT

pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")
from accelerate.state import AcceleratorState, GradientState

sys.path.insert(0, str(ROOT / "examples/trainers"))
import train_lora


@pytest.mark.parametrize("model", ["flux", "sdxl"])
def test_a_lora_is_trained_as_on_the_cpu(model: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(name: str, *options: str) -> tuple[torch.Tensor, torch.Tensor]:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        train_lora.main([model, "--steps", "2", "--batch", "2", "--rollout", "2", "--every", "1", "--out", str(tmp_path / name), *options])
        read = [load_file(tmp_path / name / f"{file}.safetensors") for file in ("gradient", "lora")]
        gradient, lora = (torch.cat([one[key].flatten() for key in sorted(one)]) for one in read)
        return gradient, lora

    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(device))
    here = train("here", *(["--cuda"] if device.type == "cuda" else []))
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    there = train("there", "--checkpointing")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert relative(here[0], there[0]) <= 1e-2 and relative(here[1], there[1]) <= 1e-4
