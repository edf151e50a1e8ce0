"""The C++ hosts, built with CMake from the installed tree in a folder of their own, and run."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ASSETS, CLEAN, HERE, ROOT, WARNINGS, counted, run, tool

PIP = "pip install -r tests/requirements.txt"
SOURCES = {"torch": HERE / "torch", "train_lora": ROOT / "examples/cpp/train_lora", "node_host": ROOT / "examples/cpp/node_host"}


@pytest.fixture(scope="session")
def builds(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Every build, started together: what includes torch's headers takes a minute each."""
    cmake = tool("cmake", PIP)
    json_spec = importlib.util.find_spec("nlohmann_json")
    prefixes = [str(installed), *(json_spec.submodule_search_locations if json_spec else [])]
    started = {}
    for name, source in SOURCES.items():
        folder = tmp_path_factory.mktemp(name)
        run(cmake, "-S", source, "-B", folder, f"-DCMAKE_PREFIX_PATH={';'.join(prefixes)}", "-DCMAKE_CXX_FLAGS=-O1")
        started[name] = subprocess.Popen(
            [cmake, "--build", str(folder)], env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
        )
        started[name].folder = folder  # type: ignore[attr-defined]
    yield started
    for build in started.values():
        build.kill()


def built(builds: dict[str, subprocess.Popen[str]], name: str, program: str) -> Path:
    text, _ = builds[name].communicate()
    assert builds[name].returncode == 0, (text or "")[-6000:]
    return Path(builds[name].folder) / program  # type: ignore[attr-defined]


FACE_LOSS = {"class": "graph_face_loss", "images": "@image", "loss": "@loss"}
BAD_GRAPHS = {
    "an unknown class": ({"face": {**FACE_LOSS, "class": "face_los"}}, 'no class "face_los"'),
    "a node that is not there": ({"face": {**FACE_LOSS, "references": "@nobody"}}, 'no node is named "nobody"'),
    "an output that is not there": ({"x_t": {"class": "graph_input", "tensor": "@model.x"}}, 'no output "x"'),
    "a circle": ({"latents": {"class": "graph_unpack", "latents": "@image", "vae": "@vae"}}, "needs its own result"),
    "a missing input": ({"face": FACE_LOSS}, "references"),
    "another type": ({"face": {**FACE_LOSS, "references": "@vae"}}, "of another type"),
    "an error of facegrad": ({"x0": {"class": "graph_predict_x0", "prediction": "@prediction", "config": {"kind": "flw"}}}, "did you mean `flow`?"),
}  # fmt: skip


def test_node_host(builds: dict[str, subprocess.Popen[str]], installed: Path, pictures: Path, tmp_path: Path) -> None:
    host = built(builds, "node_host", "node_host")
    graph = json.loads((ROOT / "examples/cpp/node_host/graph.json").read_text())
    command = [host, installed / "lib/libfacegrad.so", ROOT / "examples/cpp/node_host/graph.json", ASSETS, pictures]
    text = run(*command)
    assert "1 of 1 counted" in text and "[ 1 3 192 192 ]" in text
    assert float(re.search(r"gradient norm ([\d.]+)", text)[1]) > 0
    similarity = float(re.search(r"similarity ([+-][\d.]+)", text)[1])
    # The same person as reference is nearer, so the wiring carries the pictures and not just shapes.
    graph["reference"]["path"] = "0_1.ppm"
    (tmp_path / "same.json").write_text(json.dumps(graph))
    command[2] = tmp_path / "same.json"
    assert float(re.search(r"similarity ([+-][\d.]+)", run(*command))[1]) > similarity + 0.2
    for what, (change, words) in BAD_GRAPHS.items():
        (tmp_path / "bad.json").write_text(json.dumps(graph | change))
        text = run(host, command[1], tmp_path / "bad.json", ASSETS, pictures, status=1)
        assert words in text, f"{what}: {text}"


def test_train_lora(builds: dict[str, subprocess.Popen[str]], tmp_path: Path) -> None:
    run(sys.executable, ASSETS / "pictures.py", tmp_path, 8, 4, 128)
    text = run(built(builds, "train_lora", "train_lora"), ASSETS, tmp_path, 40, 200, timeout=300)
    before, after = map(float, re.search(r"fixed noise: ([+-][\d.]+) before, ([+-][\d.]+) after", text).groups())
    assert after > before + 0.02, text
    lines = re.findall(r"step +\d+  mse ([\d.]+)  face ([\d.]+)  similarity ([+-][\d.]+)  counted \d/4", text)
    assert len(lines) == 5, text


def test_facegrad_torch(builds: dict[str, subprocess.Popen[str]]) -> None:
    counted(run(built(builds, "torch", "torch_host"), ASSETS), least=12)


def test_cmake_says_what_it_looks_for(installed: Path, tmp_path: Path) -> None:
    cmake = tool("cmake", PIP)
    fake = tmp_path / "torch/share/cmake/Torch"
    fake.mkdir(parents=True)
    (fake / "TorchConfigVersion.cmake").write_text('set(PACKAGE_VERSION "2.10.0")\n')
    projects = {
        "find_package(facegrad 0.2 CONFIG REQUIRED COMPONENTS torch)": ("parts for torch 2.11, found 2.10.0", f"-DTorch_DIR={fake}"),
        "find_package(facegrad 0.2 CONFIG REQUIRED COMPONENTS flow)": ("no component flow", ""),
        "find_package(facegrad 0.9 CONFIG REQUIRED)": ("version: 0.2", ""),
    }
    for at, (line, (words, flag)) in enumerate(projects.items()):
        source = tmp_path / str(at)
        source.mkdir()
        (source / "CMakeLists.txt").write_text(f"cmake_minimum_required(VERSION 3.18)\nproject(x LANGUAGES CXX)\n{line}\n")
        text = run(cmake, "-S", source, "-B", source / "b", f"-DCMAKE_PREFIX_PATH={installed}", *filter(None, [flag]), status=1)
        assert words in " ".join(text.split()), text


def test_a_linked_host_by_cmake(installed: Path, tmp_path: Path) -> None:
    cmake = tool("cmake", PIP)
    (tmp_path / "main.c").write_text('#include <stdio.h>\n#include "facegrad.h"\nint main(void) { puts(facegrad_version()); return 0; }\n')
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(host LANGUAGES C)\nfind_package(facegrad CONFIG REQUIRED)\n"
        "add_executable(host main.c)\ntarget_link_libraries(host PRIVATE facegrad::facegrad)\n"
    )
    run(cmake, "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={installed}", f"-DCMAKE_C_FLAGS={' '.join(WARNINGS)}")
    run(cmake, "--build", tmp_path / "b")
    assert run(tmp_path / "b/host").startswith("facegrad/0.2")
