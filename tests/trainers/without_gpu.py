"""Lets SimpleTuner's loader, which pins its latents' memory for a GPU, run without one. Run before the script."""

import torch

if not torch.cuda.is_available():
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
