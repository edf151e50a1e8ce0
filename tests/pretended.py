"""A GPU that is pretended: proves on a machine without one that a test, and the Python half of the library, put every tensor
where they were asked to.

Tensors that are brought to `cuda:0` stay in the CPU's memory and say that they lie on `cuda:0`. What is computed from them lies
there too. What a GPU refuses is refused: an operation on tensors of both places, NumPy over the GPU's memory, and a view of
the CPU's memory where the library wants the GPU's. The library itself computes on the CPU.

What it cannot show is a kernel, a stream or a race. Threads that Python did not start see the CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import facegrad._library as library
from facegrad._tensor import View

HERE, THERE = torch.device("cpu"), torch.device("cuda", 0)
#: Arguments that the library reads from any device, as the header says; weights have a point in their names.
ANYWHERE = {
    "t", "times", "next_t", "next_times", "coefficients", "landmarks", "boxes", "reference_landmarks", "reference_boxes", "sample_weights",
    "image",
}  # fmt: skip
#: Operations that a GPU runs on tensors of both places. An index may lie on the CPU.
BOTH = ("aten::copy_", "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_to_copy")

#: The memory that lies there. A weak reference keeps the address from being given to other memory.
_memory: dict[int, StorageWeakRef] = {}
#: So many entries before those of freed memory are dropped.
_most = 256


def is_there(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage()._cdata in _memory


def put(tensor: torch.Tensor, there: bool) -> torch.Tensor:
    global _most
    storage = tensor.untyped_storage()
    if not there:
        _memory.pop(storage._cdata, None)
    elif storage._cdata not in _memory:
        _memory[storage._cdata] = StorageWeakRef(storage)
    if len(_memory) > _most:
        for address in [address for address, memory in _memory.items() if memory.expired()]:
            del _memory[address]
        _most = 256 + 2 * len(_memory)
    return tensor


def wants(device: Any) -> bool:
    """Whether a device that a caller wrote is the pretended one."""
    device = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    assert device.type in ("cpu", "cuda", "meta") and device.index in (None, 0), f"there is no {device} here"
    return device.type == "cuda"


class Move(torch.autograd.Function):
    """A copy in the other place; its gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, there: bool) -> torch.Tensor:
        ctx.there = is_there(x)
        return put(x.clone(), there)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return put(gradient.clone(), ctx.there), None


def moved(x: torch.Tensor, there: bool) -> torch.Tensor:
    return x if is_there(x) == there else Move.apply(x, there)  # type: ignore[no-any-return,no-untyped-call]


def to(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to` in all its forms."""
    there = is_there(x)
    if args and isinstance(args[0], torch.Tensor):
        there, args = is_there(args[0]), (args[0].dtype, *args[1:])
    elif "other" in kwargs:
        other = kwargs.pop("other")
        there, args = is_there(other), (other.dtype, *args)
    elif args and args[0] is None:  # no device, as torch.nn.Module.to writes it
        args = args[1:]
    elif args and isinstance(args[0], (str, int, torch.device)):
        there, args = wants(args[0]), args[1:]
    elif kwargs.get("device") is not None:
        there = wants(kwargs["device"])
    named = {**dict(zip(("dtype", "non_blocking", "copy"), args, strict=False)), **kwargs, "device": None}
    named = {name: value for name, value in named.items() if value is not None}
    return moved(x.to(**named) if named else x, there)


class Places(TorchFunctionMode):
    """What tensors say of their place, and what brings them to another."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        x = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if x is not None and not x.is_meta:
            if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
                return THERE if is_there(x) else HERE
            if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
                return is_there(x)
            if func is torch.Tensor.to:
                return to(*args, **kwargs)
            if func in (torch.Tensor.cpu, torch.Tensor.cuda):
                return moved(x, func is torch.Tensor.cuda)
            if func in (torch.Tensor.numpy, torch.Tensor.__array__) and is_there(x):
                raise TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
                )
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            there = wants(kwargs.pop("device"))
            assert not (there and kwargs.get("generator") is not None), "a generator of the CPU does not fill a GPU's memory"
            out = func(*args, **kwargs)
            # `as_tensor` gives the tensor that it got.
            return (
                moved(out, there)
                if any(isinstance(a, torch.Tensor) and out.data_ptr() == a.data_ptr() != 0 for a in args)
                else put(out, there)
            )
        return func(*args, **kwargs)


class Work(TorchDispatchMode):
    """Operations: all that they read lies in one place, and so does what they make."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor) and x.layout == torch.strided and not x.is_meta]
        there = any(is_there(x) for x in tensors)
        name = func._schema.name
        if there and name not in BOTH and any(x.dim() and not is_there(x) for x in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})")
        out = func(*args, **kwargs)
        if name in BOTH:
            there = is_there(tensors[0])
        if there:
            for x in tree_iter(out):
                if isinstance(x, torch.Tensor):
                    put(x, True)
        return out


def check(view: View, name: str) -> None:
    """Sees to it that a view shows the right memory, and shows the library the CPU's."""
    if view.struct.device_type == 2:
        view.struct.device_type = 1
    elif name not in ANYWHERE and "." not in name:
        raise AssertionError(f"{name}: a tensor on the CPU reached the library where one on cuda:0 was asked for")


@contextmanager
def gpu() -> Iterator[torch.device]:
    """Pretends one. A context on the CPU is refused meanwhile: whoever makes one forgot to say where."""
    view, context, run = View.__init__, library.Context.__init__, threading.Thread.run
    engine = torch.autograd._engine_run_backward

    def new_view(self: View, name: str, tensor: torch.Tensor) -> None:
        view(self, name, tensor)
        check(self, name)

    def new_context(self: library.Context, device: str) -> None:
        assert device == str(THERE), f"a network or a graph was made on {device}, where {THERE} was asked for"
        context(self, "cpu")
        self.device = THERE

    def backward(*args: Any, **kwargs: Any) -> Any:
        # An override is off while it runs what it overrides; what Python does in a backward pass is watched too.
        with Places():
            return engine(*args, **kwargs)

    def pretending(self: threading.Thread) -> None:
        with Places(), Work():
            run(self)

    replaced: list[tuple[Any, str, Callable[..., Any] | property]] = [
        (View, "__init__", new_view), (library.Context, "__init__", new_context), (library.Context, "stream", property(lambda self: None)),
        (library.Context, "_shared", {}), (threading.Thread, "run", pretending),
        (torch.autograd, "_engine_run_backward", backward),
    ]  # fmt: skip
    with ExitStack() as stack:
        for owner, name, new in replaced:
            stack.callback(setattr, owner, name, owner.__dict__[name])
            setattr(owner, name, new)
        stack.enter_context(Places())
        stack.enter_context(Work())
        yield THERE
