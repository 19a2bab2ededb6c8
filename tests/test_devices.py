"""Two GPUs in one process: ``pytest -m gpu``, where there are two, or on emulated ones."""

import os
import threading
from functools import partial

import numpy as np
import pytest
from device_checks import assert_same, pairs_of, reference

import nbopt
from nbopt import errors
from nbopt.interface.together import update_together

_problem = nbopt.backends.backend_problem("cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    _problem = "the simulator has one GPU: unset NUMBA_ENABLE_CUDASIM"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_problem is not None, reason=f"needs NVIDIA GPUs: {_problem}"),
]


@pytest.fixture
def both():
    from nbopt_backends.cuda.toolchain import cuda

    if len(cuda.gpus) < 2:
        pytest.skip("there is one GPU, and this needs two")
    return [nbopt.backends._load("cuda")(rng_seed=0, batch_size=8, device_id=k) for k in range(2)]


def job(be, **options):
    with nbopt.use_backend(be):
        optimizer = nbopt.Adam(gradient_clip_norm=0.5, stochastic_round=True)
        optimizer.capturable = options.get("capturable", False)
        return be, optimizer, nbopt.Parameters(*pairs_of(be, 1, ("float32", "bfloat16")))


def step(own):
    be, optimizer, layer = own
    with nbopt.use_backend(be):
        optimizer.optimize([layer], 0)


def found(own):
    return [param.get() for param in own[2].params]


def test_each_gpu_has_plans_of_its_own(both):
    """Two backends take turns, in threads whose current GPU is any; a third has the reference's bits."""
    jobs, expected = [job(be) for be in both], job(reference())
    for _ in range(2):
        for own in (*jobs, expected):
            step(own)

    def elsewhere():
        for own, other in zip(jobs, reversed(both)):
            with other.device.entered():
                step(own)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    step(expected)
    for own in jobs:
        with both[0].device.entered():
            assert_same(found(own), found(expected))


@pytest.mark.rest(where=["gpu"])
def test_streams_and_graphs_of_a_gpu_that_is_not_current(both):
    """A step goes to the stream that its backend is given, and is captured there."""
    from graphs import Graph

    own, expected = job(both[1], capturable=True), job(reference())
    with both[0].device.entered():
        step(own)
        graph = Graph(both[1])
        both[1].stream = graph.stream
        step(own)
        both[1].synchronize()
        with graph.capture():
            step(own)
        graph.replay(2)
        assert own[1].t == 4 and both[1].rng_get_state()["updates"] == 4
    for _ in range(4):
        step(expected)
    assert_same(found(own), found(expected))


def test_memory_of_another_gpu_is_refused(both):
    """Parameters of two GPUs in one layer, and gradients on the wrong one: nothing changes."""
    one, other = (be.array(np.ones(5, np.float32)) for be in both)
    grads = [be.array(np.ones(5, np.float32)) for be in both]
    for pairs in ([(one, grads[0]), (other, grads[1])], [(one, grads[1])]):
        with nbopt.use_backend(both[0]), pytest.raises(errors.LayoutError, match=r"is on GPU 1.*device_id=1"):
            nbopt.RMSProp().optimize([nbopt.Parameters(*pairs)], 0)
    assert (one.get() == 1).all() and (other.get() == 1).all()


def test_one_step_on_several_backends(both):
    """A step over the CPU and two GPUs is whole, and each part has the random bits of the step's count."""
    backends = [nbopt.backends.new_backend("cpu", rng_seed=1, batch_size=8), *both]
    jobs, expected = [], []
    for own, made in ((jobs, backends), (expected, [reference() for _ in backends])):
        own += map(job, made)
        for _, optimizer, _ in own:
            optimizer.gradient_clip_norm = None

    def on(be, columns, update):
        with nbopt.use_backend(be):
            return columns(update)

    def together():
        updates = []
        for be, optimizer, layer in jobs:
            with nbopt.use_backend(be):
                own = optimizer.updates(be, [layer], 0)
            for update in own:
                update.backend, update.columns = be, partial(on, be, update.columns)
            updates += own
        update_together(both[0], updates)

    together()
    layer = jobs[2][2]
    grad = layer.grads[0]
    layer.set_grad(0, both[0].array(np.ones(37, np.float32)))
    before = [found(own) for own in jobs]
    with pytest.raises(errors.LayoutError, match="is on GPU 0"):
        together()
    for own, values in zip(jobs, before):
        assert_same(found(own), values)
    assert both[0].rng_get_state() == {"seed": 0, "updates": 1} and [own[1].t for own in jobs] == [1, 1, 1]
    layer.set_grad(0, grad)
    together()
    for own in expected:
        step(own)
        step(own)
    for own, values in zip(jobs, expected):
        assert_same(found(own), found(values))
