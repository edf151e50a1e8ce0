"""The method's recogniser as a torch module: arcface_torch's IResNet, frozen, computed by the library."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from ._library import FacegradError
from .device import moved
from .graph import Graph
from .method import LEVELS
from .models import Recogniser


class IResNet(torch.nn.Module):
    """A frozen recogniser as a torch module, from normalised crops to embeddings. The gradient flows to the crops. The library
    holds the weights, so ``parameters()`` is empty, and ``to(dtype)`` does not change their precision.

    >>> net = facegrad.iresnet50("backbone.pth", device="cuda")  # doctest: +SKIP
    >>> embedding = net(face * 2 - 1)  # doctest: +SKIP

    Args:
        weights: arcface_torch weights (``.pth``, ``.safetensors``), a recogniser's ONNX file, or a :class:`Recogniser`; None:
            :meth:`load_state_dict` brings them
        model: ``r18`` … ``r200``: what the weights must be; None: any
        device: ``cpu``, ``cuda`` or ``cuda:N``
        dtype: ``f32``, ``bf16`` or ``f16``

    Attributes:
        recogniser: the :class:`Recogniser`, once there are weights
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | Recogniser | None = None,
        model: str | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "f32",
    ) -> None:
        super().__init__()
        if weights is not None and not isinstance(weights, (str, os.PathLike, Recogniser)):
            raise TypeError(
                f"IResNet: expected the path of weights, which tell depth and width, got {weights!r}; write "
                'facegrad.IResNet("backbone.pth"), or facegrad.iresnet50("backbone.pth") to check the depth'
            )
        self.recogniser: Recogniser | None = weights if isinstance(weights, Recogniser) else None
        self._weights = None if weights is None or isinstance(weights, Recogniser) else os.fspath(weights)
        self._state: dict[str, torch.Tensor] | None = None
        self._model, self._dtype, self._device = model, dtype, torch.device(device)
        if self._weights is not None:
            self._load()

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.recogniser.device if self.recogniser is not None else self._device

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes the weights that ``torch.load`` returns for a recogniser's file. Names that are missing or left over are an
        error, and ``strict=False`` is refused."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected tensors by name, as torch.load gives them, got {type(state_dict).__name__}")
        if not state_dict and self.recogniser is not None:
            # What state_dict() of this module gives: the weights that are there stay.
            return torch.nn.modules.module._IncompatibleKeys([], [])
        if not strict:
            raise ValueError("strict=False: the library's recogniser needs all of its weights; leave strict out")
        state = {name: tensor.detach().cpu() for name, tensor in state_dict.items() if isinstance(tensor, torch.Tensor)}
        if not state:
            raise ValueError(
                f"state_dict: expected the tensors of arcface_torch's IResNet by name, got {', '.join(map(str, state_dict)) or 'nothing'}"
            )
        self._state = state
        self._weights = None
        self._load()
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def _load(self) -> None:
        def made(path: str | os.PathLike[str]) -> Recogniser:
            return Recogniser(path, device=self._device, model=self._model, dtype=self._dtype)

        if self._weights is not None:
            self.recogniser = made(self._weights)
        elif self._state is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "state_dict.pth"
                torch.save(self._state, path)
                try:
                    self.recogniser = made(path)
                except FacegradError as error:
                    # The file is this module's own and gone by now.
                    raise FacegradError(error.status, error.name, str(error).replace(str(path), "state_dict")) from None

    def _apply(self, fn: Any, recurse: bool = True) -> IResNet:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = moved(fn, self.device)
        if device is not None:
            if self.recogniser is not None and self._weights is None and self._state is None:
                self.recogniser = self.recogniser.on(device)
            self._device = device
            self._load()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeds crops ``[B,3,S,S]``, RGB in [−1, 1]: ``[B,D]`` float32, not normalised."""
        return self._features(x, ("embedding",))[0]

    def forward_multiscale(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """All levels of crops ``[B,3,S,S]``, RGB in [−1, 1]: ``layer1`` … ``layer4``, maps ``[B,C,h,w]`` float32, and
        ``embedding``, ``[B,D]``, not normalised."""
        return dict(zip(LEVELS, self._features(x, tuple(LEVELS))))

    def _features(self, x: torch.Tensor, levels: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        if self.recogniser is None:
            raise RuntimeError('IResNet: no weights yet; write facegrad.iresnet50("backbone.pth") or call load_state_dict')
        side = self.recogniser.input_size
        if not isinstance(x, torch.Tensor) or x.dim() != 4 or x.shape[1:] != (3, side, side):
            got = list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(f"x: expected crops [B,3,{side},{side}], got {got}")
        if len(x) == 0:
            return tuple(level[:0] for level in self._features(x.new_zeros(1, 3, side, side), levels))
        made: tuple[torch.Tensor, ...] = _Features.apply(x * 0.5 + 0.5, self.recogniser, levels)  # type: ignore[no-untyped-call]
        return made


def iresnet50(
    weights: str | os.PathLike[str] | Literal[False] | None = None,
    *,
    device: str | torch.device = "cpu",
    fp16: bool = False,
    **arcface_torch: Any,
) -> IResNet:
    """arcface_torch's IResNet-50, frozen. See :class:`IResNet`.

    Args:
        weights: its ``.pth``; None, or arcface_torch's ``pretrained=False``: ``load_state_dict`` brings them
        device: ``cpu``, ``cuda`` or ``cuda:N``
        fp16: computes in float16
        arcface_torch: ``pretrained=False`` and ``progress``, which say nothing here; any other argument is refused: depth
            and width are those of the weights
    """
    return _iresnet("r50", weights, device, fp16, arcface_torch)


def iresnet100(
    weights: str | os.PathLike[str] | Literal[False] | None = None,
    *,
    device: str | torch.device = "cpu",
    fp16: bool = False,
    **arcface_torch: Any,
) -> IResNet:
    """arcface_torch's IResNet-100, frozen. See :func:`iresnet50`."""
    return _iresnet("r100", weights, device, fp16, arcface_torch)


