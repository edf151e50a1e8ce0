"""What a call leaves behind in the process: device and stream, memory, and the next call; and processes of a special kind."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import state
from world import ASSETS, ROOT, Case, off

import facegrad
from facegrad import _part
from facegrad._library import Context, library

NAME = "kl16 in FLUX's tokens"
HERE = Path(__file__).resolve().parent


def test_success_refusal_and_panic_leave_the_host_as_it_was(device: torch.device) -> None:
    before = state(device)
    case = Case("tiny")
    loss = case.loss(device)
    case.step(loss, device)
    assert state(device) == before
    with pytest.raises(facegrad.FacegradError, match="expected 2"):
        loss(prediction=case.prediction.to(device), x_t=case.x_t.to(device), t=[0.1, 0.2, 0.3], **case.told)
    assert state(device) == before
    context = Context(str(device))
    assert library.facegrad_debug_panic(context._handle) == 901
    assert state(device) == before


@pytest.mark.gpu
def test_a_stream_of_the_hosts_stays_current(device: torch.device) -> None:
    case = Case("tiny")
    loss = case.loss(device)
    with torch.cuda.stream(torch.cuda.Stream(device)) as _:
        before = state(device)
        case.step(loss, device)
        assert state(device) == before


@pytest.mark.gpu
def test_out_of_memory_in_the_middle_of_a_step(device: torch.device) -> None:
    case = Case(NAME, count=4)
    loss = case.loss(device)
    want = case.step(loss, device)
    torch.cuda.empty_cache()
    refused, before = 0, state(device)
    # What is left is cut down step by step, so that different parts of the step run out.
    for spare in (1 << 20, 4 << 20, 8 << 20, 16 << 20, 24 << 20, 32 << 20):
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        hold = torch.empty(max(0, free - spare - (64 << 20)), dtype=torch.uint8, device=device)
        rest = []
        try:
            while True:
                rest.append(torch.empty(2 << 20, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            del rest[-(spare >> 21) - 1 :]
        try:
            case.step(loss, device)
        except (facegrad.FacegradError, torch.OutOfMemoryError, MemoryError) as error:
            refused += 1
            assert "out of memory" in str(error).lower()
        assert state(device) == before
        del hold, rest
    torch.cuda.empty_cache()
    assert refused, "memory never ran out"
    value, gradient, report = case.step(loss, device)
    assert report.counted == 4 and value == pytest.approx(want[0], rel=1e-5) and off(gradient, want[1]) <= 1e-4


def test_many_steps_keep_memory_flat(device: torch.device) -> None:
    """1,000 steps on a GPU. On a CPU, whose allocator tells less, 60 steps and the process's peak."""
    case = Case("tiny", count=1, more={"decode": "window", "reference_cache": 4, "norm_stats_cache": 4})
    loss = case.loss(device)
    on_gpu = device.type == "cuda"

    def used() -> tuple[int, int]:
        if not on_gpu:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, 0
        torch.cuda.synchronize(device)
        free, whole = torch.cuda.mem_get_info(device)
        return torch.cuda.memory_allocated(device), whole - free

    def steps(count: int) -> None:
        for at in range(count):
            # Every step has another reference and sample, so that the caches turn over.
            told = {"references": (case.told["references"] * (1 - at % 97 / 1000)).to(device), "sample_ids": [f"{at % 97}"]}
            case.step(loss, device, **told)

    steps(100 if on_gpu else 20)
    before = used()
    steps(1000 if on_gpu else 60)
    after = used()
    if on_gpu:
        assert after[0] <= before[0] + (64 << 10), "memory_allocated grew"
        assert after[1] <= before[1] + (8 << 20), "the device's memory in use grew"
    else:
        assert after[0] <= before[0] + (24 << 20), "the process's peak grew"


@pytest.mark.gpu
def test_a_captured_graph_is_refused(device: torch.device) -> None:
    case = Case("tiny")
    loss = case.loss(device)
    want = case.step(loss, device)
    prediction, x_t = case.prediction.to(device), case.x_t.to(device)
    told = {**case.told, "references": case.told["references"].to(device)}
    torch.cuda.synchronize(device)
    graph, refused = torch.cuda.CUDAGraph(), None
    with torch.cuda.graph(graph):
        kept = prediction * 2
        try:
            loss(prediction=prediction, x_t=x_t, **case.given, **told)
        except facegrad.FacegradError as error:
            refused = error
    assert refused is not None and "outside the capture" in str(refused)
    graph.replay()
    torch.cuda.synchronize(device)
    assert torch.equal(kept, prediction * 2), "the capture went on undisturbed"
    assert case.step(loss, device)[0] == pytest.approx(want[0], rel=1e-5)


