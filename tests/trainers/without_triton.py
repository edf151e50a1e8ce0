"""Lets ai-toolkit's OmniGen2, which is imported with every job and asks triton's GPU at import, load without one. Run before the script."""

import sys

import torch

if not torch.cuda.is_available():
    sys.modules["triton"] = None  # type: ignore[assignment]
