"""A step happens as a whole or not at all.

What fails in its middle leaves values, states and counters as they were.
"""

import os
import signal
import threading

import numpy as np
import pytest
from helpers import layers_of, values_of

import nbopt
from nbopt import errors
from nbopt_backends.meaning.reference import Interpreter

KINDS = ["two layers", "two dtypes", "norm clip", "two optimizers"]


class Training:
    """An optimizer and two layers, always the same ones; two trainings of one kind are twins."""

    def __init__(self, kind):
        rng = np.random.default_rng(2)
        second = np.float64 if kind == "two dtypes" else np.float32
        self.layers = [*layers_of([(5, 3)], rng), *layers_of([7], rng, second)]
        self.layers[1].name = "second"
        self.optimizers = [nbopt.RMSProp(gradient_clip_norm=0.01 if kind == "norm clip" else None)]
        if kind == "two optimizers":
            self.optimizers.append(nbopt.Adam())
            self.optimizers.append(
                nbopt.MultiOptimizer({"default": self.optimizers[0], "second": self.optimizers[1]})
            )

    def step(self):
        self.optimizers[-1].optimize(self.layers, 0)

    def everything(self):
        """All that a step changes, besides the backend's update count."""
        states = [len(states) for layer in self.layers for states in layer.states]
        return (
            [value.tobytes() for value in values_of(self.layers)],
            states,
            [optimizer.t for optimizer in self.optimizers],
        )


def failing(function, number, error):
    """A stand-in for `function` that raises `error` instead of its call of this number, from 1."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) == number:
            raise error
        return function(*args)

    return call


def assert_nothing_happens(be, training, error):
    """The step raises `error` and changes nothing; the count of updates is part of the backend's state."""
    before, count = training.everything(), be.rng_get_state()
    with pytest.raises(error):
        training.step()
    assert training.everything() == before
    assert be.rng_get_state() == count


def assert_goes_on_as(twin, training):
    """The next steps are those of a twin to which nothing has happened."""
    for _ in range(2):
        before = twin.everything()
        twin.step()
        training.step()
        assert twin.everything() != before
        assert training.everything() == twin.everything()


# --- failures before the first launch ---

each_error = pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])


@each_error
@pytest.mark.parametrize(
    "kind, number",
    [("two layers", 1), ("two layers", 2), ("norm clip", 2), ("two optimizers", 2), ("two optimizers", 3)],
)
def test_an_allocation_that_fails(backend, monkeypatch, kind, number, error):
    training = Training(kind)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "allocate", failing(backend.allocate, number, error))
        assert_nothing_happens(backend, training, error)
    assert_goes_on_as(Training(kind), training)


@each_error
def test_an_allocation_that_fails_for_a_layer_that_came_later(backend, monkeypatch, error):
    trainings = Training("two layers"), Training("two layers")
    for each in trainings:
        each.optimizers[-1].optimize(each.layers[:1], 0)
    training, twin = trainings
    with monkeypatch.context() as patch:
        patch.setattr(backend, "allocate", failing(backend.allocate, 1, error))
        assert_nothing_happens(backend, training, error)
    assert_goes_on_as(twin, training)


@pytest.fixture
def cpu(monkeypatch):
    """NumbaCPU, without the kernels that this process has compiled so far."""
    numba_cpu = pytest.importorskip("nbopt_backends.cpu.backend")
    monkeypatch.setattr(numba_cpu.NumbaCPU, "_kernels", {})
    with nbopt.use_backend("cpu", rng_seed=0) as be:
        yield be


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "kind, number", [("two layers", 1), ("two dtypes", 1), ("two dtypes", 2), ("two optimizers", 2)]
)
def test_a_compilation_that_fails(cpu, monkeypatch, kind, number, error):
    training = Training(kind)
    with monkeypatch.context() as patch:
        patch.setattr(type(cpu), "_compiled_module", failing(type(cpu)._compiled_module, number, error))
        assert_nothing_happens(cpu, training, error)
    assert_goes_on_as(Training(kind), training)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_compilation_of_a_stage_that_fails(cpu, monkeypatch, number):
    """With a norm clip there are three: the sum, the factor, and the update."""
    training = Training("norm clip")
    with monkeypatch.context() as patch:
        patch.setattr(
            type(cpu), "_compiled_module", failing(type(cpu)._compiled_module, number, RuntimeError)
        )
        assert_nothing_happens(cpu, training, RuntimeError)
    assert_goes_on_as(Training("norm clip"), training)


def test_a_compilation_of_the_driver_that_fails(cpu, monkeypatch):
    """What runs the stages is compiled before anything changes."""
    training = Training("norm clip")
    with monkeypatch.context() as patch:
        patch.setattr(type(cpu), "_run_stages", failing(type(cpu)._run_stages, 1, RuntimeError))
        assert_nothing_happens(cpu, training, RuntimeError)
    assert_goes_on_as(Training("norm clip"), training)


def test_a_compilation_that_fails_in_an_assignment(cpu, monkeypatch):
    out, x = cpu.ones(4), cpu.ones(4)
    count = cpu.rng_get_state()
    monkeypatch.setattr(type(cpu), "_compiled_module", failing(type(cpu)._compiled_module, 1, RuntimeError))
    with pytest.raises(RuntimeError):
        out[:] = x * 3
    assert (out.get() == 1).all()
    assert cpu.rng_get_state() == count


def test_an_allocation_that_fails_in_an_assignment(backend, monkeypatch):
    out, x = backend.ones(4), backend.ones(4)
    count = backend.rng_get_state()
    monkeypatch.setattr(backend, "allocate", failing(backend.allocate, 1, MemoryError))
    with pytest.raises(MemoryError):
        out[:] = x + backend.mean(x * 3)  # the product goes to a tensor of its own
    assert (out.get() == 1).all()
    assert backend.rng_get_state() == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.rest(where=["gpu"])
