"""Finds, checks and calls the shared library."""

from __future__ import annotations

import atexit
import ctypes as c
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError(
        "facegrad needs PyTorch, and this Python has none; https://pytorch.org says how to install it on this machine"
    ) from error

from . import _abi, _part

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("facegrad")


class FacegradError(RuntimeError):
    """A call of the library failed. The text says what was expected, what came and what to do.

    Attributes:
        status: the number of the error, one of the header's ``FACEGRAD_ERR_*``
        name: the name of the status, such as ``wrong shape``
    """

    def __init__(self, status: int, name: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.name = name


def _load() -> tuple[c.CDLL, c.CDLL]:
    """The library and its part."""
    found = _part.core()
    if found is None:
        looked = ", ".join(map(str, _part.cores()))
        raise ImportError(
            f"facegrad: the shared library was not found; looked at {looked}. Install facegrad again, or run `make build` in a checkout."
        )
    if _part.is_cut(found):
        raise ImportError(f"facegrad: {found} is cut off; install facegrad again")
    part = _load_part(found)
    # The library's dependency on its part is resolved by the one that is loaded already (same SONAME).
    try:
        library = c.CDLL(str(found))
    except OSError as error:
        raise ImportError(
            f"facegrad: {found} does not fit {part._name}: {error}. Either one of them is damaged or of another version, or this process "
            f"has loaded another facegrad before; install facegrad again"
        ) from error
    for name, (result, arguments) in _abi.PROTOTYPES.items():
        function = getattr(library, f"facegrad_{name}", None)
        if function is None:
            raise ImportError(f"facegrad: {found} has no facegrad_{name}; it is of another version than this package")
        function.restype, function.argtypes = result, arguments
    abi = library.facegrad_abi_version()
    if abi != _abi.ABI_VERSION:
        raise ImportError(f"facegrad: {found} speaks ABI version {abi}, this package {_abi.ABI_VERSION}")
    return library, part


def _load_part(core: Path) -> c.CDLL:
    """Loads the part that was compiled for the torch that was imported above."""
    running, reasons = torch.__version__, []
    for path in _part.candidates(core, running):
        if not path.exists():
            continue
        if _part.is_cut(path):
            reasons.append(f"{path} is cut off")
            continue
        # The core takes the first part that this process has loaded, so the wrong one is not even tried.
        compiled = _part.compiled_for(path)
        if _part.minor(compiled) != _part.minor(running):
            reasons.append(f"{path} was compiled for torch {compiled}, and this is torch {running}")
            continue
        try:
            return c.CDLL(str(path))
        except OSError as error:
            reasons.append(f"{path} cannot be loaded with torch {running}: {error}")
    if reasons:
        raise ImportError(
            f"facegrad: {'; '.join(reasons)}. Compile the part for this torch with `python -m facegrad build` (it needs a C++ compiler)"
        )
    raise ImportError(_part.missing(core, running, _abi.VERSION))


library, part = _load()
version: str = library.facegrad_version().decode()


def check(status: int) -> None:
    """Raises :class:`FacegradError` with the text of the last error, where ``status`` is not 0."""
    if status == 0:
        return
    text = read_text(library.facegrad_last_error)
    raise FacegradError(status, library.facegrad_status_name(status).decode(), text)


def call(name: str, *arguments: object) -> None:
    """Calls ``facegrad_<name>`` and raises where it fails. ctypes releases the GIL meanwhile."""
    check(getattr(library, f"facegrad_{name}")(*arguments))


def read_text(function: Callable[..., int], *arguments: object) -> str:
    """The text of a function that copies one into the caller's buffer."""
    needed = c.c_size_t()
    function(*arguments, None, 0, c.byref(needed))
    buffer = c.create_string_buffer(needed.value)
    function(*arguments, buffer, needed.value, None)
    return buffer.value.decode()


def config_text(config: Mapping[str, Any]) -> bytes:
    """A configuration as JSON. Paths may be str, bytes or PathLike. A byte that is not UTF-8 becomes ``\\udcXX``, which the
    library turns back into the byte. Numbers, lists and mappings may be those of numpy, torch or OmegaConf.

    Raises:
        TypeError: for what JSON cannot hold
        ValueError: for a number that is not finite, by its key
    """

    def plain(value: object) -> object:
        if isinstance(value, (bytes, os.PathLike)):
            return os.fsdecode(value)
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, Sequence):
            return list(value)
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"config: expected what JSON can hold, or paths, got {value!r}")

    keys = dict(config)
    try:
        return json.dumps(keys, default=plain, allow_nan=False).encode()
    except ValueError:
        for key, value in keys.items():
            try:
                json.dumps(value, default=plain, allow_nan=False)
            except ValueError:
                raise ValueError(f"config: {key}: expected finite numbers, got {value!r}") from None
        raise


