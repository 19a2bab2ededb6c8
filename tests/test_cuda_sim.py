"""The CUDA backend in Numba's CUDA simulator.

Run it by ``NUMBA_ENABLE_CUDASIM=1 pytest tests/test_cuda_sim.py``, or ``tox run -e cudasim``.
"""

import ctypes
import importlib.util
import os

import numpy as np
import pytest

import nbopt

if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
    pytest.skip("needs the CUDA simulator: set NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)
if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("needs numba-cuda, whose simulator it is", allow_module_level=True)

from device_checks import *  # noqa: F403
from device_checks import Lamb, clipped, foreign, pairs_of, trained
from device_slices import *  # noqa: F403
from rules import Factored

from nbopt_backends.cuda import toolchain
from nbopt_backends.cuda.streams import UploadRing


@pytest.fixture
def cuda():
    with nbopt.use_backend("cuda", rng_seed=0, batch_size=8) as be:
        yield be


@pytest.mark.parametrize("threads, blocks", [(1, 1), (3, 5), (32, 1)])
@pytest.mark.rest("3-5")
def test_no_number_of_threads_or_blocks_changes_a_result(cuda, monkeypatch, threads, blocks):
    def run():
        cuda.rng_reset()
        rounded = trained(
            cuda,
            nbopt.RMSProp(stochastic_round=True, state_dtype="float16"),
            ("bfloat16",),
            shapes=[(4100,), (7, 11)],
            steps=1,
        )
        reduced = trained(cuda, clipped(Lamb()), ("float32", "float64"), shapes=[(4100,), (7, 11)], steps=1)
        sliced = trained(
            cuda, Factored(stochastic_round=True), ("bfloat16",), shapes=[(40, 5), (2, 3, 2)], steps=1
        )
        return (
            rounded
            + reduced
            + sliced
            + trained(cuda, nbopt.Adam(gradient_clip_norm=0.1), shapes=[(600,), (7, 11)], steps=2)
        )

    expected = run()
    monkeypatch.setattr(cuda.device, "threads", threads)
    monkeypatch.setattr(cuda.device, "most_blocks", blocks)
    for found, value in zip(run(), expected):
        assert found.tobytes() == value.tobytes()


class Recorder:
    """A device that notes what an upload ring asks of it."""

    def __init__(self):
        self.log = []

    def event(self):
        return object()

    def pinned(self, size):
        return np.zeros(size, np.uint8)

    def copy_from(self, place, size, address, stream):
        self.log.append(("copy", place, ctypes.string_at(place, size)))

    def record(self, event, stream):
        self.log.append(("record", event))

    def wait_on_host(self, event):
        self.log.append(("wait", event))

    def release(self, things):
        self.log.append(("release", len(things)))
        things.clear()


def filled(size, number=7):
    return memoryview(np.full(size, number, np.uint8))


def test_pinned_memory_is_written_again_only_after_its_event():
    """A piece has its event recorded when it is full, and waits for it before it is written again."""
    device = Recorder()
    ring = UploadRing(device)
    size = UploadRing.least // UploadRing.copies
    for number in range(8 * UploadRing.copies):
        ring.upload(1000, filled(size, number), 0)
    copies = [entry for entry in device.log if entry[0] == "copy"]
    assert [entry[2][0] for entry in copies] == list(range(8 * UploadRing.copies))
    assert len({entry[1] for entry in copies}) == len(copies) // 2
    events = [entry for entry in device.log if entry[0] != "copy"]
    first, second = events[0][1], events[1][1]
    assert first is not second
    assert events == [
        ("record", first),
        ("record", second),
        ("wait", first),
        ("record", first),
        ("wait", second),
    ]


def test_pinned_memory_is_of_one_stream_at_a_time():
    """Where another stream follows, an event says what was copied on the one before."""
    device = Recorder()
    ring = UploadRing(device)
    for stream in (0, 0, 77, 77, 0):
        ring.upload(0, filled(10), stream)
    assert [entry[0] for entry in device.log] == [
        "copy",
        "copy",
        "record",
        "copy",
        "copy",
        "record",
        "wait",
        "copy",
    ]


def test_a_larger_upload_gets_more_pinned_memory():
    device = Recorder()
    ring = UploadRing(device)
    for size in (10, 100_000):
        for _ in range(ring.copies):
            ring.upload(0, filled(size), 0)
    assert len(device.log[-1][2]) == 100_000


def test_a_ring_that_goes_leaves_its_memory_and_events_to_the_device():
    device = Recorder()
    ring = UploadRing(device)
    ring.upload(0, filled(10), 0)
    del ring
    assert device.log[-2:] == [("release", 2)] * 2


def test_streams_are_ordered_by_events_and_never_by_the_host(cuda, monkeypatch):
    log = []
    monkeypatch.setattr(cuda.device, "record", lambda event, stream: log.append(("record", stream)))
    monkeypatch.setattr(cuda.device, "wait", lambda event, stream: log.append(("wait", stream)))
    t = cuda.ones(3)
    log.clear()
    cuda.stream = 77
    t[:] = t + 1
    assert ("record", 0) in log and ("wait", 77) in log
    log.clear()
    t[:] = t + 1
    assert [entry for entry in log if entry[0] == "wait"] == []  # the same stream again: nothing to order
    cuda.wrap(foreign(t, stream=99))
    t[:] = t + 1
    assert log.index(("record", 99)) < log.index(("wait", 77))
    assert t.__cuda_array_interface__["stream"] == 77
    log.clear()
    t.__dlpack__(stream=55)
    assert log == [("record", 77), ("wait", 55)]
    log.clear()
    t.__dlpack__(stream=-1)
    assert log == []


@pytest.mark.parametrize("stream", ["x", -1, True, 1.5])
def test_no_stream(cuda, stream):
    with pytest.raises(nbopt.errors.ArgumentError, match="stream"):
        cuda.stream = stream


@pytest.mark.parametrize("number", [-1, "0", True, 1.0])
def test_a_device_id_is_the_number_of_a_gpu(number):
    with pytest.raises(nbopt.errors.ArgumentError, match="device_id"):
        nbopt.set_backend("cuda", device_id=number)


def test_a_gpu_that_is_not_there():
    with pytest.raises(nbopt.errors.BackendError, match="no GPU 5"):
        nbopt.set_backend("cuda", device_id=5)


def test_a_driver_too_old_for_the_toolkit_says_what_to_install():
    assert toolchain.too_old((13, 0), (13, 2)) is None
    assert toolchain.too_old((13, 1), (12, 9)) is None
    text = toolchain.too_old((12, 4), (13, 0))
    assert "CUDA 12.4" in text and "13.0" in text and "580" in text and "nbopt[cuda12]" in text


def test_new_gradients_at_every_step_keep_to_the_same_plan(cuda, monkeypatch):
    layer = nbopt.Parameters(*pairs_of(cuda, 1, ("float32",), [(5,)]))
    optimizer = nbopt.RMSProp()
    optimizer.optimize([layer], 0)
    optimizer.optimize([layer], 0)
    grads = [cuda.ones(5) for _ in range(40)]
    made = []
    monkeypatch.setattr(cuda, "allocate", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(cuda, "kernel", lambda *arguments: made.append(arguments))
    for step, grad in enumerate(grads):
        layer.grads = [grad]
        optimizer.optimize([layer], step)
    assert not made
