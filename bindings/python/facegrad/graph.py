"""The library's graph: the chain from a prediction to the loss, node by node."""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ._compile import eager
from ._library import Context, Owner, call, config_text
from ._tensor import View, optional
from .loss import FaceLoss
from .models import Recogniser
from .report import Report, Sink
from .targets import Targets
from .vae import Vae


class Graph(Owner):
    """A graph of the library's operations. Nodes are numbers. A node is computed when it is made, and it stays until the
    graph is deleted. All objects that are used with the graph must be on its device. Any thread may use it.

    >>> graph = Graph("cpu")
    >>> prediction = graph.input(velocity, needs_gradient=True)  # doctest: +SKIP
    >>> x0 = graph.predict_x0(graph.input(x_t), prediction, t)  # doctest: +SKIP
    >>> images = graph.decode(graph.unpack(x0, vae, {"latent_format": "flux"}), vae)  # doctest: +SKIP
    >>> loss, report = graph.face_loss(images, face_loss, references=references)  # doctest: +SKIP
    >>> graph.backward(loss)  # doctest: +SKIP
    >>> graph.gradient(prediction)  # doctest: +SKIP
    """

    _kind = "graph"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._context = Context.of(device)
        #: Decoders of the host, which the graph calls.
        self._hosts: list[Vae] = []
        super().__init__(lambda out: call("graph_new", self._context._handle, out))

    @property
    def device(self) -> torch.device:
        """The device of the graph's nodes."""
        return self._context.device

    @eager
    def input(self, tensor: torch.Tensor, needs_gradient: bool = False) -> int:
        """Adds a copy of a tensor: float32, float16 or bfloat16, any shape. ``needs_gradient``: whether :meth:`gradient` will be
        called with this node."""
        view = View("tensor", tensor)
        return self._make("graph_input", view.pointer, int(needs_gradient))

    @eager
    def predict_x0(
        self, x_t: int | None, prediction: int, times: torch.Tensor | None = None, config: Mapping[str, Any] | None = None
    ) -> int:
        """Adds the clean latent ``x0 = a·x_t + b·prediction``, float32, in the prediction's layout.

        Args:
            x_t: the node of the noisy latents; None where the model predicts x0 itself
            prediction: the node of the model's prediction
            times: noise levels ``[N]`` in the unit of ``prediction.time``, or pairs a, b ``[N,2]`` for kind ``custom``; None
                for kind ``sample``
            config: the object ``prediction`` of :class:`FaceIdentityLoss`'s configuration; None for flow matching
        """
        view = optional("times", times)
        return self._make("graph_predict_x0", -1 if x_t is None else x_t, prediction, view.pointer if view else None, _json(config))

    def sampler_step(
        self, x_t: int, prediction: int, times: torch.Tensor, next_times: torch.Tensor, config: Mapping[str, Any] | None = None
    ) -> int:
        """Adds the sample at another noise level, as :func:`facegrad.sampler_step` computes it: a node of ``x_t``'s dtype and
        layout. No gradient flows through it.

        Args:
            x_t, prediction: nodes of the same shape
            times, next_times: the noise levels ``[N]`` before and after the step
            config: the object ``prediction`` of :class:`FaceIdentityLoss`'s configuration; None for flow matching
        """
        views = View("times", times), View("next_times", next_times)
        return self._make("graph_sampler_step", x_t, prediction, *(view.pointer for view in views), _json(config))

    @eager
    def unpack(self, latents: int, vae: Vae, config: Mapping[str, Any] | None = None, size: tuple[int, int] = (0, 0)) -> int:
        """Converts model-space latents in the host's packing to the latents that the VAE decodes: ``[B,C,H,W]`` float32.

        Args:
            latents: a node
            vae: the VAE, whose config may tell the latent format
            config: the keys ``packing``, ``latent_crop`` and ``latent_format`` of a loss
            size: height and width of the unpacked latent in latent pixels; needed only for tokens
        """
        return self._make("graph_unpack", latents, vae._handle, _json(config), *size)

    @eager
    def decode(self, latents: int, vae: Vae, config: Mapping[str, Any] | None = None) -> int:
        """Decodes a node of VAE-space latents ``[B,C,h,w]`` to images ``[B,3,H,W]``, RGB in [0, 1], float32. ``config``: the key
        ``clamp`` of a loss."""
        if not vae.native:
            self._hosts.append(vae)
        with vae._guard():
            return self._make("graph_decode", latents, vae._handle, _json(config))

    def features(self, crops: int, recogniser: Recogniser, level: str = "embedding") -> int:
        """Adds a recogniser's features of a node of aligned crops ``[M,3,S,S]``, RGB in [0, 1]: float32, not normalised. The
        level is ``embedding``, ``[M,D]``; of an IResNet also ``layer1`` … ``layer4``, ``[M,C,h,w]``; of an ONNX model also its
        further outputs by name."""
        return self._make("graph_features", crops, recogniser._handle, level.encode())

    @eager
    def face_loss(self, images: int, loss: FaceLoss, **targets: Any) -> tuple[int, Report]:
        """Adds the weighted loss of a node of images ``[N,3,H,W]``, RGB in [0, 1]: a scalar node. Returns the node and the
        report. ``targets``: the arguments of :class:`facegrad.targets.Targets`."""
        count = self.shape(images)[0]
        struct, sink = Targets(count, **targets).struct, Sink(count)
        node = self._make("graph_face_loss", images, loss._handle, c.byref(struct), sink.samples, sink.capacity, c.byref(sink.result))
        return node, sink.report()

    @eager
    def shape(self, node: int) -> tuple[int, ...]:
        """The shape of a node's value; empty for a scalar."""
        ndim = c.c_size_t()
        call("graph_shape", self._handle, node, None, 0, c.byref(ndim))
        sizes = (c.c_int64 * ndim.value)()
        call("graph_shape", self._handle, node, sizes, ndim.value, c.byref(ndim))
        return tuple(sizes)

    @eager
    def read(self, node: int) -> torch.Tensor:
        """A copy of a node's value, float32, on the graph's device."""
        return self._copy("graph_read", node)

    @eager
    def backward(self, node: int, seed: torch.Tensor | None = None) -> None:
        """Computes the gradients of a node with respect to all nodes before it. ``seed``: the gradient with respect to the node,
        of its shape; None: ones. The gradients of an earlier call are dropped."""
        view = optional("seed", seed)
        with ExitStack() as guards:
            for vae in self._hosts:
                guards.enter_context(vae._guard())
            call("graph_backward", self._handle, node, view.pointer if view else None, self._context.stream)

    @eager
    def gradient(self, node: int) -> torch.Tensor:
        """The gradient with respect to a node from the last :meth:`backward`, float32; zeros where the node has no influence."""
        return self._copy("graph_gradient", node)

    def _make(self, name: str, *arguments: object) -> int:
        node = c.c_int64()
        call(name, self._handle, *arguments, c.byref(node), self._context.stream)
        return node.value

    def _copy(self, name: str, node: int) -> torch.Tensor:
        out = torch.empty(self.shape(node), device=self._context.device)
        call(name, self._handle, node, View("tensor", out).pointer, self._context.stream)
        return out


def _json(config: Mapping[str, Any] | None) -> bytes | None:
    return None if config is None else config_text(config)