_DTYPES = {
    "f32": ("float32", "fp32", "float"), "bf16": ("bfloat16",), "f16": ("float16", "fp16", "half"),
}  # fmt: skip


def dtype_name(dtype: str | torch.dtype) -> str:
    """A dtype as the library names it: ``f16`` for ``torch.float16``, ``"float16"`` and ``"fp16"``."""
    text = str(dtype).removeprefix("torch.")
    return next((name for name, others in _DTYPES.items() if text in others), text)


def live(kind: str | None = None) -> int:
    """How many handles of the library are not freed: of the kind ``context``, ``detector``, ``backbone``, ``vae``, ``loss``,
    ``graph`` or ``evaluator``, or with None of all kinds."""
    count = c.c_int64()
    call("debug_live", kind.encode() if kind else None, c.byref(count))
    return count.value


def build_info() -> dict[str, Any]:
    """The versions of the library, its ABI and torch, the number of CUDA devices, and the keys of a loss's configuration."""
    info: dict[str, Any] = json.loads(read_text(library.facegrad_build_info))
    return info


class Owner:
    """A handle that is freed with its Python object."""

    _kind = ""
    _refuses = "copied or pickled"

    def __init__(self, new: Callable[[object], None]) -> None:
        handle = _abi.Handle()
        new(c.byref(handle))
        self._handle = handle
        self._pid = os.getpid()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        # In a forked child, the objects belong to the parent.
        if handle and getattr(self, "_pid", None) == os.getpid():
            getattr(library, f"facegrad_{self._kind}_free")(handle)

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__}: it holds a handle of the library and cannot be {self._refuses}; make it where it is used")


class Frozen(Owner):
    """A network that nothing changes: a copy is the network itself."""

    _refuses = "pickled"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


class Context(Owner):
    """A device and the library's thread on it."""

    _kind = "context"
    _shared: dict[tuple[int, str], Context] = {}

    def __init__(self, device: str) -> None:
        config = json.dumps({"device": device}).encode()
        super().__init__(lambda out: call("context_new", config, out))
        self.device = torch.device(device)

    @classmethod
    def of(cls, device: str | torch.device) -> Context:
        """The context of a device in this process. It is made at the first call."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
        if device.type == "cpu":
            # With several processes, accelerate's device is cpu:0.
            device = torch.device("cpu")
        key = (os.getpid(), str(device))
        if key not in cls._shared:
            cls._shared[key] = cls(str(device))
        return cls._shared[key]

    @property
    def stream(self) -> int | None:
        """torch's current CUDA stream on the context's device; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.current_stream(self.device).cuda_stream)


def onnxruntime_folder() -> str | None:
    """The folder of the ``onnxruntime`` wheel's library, where the wheel is installed."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "capi"
    return str(folder) if any(folder.glob("libonnxruntime.so*")) else None


_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG}


def _forward(level: int, message: bytes, _: object) -> None:
    log.log(_LEVELS.get(level, logging.DEBUG), message.decode(errors="replace"))


_callback = _abi.LogCallback(_forward)
call("set_log_callback", c.cast(_callback, c.c_void_p), None, 4)
# The callback must not run after Python's end.
atexit.register(lambda: library.facegrad_set_log_callback(None, None, 4))