@pytest.mark.gpu
def test_how_often_a_step_waits(device: torch.device) -> None:
    """A step with known places and a registered reference reads back once, at its end. Nothing else of the library waits:
    what goes up goes through pinned memory."""
    case = Case("tiny")
    loss = case.loss(device)
    loss.set_reference("one", case.told["references"][:1].to(device), case.told["landmarks"][:1])
    prediction, x_t = case.prediction.to(device), case.x_t.to(device)

    def step() -> None:
        loss(prediction=prediction.requires_grad_(), x_t=x_t, **case.given, landmarks=case.told["landmarks"], reference_ids=["one", "one"])

    for _ in range(3):
        step()
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    names = [event.name for event in profile.events()]
    waits = [name for name in names if name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")]
    print(f"kernel launches: {sum('LaunchKernel' in name for name in names)}, waits: {len(waits)}")
    # The profiler itself ends with one of the whole device.
    assert len([name for name in waits if name == "cudaStreamSynchronize"]) <= 1 and len(waits) <= 3


STEP = f"""
import sys
sys.path[:0] = [{str(HERE)!r}]
import torch
from world import Case
case = Case("tiny")
value, gradient, report = case.step(case.loss(sys.argv[1]), sys.argv[1])
assert report.counted == 2
print(repr(value), float(gradient.norm()))
"""


def python(*words: object, env: dict[str, str] | None = None, before: tuple[str, ...] = (), timeout: int = 500) -> str:
    done = subprocess.run(
        [*before, sys.executable, *map(str, words)], env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.mark.gpu
def test_a_process_that_launches_one_kernel_after_the_other(device: torch.device) -> None:
    text = python("-c", STEP, device, env={"CUDA_LAUNCH_BLOCKING": "1"})
    case = Case("tiny")
    value, gradient, _ = case.step(case.loss(device), device)
    got = [float(word) for word in text.split()[-2:]]
    assert got == pytest.approx([value, float(gradient.norm())], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str, device: torch.device) -> None:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        pytest.skip("compute-sanitizer is not installed (it comes with the CUDA toolkit)")
    # Torch's own allocator would hide what is read outside a tensor.
    text = python(
        "-c", STEP, device, env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, before=(program, "--tool", tool, "--error-exitcode", "9")
    )
    assert "ERROR SUMMARY: 0 errors" in text or "0 hazards" in text


DAEMON = """
import ctypes, logging, sys, threading, time, torch, facegrad
from facegrad._library import call
from facegrad._tensor import View
from facegrad.report import Sink
from facegrad.targets import Targets
logging.basicConfig(level=logging.DEBUG, stream=open("/dev/null", "w"))
weights, device, wait = sys.argv[1:]
loss = facegrad.FaceLoss({"face_align_mode": "kps"}, recogniser=facegrad.Recogniser(weights, device=device))
picture = torch.rand(4, 3, 128, 128, device=device)
points = torch.tensor([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]).repeat(4, 1, 1)
points[1] = 0  # Spans no area, so that every call has something to say.
image, gradient = View("images", picture), View("gradient", torch.empty_like(picture))
targets = Targets(4, picture, landmarks=points, reference_landmarks=points)

def work():
    # The library's calls alone: torch's own operations abort a process that ends while a daemon thread is in one.
    sink = Sink(4)
    while True:
        call(
            "loss_images", loss._handle, image.pointer, ctypes.byref(targets.struct), gradient.pointer,
            sink.samples, sink.capacity, ctypes.byref(sink.result), None,
        )

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(float(wait))
sys.exit(3)
"""


def test_python_ends_while_daemon_threads_are_inside_calls(device: torch.device) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DAEMON, str(ASSETS / "recogniser.safetensors"), str(device)]
    for wait in (0.1, 0.3, 0.35):
        done = subprocess.run([*command, str(wait)], env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 3 and "Fatal" not in done.stderr, (done.returncode, done.stderr[-2000:])


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The host in C++, which links libtorch's CPU half alone, and what it is given."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("a host in C++ needs a compiler (Debian: apt install g++)")
    program, torch_folder = tmp_path_factory.mktemp("host") / "host", Path(torch.__file__).parent / "lib"
    words = ["-std=c++17", "-O1", f"-I{ROOT / 'include'}", str(HERE / "host.cc"), "-o", str(program)]
    link = [
        f"-L{torch_folder}",
        "-Wl,--no-as-needed",
        "-ltorch_cpu",
        "-lc10",
        "-Wl,--as-needed",
        "-Wl,--allow-shlib-undefined",
        f"-Wl,-rpath,{torch_folder}",
        "-ldl",
    ]
    done = subprocess.run([compiler, *words, *link], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    core = _part.core()
    assert core is not None
    part = next(path for path in _part.candidates(core, torch.__version__) if path.exists())
    return [str(program), str(part), str(core), str(ASSETS / "recogniser.safetensors")]


def test_a_host_that_never_linked_libtorch_cuda(host: list[str], device: torch.device) -> None:
    done = subprocess.run([*host, str(device)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "cosine" in done.stdout, done.stdout


@pytest.mark.gpu
def test_a_host_that_asked_for_cuda_too_early_is_told(host: list[str], device: torch.device) -> None:
    done = subprocess.run(
        [*host, str(device), "early"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )
    assert done.returncode == 1 and "before libtorch_cuda.so was loaded" in done.stdout, done.stdout
