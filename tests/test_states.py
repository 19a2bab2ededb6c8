"""States of every extent: for each element, each parameter, the whole step; and how they begin."""

import copy
import pickle

import numpy as np
import pytest
from helpers import same_bits

import nbopt
from nbopt import State


class Counted(nbopt.Optimizer):
    """A state of each extent."""

    def __init__(self, learning_rate=0.5, name=None):
        super().__init__(name=name)
        self.learning_rate = learning_rate

    def states(self, shape):
        return {
            "start": State(init="param"),
            "times": State(axes=(), init=2.0),
            "total": State(axes="step", init="lr"),
            "momentum": State(),
        }

    def rule(self, step, param, grad, start, times, total, momentum):
        be = self.be
        start[:] = start
        momentum[:] = 0.5 * momentum + grad
        times[:] = times + be.mean(grad)
        total[:] = total + step.sum(be.absolute(grad))
        param[:] = param - step.lr * momentum / times - 0.125 * (param - start) / total


def expected(params, steps):
    """Do the same line by line in float64; return the parameters, what stands beside each, and the total."""
    params = [param.astype(np.float64) for param in params]
    starts, times, momenta = (
        [param.copy() for param in params],
        [2.0] * len(params),
        [0.0 * param for param in params],
    )
    total = 0.5
    for grads in steps:
        total += sum(np.abs(grad).sum() for grad in grads)
        for k, grad in enumerate(grads):
            momenta[k] = 0.5 * momenta[k] + grad
            times[k] += grad.mean() if grad.size else 0.0
            params[k] = params[k] - 0.5 * momenta[k] / times[k] - 0.125 * (params[k] - starts[k]) / total
    return params, starts, times, total, momenta


SHAPES = [(3, 4), (), (5,), (0, 2)]


def steps_of(count, dtype="float32"):
    rng = np.random.default_rng(1)
    return [[rng.uniform(0.5, 1.5, shape).astype(dtype) for shape in SHAPES] for _ in range(count)]


def layer_of(dtype="float32"):
    rng = np.random.default_rng(0)
    return nbopt.Parameters(
        *((np.asarray(rng.normal(size=shape), dtype), np.zeros(shape, dtype)) for shape in SHAPES)
    )


def run(optimizer, layer, steps):
    for grads in steps:
        layer.grads = grads
        optimizer.optimize([layer], 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-14)])
@pytest.mark.rest("cpu-float32-*")
def test_every_extent(host_backend, dtype, tolerance):
    """Each state has the shape that it was declared with, and goes on from its beginning."""
    optimizer, layer, steps = Counted(), layer_of(dtype), steps_of(3, dtype)
    before = [param.copy() for param in layer.params]
    run(optimizer, layer, steps)
    params, starts, times, total, momenta = expected(before, steps)
    for k, shape in enumerate(SHAPES):
        start, time, momentum = layer.states[k]
        assert (start.shape, time.shape, momentum.shape) == (shape, (1,) * len(shape), shape)
        for found, wanted in (
            (layer.params[k], params[k]),
            (start.get(), starts[k]),
            (time.get(), times[k]),
            (momentum.get(), momenta[k]),
        ):
            np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(optimizer.step_states["total"].get(), [total], rtol=tolerance)


def test_same_bits_of_backends():
    found = {}
    for name in ("reference", "cpu"):
        with nbopt.use_backend(name, rng_seed=0):
            layer = layer_of()
            run(Counted(), layer, steps_of(3))
            found[name] = [*layer.params, *(state.get() for states in layer.states for state in states)]
    assert all(map(same_bits, found["reference"], found["cpu"]))


@pytest.mark.parametrize("resume", ["state_dict", "file", "pickle", "deepcopy"])
def test_resumes(host_backend, tmp_path, resume):
    """A run that was saved goes on with the same bits."""
    optimizer, layer, steps = Counted(), layer_of(), steps_of(4)
    run(optimizer, layer, steps[:2])
    if resume in ("state_dict", "file"):
        other, twin = Counted(), layer_of()
        if resume == "file":
            nbopt.save(tmp_path / "run.nbopt", optimizer, [layer])
            nbopt.load(tmp_path / "run.nbopt", other, [twin])
        else:
            other.load_state_dict(optimizer.state_dict([layer]), [twin])
    else:
        other, twin = (
            pickle.loads(pickle.dumps((optimizer, layer)))
            if resume == "pickle"
            else copy.deepcopy((optimizer, layer))
        )
    run(optimizer, layer, steps[2:])
    run(other, twin, steps[2:])
    assert all(map(same_bits, layer.params, twin.params))
    assert same_bits(optimizer.step_states["total"].get(), other.step_states["total"].get())


def test_copies_have_numbers_of_their_own(host_backend):
    """A copied optimizer's state of the whole step is another one's."""
    optimizer, layer, steps = Counted(), layer_of(), steps_of(2)
    run(optimizer, layer, steps[:1])
    other, before = copy.copy(optimizer), optimizer.step_states["total"].get()
    run(other, layer_of(), steps[1:])
    assert (
        same_bits(optimizer.step_states["total"].get(), before)
        and other.step_states["total"].get()[0] > before[0]
    )


def test_a_state_of_another_shape_is_refused(host_backend):
    layer = layer_of()
    run(Counted(), layer, steps_of(1))
    layer.states[0][1] = host_backend.zeros((3, 4), name="Counted.times")
    with pytest.raises(nbopt.errors.ShapeError, match=r"its state times has shape \(3, 4\)"):
        run(Counted(), layer, steps_of(1))


WRONG = {
    "an int": (State(axes=0), r"a tuple of ints such as \(0,\), not 0"),
    "a word": (State(axes="rows"), r"a tuple of ints such as \(0,\), not 'rows'"),
    "axes of floats": (State(axes=(0.0,)), "a tuple of ints"),
    "no such axis": (State(axes=(4,)), "can't stand beside a parameter with 2 axes"),
    "begins as a word": (State(init="zero"), "can't begin as init='zero': it is a number"),
    "no rate": (State(init="lr"), "the optimizer has no learning rate"),
    "one number of a parameter": (
        State(axes=(), init="param"),
        'only one with axes="all" can begin as the parameter',
    ),
    "one number of all": (State(axes="step", init="param"), "can't begin as init='param'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_is_refused(host_backend, name):
    """What a state can't be has an error of its own, and nothing changes."""
    declared, message = WRONG[name]

    class Wrong(nbopt.Optimizer):
        def states(self, shape):
            return {"kept": declared}

        def rule(self, step, param, grad, kept):
            kept[:] = kept
            param[:] = param - grad

    param = np.ones((2, 3), np.float32)
    layer, optimizer = nbopt.Parameters((param, param.copy())), Wrong()
    with pytest.raises(nbopt.errors.StateError, match=message):
        optimizer.optimize([layer], 0)
    assert (optimizer.t, layer.states, optimizer.step_states) == (0, [[]], {}) and (param == 1).all()
