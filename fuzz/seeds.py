"""Writes the seeds of the fuzz targets: small files of every kind as PyTorch, safetensors and onnx write them.

    python fuzz/seeds.py FOLDER      FOLDER/<target>/<number>

Needs torch, onnx and safetensors.
"""

import io
import json
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from random import Random

import numpy
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save as save_safetensors


def saved(value, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def deflated(file: bytes) -> bytes:
    """The same archive with compressed entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def states():
    """What people save: plain, nested and wrapped dictionaries, parameters, views, other dtypes."""
    a = torch.arange(6.0).reshape(2, 3)
    yield {"a": a, "b": torch.tensor(3, dtype=torch.int64)}
    yield OrderedDict({"module.conv1.weight": a.half(), "module.conv1.bias": a[0].bfloat16()})
    yield {"state_dict": {"net": {"w": a.t()}}, "epoch": 3, "lr": 0.1, "name": "x", "best": None, "done": True}
    yield {"p": torch.nn.Parameter(a), "view": a[:, 1], "expanded": torch.ones(1).expand(4), "empty": torch.zeros(0, 3)}
    yield torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict()
    yield {"optimizer": {"state": {0: {"step": 1, "m": a.double()}}, "groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]}}
    yield {"u8": a.to(torch.uint8), "i8": a.to(torch.int8), "i16": a.to(torch.int16), "i32": a.int(), "bool": a > 1}


def tensors(kind, numpy_kind, shape=(2, 2), raw=True):
    values = numpy.arange(4).reshape(shape).astype(numpy_kind)
    if raw:
        return numpy_helper.from_array(values, f"w{kind}")
    return helper.make_tensor(f"w{kind}", kind, shape, values.flatten().tolist())


def models():
    """ONNX models with every kind of tensor and attribute that is read, and some that are not."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)

    def model(nodes, constants=(), outputs=(y,), **more):
        graph = helper.make_graph(list(nodes), "g", [x], list(outputs), list(constants), **more)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        return made.SerializeToString()

    for raw in (True, False):
        kinds = [(TensorProto.FLOAT, "float32"), (TensorProto.DOUBLE, "float64"), (TensorProto.INT64, "int64"),
                 (TensorProto.INT32, "int32"), (TensorProto.FLOAT16, "float16"), (TensorProto.UINT8, "uint8"),
                 (TensorProto.INT8, "int8"), (TensorProto.INT16, "int16"), (TensorProto.BOOL, "bool")]
        yield model([helper.make_node("Relu", ["x"], ["y"])], [tensors(*kind, raw=raw) for kind in kinds])
    weight = numpy_helper.from_array(numpy.ones((2, 3, 3, 3), "float32"), "w")
    yield model([helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=1),
                 helper.make_node("LeakyRelu", ["c"], ["y"], alpha=0.1)], [weight])
    yield model([helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest"),
                 helper.make_node("Constant", [], ["s"], value_floats=[1.0, 1.0, 2.0, 2.0])])
    yield model([helper.make_node("Constant", [], ["k"], value=tensors(1, "float32")),
                 helper.make_node("Add", ["x", "k"], ["y"], domain="")])
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [y])
    yield model([helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)])
    outside = tensors(1, "float32")
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": "16"}.items():
        outside.external_data.add(key=key, value=value)
    yield model([helper.make_node("Relu", ["x"], ["y"])], [outside])
    sequence = onnx.ValueInfoProto(name="s")
    sequence.type.sequence_type.elem_type.tensor_type.elem_type = 1
    yield model([helper.make_node("Relu", ["x"], ["y"])], value_info=[sequence], doc_string="text")