def test_bad_input_in_the_last_layer(backend, kind):
    training = Training(kind)
    good = training.layers[1].grads[0]
    training.layers[1].grads = [np.ones(8, good.dtype)]
    assert_nothing_happens(backend, training, errors.ShapeError)
    training.layers[1].grads = [good]
    assert_goes_on_as(Training(kind), training)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_beside_a_new_gradient_that_is_taken_back(backend, kind):
    training, twin = Training(kind), Training(kind)
    for each in (training, twin):
        each.step()
    good = [layer.grads[0] for layer in training.layers]
    training.layers[0].set_grad(0, np.full_like(good[0], 100))
    training.layers[1].set_grad(0, np.ones(8, good[1].dtype))
    assert_nothing_happens(backend, training, errors.ShapeError)
    for layer, grad in zip(training.layers, good):
        layer.set_grad(0, grad)
    assert_goes_on_as(twin, training)


class Moody(nbopt.Optimizer):
    """Raises an error of its own in the middle of its rule, as long as `divisor` is 0."""

    state_names = ("mean",)
    divisor = 0

    def rule(self, step, param, grad, mean):
        mean[:] = grad
        param[:] = param - (1 / float(self.divisor)) * mean


@pytest.mark.rest(where=["gpu"])
def test_an_error_in_the_rule_of_the_second_optimizer_is_passed_on(backend):
    training, twin = Training("two optimizers"), Training("two optimizers")
    for each in (training, twin):
        moody = Moody()
        each.optimizers[1] = each.optimizers[2].optimizer_mapping["second"] = moody
    assert_nothing_happens(backend, training, ZeroDivisionError)
    for each in (training, twin):
        each.optimizers[1].divisor = 3
    assert_goes_on_as(twin, training)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prepare", [nbopt.compile, nbopt.explain])
def test_a_step_that_is_only_prepared_changes_nothing(backend, kind, prepare):
    training = Training(kind)
    before, count = training.everything(), backend.rng_get_state()
    for _ in range(2):
        prepare(training.optimizers[-1], training.layers)
        assert training.everything() == before
        assert backend.rng_get_state() == count
    assert_goes_on_as(Training(kind), training)


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_the_user_empties_start_afresh(backend, kind):
    training, fresh = Training(kind), Training(kind)
    training.step()
    for layer, other in zip(training.layers, fresh.layers):
        other.params[0][...] = layer.params[0]
        layer.states[0].clear()
    for optimizer in training.optimizers:
        optimizer.t = 0
    assert_goes_on_as(fresh, training)


# --- Ctrl-C between launches ---


def after_the_first_launch(backend, monkeypatch, act):
    """Call `act` in the middle of a step: after its first pass.

    If one call into compiled code runs all passes, it is called after that. Returns the list to which every
    pass or call is added.
    """
    launches = []

    def launched():
        launches.append("launch")
        if len(launches) == 1:
            act()

    if backend.name == "reference":
        real = Interpreter.run_pass

        def run_pass(*args):
            real(*args)
            launched()

        monkeypatch.setattr(Interpreter, "run_pass", run_pass)
    elif backend.name == "cpu":
        prepare = type(backend).prepare

        def prepared(self, updates):
            run = prepare(self, updates)
            return lambda count: (run(count), launched())

        monkeypatch.setattr(type(backend), "prepare", prepared)
    else:
        pytest.skip(f"not known here: what launches a kernel of the backend {backend.name}")
    return launches


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def main_thread():
    """Python handles signals in the main thread only, and pytest-xdist may run tests in another."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("this test needs the main thread")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_ctrl_c_takes_effect_after_the_last_launch(backend, monkeypatch, main_thread, kind, times):
    training, twin = Training(kind), Training(kind)
    handler, count = signal.getsignal(signal.SIGINT), backend.rng_get_state()["updates"]
    twin.step()
    with monkeypatch.context() as patch:
        launches = after_the_first_launch(backend, patch, lambda: [press_ctrl_c() for _ in range(times)])
        with pytest.raises(KeyboardInterrupt):
            training.step()
    assert len(launches) > (backend.name == "reference")
    assert training.everything() == twin.everything()
    assert backend.rng_get_state()["updates"] == count + 2
    assert signal.getsignal(signal.SIGINT) is handler
    assert_goes_on_as(twin, training)


def test_a_handler_of_the_users_own_runs_once_and_after_the_step(backend, monkeypatch, main_thread):
    training, twin = Training("two optimizers"), Training("two optimizers")
    twin.step()
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append((number, training.everything())))
    try:
        after_the_first_launch(backend, monkeypatch, press_ctrl_c)
        training.step()
        assert seen == [(signal.SIGINT, twin.everything())]
        press_ctrl_c()
        assert len(seen) == 2  # the handler is in place again
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_ctrl_c_stays_ignored(backend, monkeypatch, main_thread):
    training, twin = Training("two dtypes"), Training("two dtypes")
    twin.step()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        after_the_first_launch(backend, monkeypatch, press_ctrl_c)
        training.step()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert training.everything() == twin.everything()


def test_a_step_in_another_thread_leaves_signals_alone(backend, monkeypatch):
    training, twin = Training("two dtypes"), Training("two dtypes")
    twin.step()
    handler = signal.getsignal(signal.SIGINT)
    seen = []
    after_the_first_launch(backend, monkeypatch, lambda: seen.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=training.step)
    thread.start()
    thread.join()
    assert seen == [handler]
    assert training.everything() == twin.everything()
