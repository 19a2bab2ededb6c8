"""Steps that are captured into CUDA graphs: ``pytest -m gpu``, on a GPU or the emulated one.

On the latter, tests/emulator/driver.cpp refuses what a driver refuses during a capture.
"""

import os

import numpy as np
import pytest
from device_checks import assert_same, pairs_of, reference

import nbopt
from nbopt import errors

_problem = nbopt.backends.backend_problem("cuda")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    _problem = "the simulator has no graphs: unset NUMBA_ENABLE_CUDASIM"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_problem is not None, reason=f"needs an NVIDIA GPU: {_problem}"),
]

RULES = {
    "rmsprop": (nbopt.RMSProp, ("float32",)),
    "adam with a norm clip": (lambda: nbopt.Adam(gradient_clip_norm=0.5), ("float32", "float64")),
    "stochastic rounding": (lambda: nbopt.Adam(stochastic_round=True, state_dtype="bfloat16"), ("bfloat16",)),
    "lamb": (nbopt.LAMB, ("float32",)),
    "skipping": (nbopt.Adam, ("float32",)),
}


@pytest.fixture
def cuda():
    with nbopt.use_backend("cuda", rng_seed=0, batch_size=8) as be:
        yield be
        be.synchronize()


def new_graph(be):
    """A graph, by bindings of the driver that there are beside numba-cuda alone."""
    from graphs import Graph

    return Graph(be)


class Run:
    """An optimizer and a layer, whose gradients are other ones in each step, in the same memory."""

    def __init__(self, be, make, dtypes, capturable=True):
        self.be, self.dtypes, self.number = be, dtypes, 0
        self.optimizer, self.layer = make(), nbopt.Parameters(*pairs_of(be, 1, dtypes))
        self.optimizer.capturable = capturable
        self.graph = None

    def eager(self):
        with nbopt.use_backend(self.be):
            self.optimizer.optimize([self.layer], 0)

    def capture(self):
        self.graph = new_graph(self.be)
        with self.graph.capture():
            self.eager()

    def steps(self, count, how):
        """Take steps, each with other gradients; the third of a run has one that is infinite."""
        for _ in range(count):
            self.number += 1
            for (_, new), old in zip(pairs_of(reference(), 100 + self.number, self.dtypes), self.layer.grads):
                values = new.get()
                if self.number == 3 and values.size == 37 and self.optimizer.skip_nonfinite:
                    values[5] = np.inf
                old.set(values)
            how()

    def found(self):
        states = [state.get() for states in self.layer.states for state in states]
        return [param.get() for param in self.layer.params] + states


@pytest.mark.parametrize("name", RULES)
@pytest.mark.rest("adam *", "rmsprop", "stochastic *")
def test_replays_have_the_bits_of_steps(cuda, name):
    """A step, 20 replays, a step, a replay: as 23 steps, and the counters go on."""
    make, dtypes = RULES[name]
    one, other = Run(cuda, make, dtypes), Run(reference(), make, dtypes, False)
    for run in (one, other):
        run.optimizer.skip_nonfinite = name == "skipping"
    one.steps(1, one.eager)
    one.capture()
    assert one.optimizer.t == 1 and cuda.rng_get_state()["updates"] == 1
    one.steps(20, one.graph.replay)
    assert one.optimizer.t == 21 and cuda.rng_get_state()["updates"] == 21
    one.steps(1, one.eager)
    one.steps(1, one.graph.replay)
    other.steps(23, other.eager)
    assert one.optimizer.t == 23 and cuda.rng_get_state() == other.be.rng_get_state()
    assert one.optimizer.skipped == other.optimizer.skipped == (name == "skipping")
    assert_same(one.found(), other.found())


@pytest.mark.rest
def test_a_checkpoint_goes_on_in_replays(cuda, monkeypatch):
    """What is loaded is written in place, so a graph of before goes on from it. No step reads back."""
    run = Run(cuda, *RULES["adam with a norm clip"])
    rate = cuda.array([1e-3], "float64")
    run.optimizer.skip_nonfinite = True
    run.optimizer.learning_rate = rate
    with monkeypatch.context() as patched:
        patched.setattr(cuda.device, "copy_out", None)
        run.eager()
        run.eager()
    run.capture()
    saved = run.optimizer.state_dict([run.layer])
    run.graph.replay(3)
    rate.fill(0.5)
    run.graph.replay()
    first = run.found()
    assert run.optimizer.t == 6
    rate.fill(1e-3)
    run.optimizer.load_state_dict(saved, [run.layer])
    assert run.optimizer.t == 2 and cuda.rng_get_state() == saved["rng"]
    run.graph.replay(3)
    rate.fill(0.5)
    run.graph.replay()
    assert_same(first, run.found())
    run.optimizer.t = 0
    run.graph.replay()
    assert run.optimizer.t == 1