def configurations():
    """The number of the configuration in targets.rs, and its text."""
    yield 0, {"path": "r.onnx", "model": "r50", "input_size": 112, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
              "color": "rgb", "dtype": "bf16"}
    yield 1, {"path": "d.onnx", "engine": "ort", "det_sizes": [128, 640], "threshold": 0.5, "nms_threshold": 0.4,
              "providers": ["cuda", "cpu"], "min_size": 8, "retry_sizes": [320], "retry_padding": 0.5}
    yield 2, {"path": "v", "family": "kl", "dtype": "f16", "recompute": "blocks", "slicing": True,
              "model_config": {"a": [1, {"b": None}]}, "image_range": "unit", "scale_factor": 8}
    yield 3, {"use_face_loss": True, "face_loss_weight": 0.1, "vae": {"path": "v"}, "prediction": {"kind": "flow"},
              "latent_format": {"custom": {"scale": 0.5, "mean": [1.0]}}, "decode": "window", "align": "kps"}
    yield 4, {"detector": "d.onnx", "recogniser": {"path": "r.onnx"}}
    yield 5, {"device": "cuda:0"}
    yield 6, "flux"
    yield 6, {"custom": {"scale": 1e308, "shift": -1, "std": [0.0]}}
    yield 1, {"path": "d", "treshold": 1}


def graphs():
    """Decisions of `graph` in graphs.rs: operator set, height, width, no constant, nodes of one input each, without
    attributes."""
    for operator in range(9, 20):
        yield bytes([13, 4, 4, 0, 0, operator, 1, 1, 0, 0])
    yield bytes([13, 5, 5, 0, 2]) + b"".join(bytes([operator, 1, 1, 0, 0]) for operator in (9, 10, 22))


def descriptors():
    """Decisions of `tensor` in graphs.rs: two sizes of 2 and 3, their strides, and who uses it."""
    for strides in ([24, 8], [8, 16], [0, 8], [248, 8]):
        for code, bits in ((2, 2), (0, 3), (1, 0)):
            yield bytes([2, 16, 24, *strides, 0, 1, 0, code, bits, 1, 0, bits % 2])


def sequences():
    """Decisions of `calls` in calls.rs: a call is a configuration, a tensor of one size, a node, and what to call."""
    def call(which, *more, config=1, node=1):
        return bytes([config, 0, 0, node, which, *more])

    # A graph of the context that is there, an input, and what can be asked of it; the same of a context of its own.
    start = call(3, 2)
    value = bytes([1, 0, 2, 16, 24, 1, 8])
    for which in (10, 11, 12, 13, 14, 15):
        yield start + value + bytes([1, 3]) + call(which, 1 if which == 10 else 3, 3, 4) + call(0)
    yield call(1) + call(3, 3) + value + bytes([1, 4]) + call(10, 1, 4) + call(0)
    for config in range(8):
        yield call(1, config=config) + call(5, 2, config=config) + call(6, 2, config=config) + call(7, 2, config=config)


def steps():
    """Decisions of `steps`: a loss as it is without a configuration, or one of random keys, and then anything."""
    random = Random(0)
    for number in range(64):
        keys = bytes([0]) + b"\xff" * 18 if number % 2 else random.randbytes(19)
        yield keys + random.randbytes(600)


def main(folder: Path) -> None:
    seeds: dict[str, list[bytes]] = {name: [] for name in
                                     ["files", "onnx", "pickle", "legacy", "archive", "safetensors", "config"]}
    seeds["graph"] = list(graphs())
    seeds["calls"] = list(sequences())
    seeds["steps"] = list(steps())
    seeds["tensor"] = list(descriptors())
    for state in states():
        file = saved(state, True)
        seeds["files"] += [file, deflated(file)]
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            pickle = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        seeds["pickle"] += [b"\0" + pickle, b"\1" + pickle]
        seeds["archive"] += [bytes(12) + pickle, bytes([0x91, 40, 0]) + b"\xff" * 9 + pickle]
        old = saved(state, False)
        seeds["files"].append(old)
        # Magic number, protocol and system: three pickles.
        start = 0
        for _ in range(3):
            start = old.index(b".", start) + 1
        seeds["legacy"].append(old[start:])
    flat = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64), "c": torch.zeros(0)}
    for file in (save_safetensors(flat), save_safetensors(flat, {"format": "pt"})):
        seeds["files"].append(file)
        seeds["safetensors"].append(file[8:])
    for model in models():
        seeds["files"].append(model)
        seeds["onnx"].append(model)
    for which, value in configurations():
        seeds["config"].append(bytes([which]) + json.dumps(value).encode())
    for target, inputs in seeds.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (folder / target / f"seed-{number:02}").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
