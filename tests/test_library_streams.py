"""The streams of libraries that arrays come from: ``pytest -m gpu``, on a GPU or the emulated one.

Stand-ins for PyTorch and CuPy say which stream is their current one. The last tests use the libraries.
"""

import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from device_checks import assert_same, reference

import nbopt

_problem = nbopt.backends.backend_problem("cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    _problem = "the simulator has one stream: unset NUMBA_ENABLE_CUDASIM"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_problem is not None, reason=f"needs an NVIDIA GPU: {_problem}"),
]

N = 100


class Library:
    """A stand-in for a library: it has a current stream, and says so as PyTorch and as CuPy do."""

    def __init__(self):
        self.stream, self.cuda = 0, self
        self._C = SimpleNamespace(_cuda_getCurrentRawStream=lambda number: self.stream)

    def get_current_stream(self):
        return SimpleNamespace(ptr=self.stream)

    @contextmanager
    def on(self, stream):
        self.stream, before = stream, self.stream
        try:
            yield
        finally:
            self.stream = before


class Given:
    """No library: the backend is given its stream."""

    def __init__(self, be):
        self._be = be

    @contextmanager
    def on(self, stream):
        self._be.stream = stream
        try:
            yield
        finally:
            self._be.stream = None


@pytest.fixture
def cuda():
    with nbopt.use_backend("cuda", rng_seed=0, batch_size=8) as be:
        yield be
        be.synchronize()


@pytest.fixture(params=["torch", "cupy", "be.stream"])
def library(request, cuda, monkeypatch):
    """What says on which stream a step runs."""
    if request.param == "be.stream":
        return Given(cuda)
    found = Library()
    monkeypatch.setitem(sys.modules, request.param, found)
    cuda.streams.follow(request.param)
    return found


def new_stream(be):
    """The handle of a stream that doesn't wait for the default one."""
    from cuda.bindings import driver
    from graphs import _done

    with be.device.entered():
        return int(_done(driver.cuStreamCreate(1)))


def order(be, first, then):
    """Have a stream wait for what is queued on another, as ``then.wait_stream(first)`` does."""
    with be.device.entered():
        event = be.device.event()
        be.device.record(event, first)
        be.device.wait(event, then)


def borrowed(tensor):
    """Another array object over the same memory, as a library's allocator gives it for a new gradient."""
    interface = {**tensor.__cuda_array_interface__, "stream": None}
    return SimpleNamespace(__cuda_array_interface__=interface, kept=tensor)


def values(number):
    return np.random.default_rng(number).standard_normal(N, np.float32)


def expected(make, count):
    """The parameter after so many steps, by the reference."""
    be = reference()
    with nbopt.use_backend(be):
        layer, optimizer = nbopt.Parameters((be.array(values(0)), be.zeros(N))), make()
        for number in range(1, count + 1):
            layer.grads[0].set(values(number))
            optimizer.optimize([layer], 0)
        return [layer.params[0].get()]


def test_a_capture_after_steps_on_a_side_stream(cuda, library):
    """As PyTorch's `make_graphed_callables` does: warm-up, then a capture with gradients in other memory."""
    from graphs import Graph

    def make():
        return nbopt.Adam(gradient_clip_norm=0.5)

    optimizer, side, graph = make(), new_stream(cuda), Graph(cuda)
    optimizer.capturable = True
    layer, inside = nbopt.Parameters((cuda.array(values(0)), cuda.zeros(N))), cuda.zeros(N)
    for number in (1, 2, 3):
        layer.grads = [borrowed(cuda.array(values(number)))]
        with library.on(side):
            optimizer.optimize([layer], 0)
    order(cuda, side, graph.stream)
    layer.grads = [borrowed(inside)]
    with graph.capture(given=False), library.on(graph.stream):
        optimizer.optimize([layer], 0)
    for number in range(4, 9):
        inside.set(values(number))
        graph.replay()
    inside.set(values(9))
    with library.on(new_stream(cuda)):
        optimizer.optimize([layer], 0)
    assert optimizer.t == 9
    assert_same([layer.params[0].get()], expected(make, 9))