def test_what_cannot_be_captured_is_refused_and_the_capture_goes_on(cuda):
    """Each error says what to type; afterwards the same capture takes a step."""
    run, plain = Run(cuda, nbopt.RMSProp, ("float32",)), Run(cuda, nbopt.RMSProp, ("float32",), False)
    other = Run(cuda, nbopt.RMSProp, ("float32",))
    run.eager()
    plain.eager()
    values, t = cuda.array([1.0]), run.optimizer.t
    graph = new_graph(cuda)
    with graph.capture():
        with pytest.raises(errors.StateError, match=r"write optimizer\.capturable = True"):
            plain.eager()
        with pytest.raises(errors.StateError, match=r"first step while.*call optimizer\.optimize"):
            other.eager()
        run.eager()
        with pytest.raises(errors.StateError, match=r"has no states yet.*once before the capture"):
            run.optimizer.optimize([run.layer, other.layer], 0)
        for forbidden in (
            values.get,
            lambda: values.fill(2.0),
            lambda: cuda.ones(3),
            lambda: run.optimizer.t,
        ):
            with pytest.raises(errors.StateError, match=r"optimizer\.capturable = True and nothing else"):
                forbidden()
    assert (plain.optimizer.t, other.optimizer.t, run.optimizer.t) == (1, 0, t)
    graph.replay()
    run.eager()
    again = Run(reference(), nbopt.RMSProp, ("float32",), False)
    for _ in range(3):
        again.eager()
    assert run.optimizer.t == 3
    assert_same(run.found(), again.found())


def test_what_graphs_do_not_know_is_told_of(cuda):
    """The next step that is no replay sees gradients in other memory, and other numbers; once a capture."""
    run = Run(cuda, nbopt.RMSProp, ("float32",))
    run.eager()
    run.capture()
    run.eager()
    run.layer.grads = [grad for _, grad in pairs_of(cuda, 2, ("float32",))]
    with pytest.warns(RuntimeWarning, match="gradients are in other memory than at the capture"):
        run.eager()
    run.eager()
    run.capture()
    run.optimizer.learning_rate = 0.5
    with pytest.warns(RuntimeWarning, match="a hyper-parameter has changed since a step was captured"):
        run.eager()
    run.eager()


@pytest.mark.rest(where=["gpu"])
def test_optimizers_of_one_step(cuda):
    """A `MultiOptimizer` is captured as a whole: its optimizers count, and one of them sums a norm."""
    found = []
    for be, capturable in ((cuda, True), (reference(), False)):
        with nbopt.use_backend(be):
            layers = [nbopt.Parameters(*pairs_of(be, seed, ("float32",))) for seed in (1, 2)]
            members = nbopt.RMSProp(), nbopt.Adam(gradient_clip_norm=0.5)
            optimizer = nbopt.MultiOptimizer({"default": members[0], layers[1].name: members[1]})
            for member in members:
                member.capturable = capturable
            optimizer.optimize(layers, 0)
            if capturable:
                graph = new_graph(be)
                with graph.capture():
                    optimizer.optimize(layers, 0)
                graph.replay(3)
            else:
                for _ in range(3):
                    optimizer.optimize(layers, 0)
            assert [member.t for member in members] == [4, 4]
            found.append([param.get() for layer in layers for param in layer.params])
    assert_same(*found)


def test_what_a_driver_refuses(cuda):
    """The emulated driver is as strict as a real one in what the tests above depend on."""
    from cuda.bindings import driver
    from graphs import _done

    mode, codes = driver.CUstreamCaptureMode, driver.CUresult
    with cuda.device.entered():
        stream, event = _done(driver.cuStreamCreate(1)), _done(driver.cuEventCreate(2))
        memory, values = _done(driver.cuMemAlloc(64)), np.ones(16, np.float32)
        _done(driver.cuEventRecord(event, 0))
        for refused, call in (
            (codes.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, lambda: driver.cuMemAlloc(64)),
            (codes.CUDA_ERROR_STREAM_CAPTURE_ISOLATION, lambda: driver.cuStreamWaitEvent(stream, event, 0)),
            (codes.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, lambda: driver.cuStreamSynchronize(stream)),
            (
                codes.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                lambda: driver.cuMemcpyDtoHAsync(values.ctypes.data, memory, 64, stream),
            ),
        ):
            _done(driver.cuStreamBeginCapture(stream, mode.CU_STREAM_CAPTURE_MODE_GLOBAL))
            assert call()[0] == refused
            assert driver.cuStreamEndCapture(stream)[0] == codes.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        _done(driver.cuStreamBeginCapture(stream, mode.CU_STREAM_CAPTURE_MODE_GLOBAL))
        with cuda.device.relaxed():
            _done(driver.cuMemFree(_done(driver.cuMemAlloc(64))))
        assert driver.cuStreamEndCapture(stream)[0] == codes.CUDA_SUCCESS
        _done(driver.cuMemFree(memory))
