"""The library's loss object, as torch's autograd sees it."""

from __future__ import annotations

import ctypes as c
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from . import _abi
from ._compile import eager
from ._library import Context, Owner, call, config_text, library, read_text
from ._tensor import View, optional
from .models import Detector, Recogniser
from .report import Report, Sink
from .targets import Targets
from .vae import Vae


class FaceLoss(Owner):
    """The library's loss object. It computes the weighted loss of images or of a model's prediction, and a report. Any thread
    may use it; calls run one after the other. With ``face_loss_type: non_differentiable`` the value is a score, through which
    no gradient flows.

    Args:
        config: the keys of ``facegrad_loss_new`` (``face_loss_weight``, ``face_align_mode``, ``face_types``,
            ``landmarks``, ``target_similarity``, ``prediction``, ``packing``, ``t_max``, …)
        detector: None: the config's; without any, every face's place has to be given
        recogniser: None: loaded from the config's ``arcface_weights``
        vae: for :meth:`step`; None: the config's
        device: where the networks are loaded that the config names; default: that of the networks given
    """

    _kind = "loss"
    _refuses = "pickled"

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        detector: Detector | None = None,
        recogniser: Recogniser | None = None,
        vae: Vae | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self._parts = (detector, recogniser, vae)
        for name, part, kind in zip(("detector", "recogniser", "vae"), self._parts, (Detector, Recogniser, Vae)):
            if part is not None and not isinstance(part, kind):
                raise TypeError(
                    f"{name}: expected a facegrad.{kind.__name__}, got {type(part).__name__}; load a file with facegrad.{kind.__name__}(path)"
                )
        if device is None:
            device = next((part._context.device for part in self._parts if part is not None), "cpu")
        self._context = Context.of(device)
        text = self._config = config_text(config or {})
        handles = [part._handle if part is not None else None for part in self._parts]
        super().__init__(lambda out: call("loss_new", self._context._handle, *handles, text, out))
        self._score = json.loads(text).get("face_loss_type") == "non_differentiable"

    def __deepcopy__(self, memo: object) -> FaceLoss:
        """A loss of its own over the same networks, which knows what this one knows now."""
        return self.again({})

    def again(self, keys: Mapping[str, Any]) -> FaceLoss:
        """Another loss over the same networks, with other values of some keys, which knows what this one knows now."""
        detector, recogniser, vae = self._parts
        config = {**json.loads(self._config), **keys}
        made = FaceLoss(config, detector=detector, recogniser=recogniser, vae=vae, device=self._context.device)
        with tempfile.TemporaryDirectory() as folder:
            self.save(os.path.join(folder, "memory"))
            made.restore(os.path.join(folder, "memory"))
        return made

    @property
    def description(self) -> dict[str, Any]:
        """The networks that the loss uses, and every key of its configuration with the value that is used."""
        info: dict[str, Any] = json.loads(read_text(library.facegrad_loss_info, self._handle))
        return info

    @eager
    def set_reference(self, id: str, images: torch.Tensor, landmarks: torch.Tensor | None = None) -> None:
        """Registers a person under an id, for ``reference_ids``. An earlier person of that id is replaced. Images without a
        face are left out with a warning.

        Args:
            id: any text
            images: ``[K,3,H,W]``, RGB in [0, 1]
            landmarks: ``[K,5,2]`` in pixels, rows of NaN where not known; None: the detector finds the faces

        Raises:
            facegrad.FacegradError: no image has a face
        """
        views = View("images", images), optional("landmarks", landmarks)
        call(
            "loss_set_reference", self._handle, id.encode(), views[0].pointer, views[1].pointer if views[1] else None, self._context.stream
        )

    def remove_reference(self, id: str) -> None:
        """Removes a registered person."""
        call("loss_remove_reference", self._handle, id.encode())

    def save(self, path: str | bytes | os.PathLike[Any]) -> None:
        """Writes what the loss remembers to a file: registered persons, faces of reference images, statistics of
        ``norm_stats``, and whether audits have ended the use of windows. It holds embeddings of people's faces."""
        call("loss_save", self._handle, os.fsencode(path))

    def restore(self, path: str | bytes | os.PathLike[Any]) -> None:
        """Replaces everything that the loss remembers by what :meth:`save` wrote. A training that was stopped then continues
        with the same numbers.

        Raises:
            facegrad.FacegradError: the file is damaged, or was written with another recogniser or VAE; the loss is then
                unchanged
        """
        call("loss_restore", self._handle, os.fsencode(path))

    @eager
    def __call__(self, images: torch.Tensor, references: torch.Tensor | None = None, **targets: Any) -> tuple[torch.Tensor, Report]:
        """The weighted loss of images, a scalar that ``backward()`` can start from, and the report.

        Args:
            images: generated images ``[N,3,H,W]``, RGB, nominally in [0, 1]; float32, float16 or bfloat16
            references, targets: the arguments of :class:`facegrad.targets.Targets`
        """
        told = Targets(_batch(images), references, **targets)

        def run(images: torch.Tensor, gradient: View | None, sink: Sink) -> None:
            call(
                "loss_images", self._handle, View("images", images).pointer, c.byref(told.struct), _pointer(gradient),
                sink.samples, sink.capacity, c.byref(sink.result), self._context.stream,
            )  # fmt: skip

        return _value(images.detach() if self._score else images, run)

    @eager
    def step(
        self,
        prediction: torch.Tensor,
        x_t: torch.Tensor | None = None,
        t: torch.Tensor | Sequence[float] | float | None = None,
        references: torch.Tensor | None = None,
        *,
        coefficients: torch.Tensor | None = None,
        size: tuple[int, int] | None = None,
        number: int = 0,
        gradient_norm: float | None = None,
        **targets: Any,
    ) -> tuple[torch.Tensor, Report]:
        """The weighted loss of what a diffusion model predicted, with the gradient flowing to the prediction.

        Args:
            prediction: the model's output in its own layout: latents ``[N,C,h,w]``, or tokens ``[N,L,4C]`` as ``packing``
                says; float32, float16 or bfloat16
            x_t: the noisy latents in the same layout; not needed where the prediction is x0
            t: per sample (or one for all), as ``prediction.time`` of the config says
            references, targets: the arguments of :class:`facegrad.targets.Targets`; places of generated faces are pixels
                of the decoded image
            coefficients: ``[N,2]``, a and b of ``x0 = a·x_t + b·prediction``, for ``prediction.kind: custom``
            size: (height, width) of the latent in latent pixels, for packed tokens
            number: of the training step, for ``every_n_steps``
            gradient_norm: norm of the main loss's gradient, for ``gradient_limit``
        """
        count = _batch(prediction)
        told = Targets(count, references, **targets)
        times = None
        if t is not None:
            times = torch.as_tensor(t, dtype=torch.float64).detach()
            times = times.expand(count).contiguous() if times.dim() == 0 else times.reshape(-1)
        views = {"x_t": optional("x_t", x_t), "times": optional("t", times), "coefficients": optional("coefficients", coefficients)}
        height, width = size or (0, 0)

        def run(prediction: torch.Tensor, gradient: View | None, sink: Sink) -> None:
            view = View("prediction", prediction)
            step = _abi.Step(
                c.sizeof(_abi.Step), _pointer(views["x_t"]), view.pointer, _pointer(views["times"]), _pointer(views["coefficients"]),
                height, width, number, gradient_norm or 0.0,
            )  # fmt: skip
            with self._parts[2]._guard() if self._parts[2] is not None else nullcontext():
                call(
                    "loss_step", self._handle, c.byref(step), c.byref(told.struct), _pointer(gradient),
                    sink.samples, sink.capacity, c.byref(sink.result), self._context.stream,
                )  # fmt: skip

        return _value(prediction.detach() if self._score else prediction, run)


def _batch(tensor: torch.Tensor) -> int:
    return tensor.shape[0] if isinstance(tensor, torch.Tensor) and tensor.dim() else 0


def _pointer(view: View | None) -> Any:
    return view.pointer if view is not None else None


#: Computes a loss of a tensor: (tensor, where its gradient goes or None, where the report goes).
_Run = Callable[[torch.Tensor, View | None, Sink], None]


def _value(tensor: torch.Tensor, run: _Run) -> tuple[torch.Tensor, Report]:
    sink = Sink(_batch(tensor))
    value: torch.Tensor = _Value.apply(tensor, run, sink)  # type: ignore[no-untyped-call]
    return value, sink.report()


class _Value(torch.autograd.Function):
    """One call computes value and gradient, so the backward pass is one multiplication. The gradient stays in float32 until it
    is multiplied by the loss scale, such as GradScaler's: without the scale, most of it would be zero in float16."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, run: _Run, sink: Sink) -> torch.Tensor:
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
            ctx.dtype = tensor.dtype
            ctx.save_for_backward(gradient)
        run(tensor, optional("gradient", gradient), sink)
        return torch.full((), sink.result.loss, dtype=torch.float32, device=tensor.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_output).to(ctx.dtype), None, None