def _iresnet(model: str, weights: Any, device: str | torch.device, fp16: bool, arcface_torch: dict[str, Any]) -> IResNet:
    pretrained = arcface_torch.pop("pretrained", False)
    arcface_torch.pop("progress", None)
    if pretrained or weights is True:
        raise ValueError(f'iresnet{model[1:]}: pretrained: facegrad ships no weights; write iresnet{model[1:]}("backbone.pth")')
    if arcface_torch:
        raise TypeError(
            f"iresnet{model[1:]}: there is no argument `{next(iter(arcface_torch))}`: the weights tell width and length of the embedding; leave it out"
        )
    return IResNet(None if weights is False else weights, model, device=device, dtype="f16" if fp16 else "f32")


class _Features(torch.autograd.Function):
    """A recogniser's levels, computed by the library's graph."""

    @staticmethod
    def forward(ctx: Any, crops: torch.Tensor, recogniser: Recogniser, levels: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        graph = Graph(recogniser.device)
        ctx.crops = graph.input(crops.to(recogniser.device), needs_gradient=ctx.needs_input_grad[0])
        ctx.nodes = [graph.features(ctx.crops, recogniser, level) for level in levels]
        ctx.graph, ctx.like = graph, (crops.device, crops.dtype)
        ctx.set_materialize_grads(False)
        return tuple(graph.read(node).to(crops.device) for node in ctx.nodes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None]:
        total: torch.Tensor | None = None
        for node, gradient in zip(ctx.nodes, gradients):
            if gradient is not None:
                ctx.graph.backward(node, gradient.to(ctx.graph.device).contiguous())
                part = ctx.graph.gradient(ctx.crops)
                total = part if total is None else total + part
        device, dtype = ctx.like
        return None if total is None else total.to(device, dtype), None, None
