"""torch tensors as the borrowed views of the ABI."""

from __future__ import annotations

import ctypes as c

import torch

from . import _abi

_DTYPES = {
    torch.float32: (2, 32),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.float64: (2, 64),
    torch.int64: (0, 64),
    torch.int32: (0, 32),
    torch.uint8: (1, 8),
}


class View:
    """A ``facegrad_tensor`` over a tensor's memory. It keeps both alive."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(f"{name}: expected a dense tensor with data, got {tensor.layout} on {tensor.device}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {tensor.dtype}")
        # torch keeps a lazy negation in a flag, so it is not in the memory yet.
        self.tensor = tensor.detach().resolve_neg()
        code, bits = _DTYPES[tensor.dtype]
        sizes = c.c_int64 * self.tensor.dim()
        self._shape = sizes(*self.tensor.shape)
        self._strides = sizes(*self.tensor.stride())
        cuda = self.tensor.device.type == "cuda"
        self.struct = _abi.Tensor(
            self.tensor.data_ptr() or None, 2 if cuda else 1, (self.tensor.device.index or 0) if cuda else 0,
            self.tensor.dim(), code, bits, 1, self._shape, self._strides, 0,
        )  # fmt: skip
        if self.tensor.device.type not in ("cpu", "cuda"):
            raise TypeError(f"{name}: expected a tensor on cpu or cuda, got {self.tensor.device}")

    @property
    def pointer(self) -> object:
        """A pointer to the struct, for a call of the library."""
        return c.pointer(self.struct)


def optional(name: str, tensor: torch.Tensor | None) -> View | None:
    """A :class:`View` of a tensor; None for None."""
    return None if tensor is None else View(name, tensor)