def test_memory_that_is_used_again_after_a_step(cuda, library):
    """As after `record_stream`: an allocator uses memory again once the step's stream has got so far."""
    optimizer, own, side = nbopt.RMSProp(), new_stream(cuda), new_stream(cuda)
    layer, block = nbopt.Parameters((cuda.array(values(0)), cuda.zeros(N))), cuda.zeros(N)
    cuda.synchronize()  # the zeros are written on another stream
    with cuda.device.entered():
        pinned = [cuda.device.pinned(4 * N) for _ in range(5)]
    for number, memory in enumerate(pinned, 1):
        memory[:] = values(number).view(np.uint8)
        with cuda.device.entered():
            cuda.device.copy_in(block.storage.address, memory, own)
        order(cuda, own, side)
        layer.grads = [borrowed(block)]
        with library.on(side):
            optimizer.optimize([layer], 0)
        with cuda.device.entered():
            event = cuda.device.event()
            cuda.device.record(event, side)
            cuda.device.wait_on_host(event)
    assert_same([layer.params[0].get()], expected(nbopt.RMSProp, 5))


def test_pytorchs_memory_that_is_used_again(cuda):
    """Gradients of another stream, which PyTorch's allocator gives out again as `record_stream` lets it."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch here has no CUDA")
    param = torch.nn.Parameter(torch.tensor(values(0), device="cuda"))
    optimizer, layer, side, places = nbopt.RMSProp(), None, torch.cuda.Stream(), set()
    side.wait_stream(torch.cuda.current_stream())
    for number in range(1, 6):
        grad = torch.tensor(values(number), device="cuda")
        places.add(grad.data_ptr())
        side.wait_stream(torch.cuda.current_stream())
        layer = layer or nbopt.Parameters((param, grad))
        layer.grads = [grad]
        with torch.cuda.stream(side):
            optimizer.optimize([layer], 0)
        grad.record_stream(side)
        layer.grads = [None]
        del grad
        torch.cuda.synchronize()
    assert len(places) < 5
    assert_same([param.detach().cpu().numpy()], expected(nbopt.RMSProp, 5))


def test_pytorchs_graphed_callables():
    """Steps follow forward and backward passes that are replayed."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch here has no CUDA")
    import nbopt.torch

    def trained(graphed):
        torch.manual_seed(0)
        model, inputs = torch.nn.Linear(64, 8, device="cuda"), torch.randn(16, 64, device="cuda")
        optimizer = nbopt.torch.Adam(model.parameters(), lr=1e-2, capturable=True)
        run = torch.cuda.make_graphed_callables(model, (inputs.clone(),)) if graphed else model
        for _ in range(8):
            optimizer.zero_grad(set_to_none=True)
            run(inputs).square().mean().backward()
            optimizer.step()
        return [param.detach() for param in model.parameters()]

    for one, other in zip(trained(True), trained(False)):
        torch.testing.assert_close(one, other)


def test_cupys_capture(cuda):
    """A step is captured from CuPy's current stream, and its graph is a step."""
    cupy = pytest.importorskip("cupy")
    optimizer = nbopt.Adam()
    optimizer.capturable = True
    with cupy.cuda.Stream(non_blocking=True) as stream:
        param, grad = cupy.asarray(values(0)), cupy.asarray(values(1))
        layer = nbopt.Parameters((param, grad))
        optimizer.optimize([layer], 0)
        stream.begin_capture()
        optimizer.optimize([layer], 0)
        graph = stream.end_capture()
        for number in (2, 3, 4):
            grad[:] = cupy.asarray(values(number))
            graph.launch(stream)
        stream.synchronize()
        assert optimizer.t == 4
        assert_same([cupy.asnumpy(param)], expected(nbopt.Adam, 4))
