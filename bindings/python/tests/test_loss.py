"""The loss as a training script meets it."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import threading

import pytest
import torch
from compare import relative
from conftest import arguments
from torch.utils.checkpoint import checkpoint

import facegrad


def run(loss, chain, images=None):
    images = chain["images"].clone().requires_grad_() if images is None else images
    value, report = loss(images, **arguments(chain))
    return images, value, report


@pytest.fixture()
def close(chain, bounds):
    """Compares a loss and its gradient with PyTorch's."""

    def close(images, value, chain=chain):
        assert value.item() == pytest.approx(chain["loss"].item(), rel=bounds.value)
        assert relative(images.grad, chain["gradient"]) <= bounds.gradient

    return close


def test_value_and_gradient_are_pytorchs(loss, chain, close, bounds):
    images, value, report = run(loss, chain)
    value.backward()
    close(images, value)
    assert report.counted == 3 and report.loss == pytest.approx(value.item())
    for sample, want in zip(report.samples, chain["similarity"]):
        assert sample.similarity == pytest.approx(want.item(), abs=bounds.value)
        assert sample.alignment == facegrad.Alignment.KPS and sample.located == facegrad.Located.GIVEN


def test_the_loss_scales_like_any_other(loss, chain, bounds):
    images, value, _ = run(loss, chain)
    (3 * value + images.sum() * 0).backward()
    assert relative(images.grad / 3, chain["gradient"]) <= bounds.gradient


def test_no_grad_and_inference_mode_give_the_value(loss, chain, bounds):
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            _, value, report = run(loss, chain, chain["images"].clone())
        assert not value.requires_grad and value.item() == pytest.approx(chain["loss"].item(), rel=bounds.value)


def test_tensors_of_inference_mode_are_fine_as_references(loss, chain, close):
    with torch.inference_mode():
        chain = chain | {"references": chain["references"].clone()}
    images, value, _ = run(loss, chain)
    value.backward()
    close(images, value)


def test_autocast_does_not_change_the_numbers(loss, chain, close, device):
    with torch.autocast(device.type, torch.bfloat16):
        images, value, _ = run(loss, chain)
        value.backward()
    close(images, value)


def test_default_dtype_and_grad_mode_of_the_host_stay(loss, chain, close):
    torch.set_default_dtype(torch.float64)
    try:
        images, value, _ = run(loss, chain)
        value.backward()
        close(images, value)
        assert torch.get_default_dtype() == torch.float64 and torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(loss, chain, close, reentrant):
    images = chain["images"].clone().requires_grad_()
    value = checkpoint(lambda x: loss(x * 1.0, **arguments(chain))[0], images, use_reentrant=reentrant)
    value.backward()
    close(images, value)


def test_saved_tensor_hooks_see_only_the_gradient(loss, chain, close):
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        images, value, _ = run(loss, chain)
    value.backward()
    assert seen == [images.shape]
    close(images, value)


def test_threads(loss, chain, close):
    errors = []

    def work():
        try:
            images, value, _ = run(loss, chain)
            value.backward()
            close(images, value)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_images(loss, chain, dtype):
    images = chain["images"].to(dtype).requires_grad_()
    _, value, _ = run(loss, chain, images)
    value.backward()
    assert images.grad.dtype == dtype
    cosine = torch.nn.functional.cosine_similarity(images.grad.float().flatten(), chain["gradient"].flatten(), dim=0)
    assert cosine >= 0.99


def test_strided_images(loss, chain, close, device, bounds):
    images = chain["images"].to(memory_format=torch.channels_last).requires_grad_()
    _, value, _ = run(loss, chain, images)
    value.backward()
    close(images, value)
    part = torch.zeros(3, 5, 96, 80, device=device)
    part[:, 1:4] = chain["images"]
    part.requires_grad_()
    _, value, _ = run(loss, chain, part[:, 1:4])
    value.backward()
    assert relative(part.grad[:, 1:4], chain["gradient"]) <= bounds.gradient


def test_data_types_gate_every_sample_for_itself(loss, chain, caplog):
    images = chain["images"].clone().requires_grad_()
    value, report = loss(images, data_types=["person", "landscape", "person_head"], **arguments(chain))
    value.backward()
    assert [s.outcome for s in report.samples] == [facegrad.Outcome.COUNTED, facegrad.Outcome.DATA_TYPE, facegrad.Outcome.COUNTED]
    assert images.grad[1].abs().max() == 0 and images.grad[0].abs().max() > 0
    value, report = loss(images, data_types=["x"] * 3, **arguments(chain))
    value.backward()
    assert value.item() == 0 and report.counted == 0


