"""A decoder of the host, as the library calls it: it returns images, and gradients by the host's own autograd."""

from __future__ import annotations

import ctypes as c
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch

from . import _abi
from ._library import FacegradError
from ._tensor import View
from .host_vae import pictures

_keys = itertools.count(1)
#: Every decoder by its key. The library may forget a ticket after its decoder is deleted.
_decoders: WeakValueDictionary[int, HostDecoder] = WeakValueDictionary()

_DTYPE = {(2, 32): torch.float32, (2, 16): torch.float16, (4, 16): torch.bfloat16, (2, 64): torch.float64}


class HostDecoder:
    """The two functions of ``facegrad_vae_new_from_functions``, made from one function of the host.

    They run on the library's thread, on the caller's CUDA stream, where grad mode, autocast and inference mode have torch's
    defaults. An exception in them ends the library's call. :meth:`reraise` raises it again in the thread of the call.

    Args:
        function: from latents ``[B,C,h,w]`` float32 to images ``[B,3,H,W]`` or ``[B,4,H,W]``, on any device

    Attributes:
        key: the ``user_data`` that the library passes to :data:`DECODE` and :data:`VJP`
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function = function
        #: By ticket: latents and images whose gradient may be asked for.
        self._graphs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._error: BaseException | None = None
        #: What the library reads after a call: it must outlive the call.
        self._view: View | None = None
        self.key = next(_keys)
        _decoders[self.key] = self

    def run(self, latents: torch.Tensor) -> torch.Tensor:
        """The function's images, float32, on the latents' device."""
        return pictures(self.function(latents)).float().to(latents.device)

    def image(self, latents: torch.Tensor, ticket: int) -> torch.Tensor:
        """The images. With a ticket other than 0, what :meth:`gradient` needs is kept."""
        x = latents.clone().requires_grad_(bool(ticket))
        with torch.set_grad_enabled(bool(ticket)):
            y = self.run(x)
        if ticket:
            if not y.requires_grad:
                raise RuntimeError(
                    "vae: the images do not depend on the latents for autograd, so the loss has no gradient; the decoder must not "
                    "run under no_grad or inference_mode, and must not detach"
                )
            self._graphs[ticket] = x, y
        return y.detach().contiguous()

    def gradient(self, ticket: int, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to the latents of a ticket, which cannot be used again."""
        x, y = self._graphs.pop(ticket)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(y, x, gradient)
        return found.contiguous()

    def forget(self, ticket: int) -> None:
        """Drops what is kept for a ticket."""
        self._graphs.pop(ticket, None)

    def answer(self, work: Callable[[], torch.Tensor], out: Any) -> int:
        """Passes the tensor that ``work`` returns to the library. Returns 0, or 1 after an exception."""
        try:
            self._view = View("image", work())
            out[0] = self._view.struct
            return 0
        except BaseException as error:
            self._error = error
            return 1

    @contextmanager
    def reraise(self) -> Iterator[None]:
        """Wraps a call of the library, and raises the function's own exception where it had one."""
        try:
            yield
        except FacegradError as failed:
            error, self._error = self._error, None
            if error is None:
                raise
            raise error from failed


def borrowed(raw: _abi.Tensor) -> torch.Tensor:
    """The library's memory as a tensor, valid until the function returns. It is compact."""
    shape = [raw.shape[axis] for axis in range(raw.ndim)]
    dtype = _DTYPE[raw.dtype_code, raw.dtype_bits]
    count = 1
    for size in shape:
        count *= size
    address = (raw.data or 0) + raw.byte_offset
    if raw.device_type == 2:
        interface = {"shape": tuple(shape), "typestr": "<f4", "data": (address, False), "version": 3, "strides": None}
        holder = type("Borrowed", (), {"__cuda_array_interface__": interface})()
        return torch.as_tensor(holder, device=f"cuda:{raw.device_id}")
    memory = (c.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


def _decode(latents: Any, ticket: int, image: Any, key: int) -> int:
    decoder = _decoders.get(key)
    if decoder is None:
        return 1
    return decoder.answer(lambda: decoder.image(borrowed(latents.contents), ticket), image)


def _vjp(ticket: int, gradient: Any, latents_gradient: Any, key: int) -> int:
    decoder = _decoders.get(key)
    if decoder is None:
        return 1
    if not gradient:
        decoder.forget(ticket)
        return 0
    return decoder.answer(lambda: decoder.gradient(ticket, borrowed(gradient.contents)), latents_gradient)


#: The functions of all decoders, which live as long as the process.
DECODE, VJP = _abi.DecodeFunction(_decode), _abi.VjpFunction(_vjp)