def test_the_distance_of_a_picture_to_itself_was_less_than_0(loss, chain):
    """The product of a row of length 1 with itself is often rounded to a little more than 1."""
    torch.manual_seed(0)
    images = torch.rand(64, *chain["images"].shape[1:]).to(chain["images"].device)
    places = chain["landmarks"][:1].expand(64, -1, -1)
    _, report = loss(images, references=images, landmarks=places, reference_landmarks=places)
    assert report.counted == 64 and report.mean_distance >= 0
    assert all(0.999 < sample.similarity <= 1 for sample in report.samples)


def test_a_dropped_sample_is_warned_about(loss, chain, caplog):
    images = chain["images"].clone()
    images[1] = float("nan")
    with caplog.at_level(logging.WARNING, "facegrad"):
        _, value, report = run(loss, chain, images.requires_grad_())
    value.backward()
    assert report.samples[1].outcome == facegrad.Outcome.NON_FINITE
    assert images.grad.isfinite().all() and images.grad[1].abs().max() == 0
    assert "sample 1 counts nothing: its image, loss or gradient is not finite" in caplog.text


def test_references_by_id(loss, chain, bounds):
    for row in range(3):
        loss.set_reference(f"person {row}", chain["references"][row : row + 1], chain["reference_landmarks"][row : row + 1])
    value, _ = loss(
        chain["images"], reference_ids=[f"person {r}" for r in range(3)], landmarks=chain["landmarks"], sample_weights=chain["weights"]
    )
    assert value.item() == pytest.approx(chain["loss"].item(), rel=bounds.value)
    loss.remove_reference("person 0")
    with pytest.raises(facegrad.FacegradError, match="not registered"):
        loss.remove_reference("person 0")


def test_errors_say_what_to_do(loss, chain, recogniser, bounds, device):
    images = chain["images"]
    with pytest.raises(facegrad.FacegradError, match="images: expected") as caught:
        loss(images[0], chain["references"][:1])
    assert caught.value.status == 5 and caught.value.name == "wrong shape"
    with pytest.raises(facegrad.FacegradError, match="no detector"):
        loss(images, chain["references"])
    with pytest.raises(ValueError, match="data_types: expected 3 entries"):
        loss(images, data_types=["person"], **arguments(chain))
    with pytest.raises(TypeError, match="expected float32"):
        loss(images.to(torch.complex64), chain["references"])
    with pytest.raises(TypeError, match="references: expected a torch.Tensor"):
        loss(images, "references")
    with pytest.raises(facegrad.FacegradError, match="did you mean `face_loss_weight`"):
        facegrad.FaceLoss({"face_loss_wieght": 1}, recogniser=recogniser)
    with pytest.raises(facegrad.FacegradError, match="no such file"):
        facegrad.Recogniser("no/such/file.pth", device=device)
    with pytest.raises(facegrad.FacegradError, match="images: expected at least one image"):
        loss.set_reference("nobody", images[:0])
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(loss)
    value, _ = loss(images, **arguments(chain))
    assert value.item() == pytest.approx(chain["loss"].item(), rel=bounds.value), "the next correct call works"


@pytest.mark.host("torch itself refuses a GPU after a fork")
def test_a_fork_is_told(loss, chain):
    # torch's own threads do not survive a fork either, so the child runs no operator of torch's.
    images = chain["images"].clone()
    run(loss, chain, images)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            with torch.no_grad():
                run(loss, chain, images)
            os._exit(1)
        except facegrad.FacegradError as error:
            os._exit(0 if error.status == 11 else 2)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_leaks(recogniser, chain):
    gc.collect()
    before = facegrad.live("loss")
    losses = [facegrad.FaceLoss({"face_align_mode": "kps"}, recogniser=recogniser) for _ in range(5)]
    assert facegrad.live("loss") == before + 5
    del losses
    gc.collect()
    assert facegrad.live("loss") == before


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.host("the memory of the process; tests/gpu watches a GPU's")
def test_ten_thousand_steps_leave_memory_flat(loss, chain):
    # The smallest step there is: most of it is the library's own path, which is what could leak.
    small = {name: chain[name][:1] for name in ("references", "landmarks", "reference_landmarks")}
    images = chain["images"][:1].clone().requires_grad_()

    def steps(count):
        for _ in range(count):
            value, _ = loss(images, data_types=["landscape"], **small)
            value.backward()
        for _ in range(count // 20):
            value, _ = loss(images, **small)
            value.backward()

    steps(1000)
    start = resident()
    steps(9500)
    grown = resident() - start
    assert grown < 16, f"{grown:.1f} MiB more after 10,000 steps"
