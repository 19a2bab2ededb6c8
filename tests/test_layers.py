"""What optimizers meet outside their formulas.

Layers change, gradients are missing; there are several optimizers, schedules and checkpoints.
"""

import copy
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from helpers import same_bits

import nbopt
from nbopt.errors import LayerError, LayoutError, ShapeError


def ones(*shape):
    return np.ones(shape, np.float32)


def momentum():
    return nbopt.GradientDescentMomentum(0.5, 0.5)


class Plain:
    """A layer of plain arrays."""

    def __init__(self, *pairs):
        self.entries = [(pair, []) for pair in pairs]

    def get_params(self):
        return self.entries


# --- replaced arrays ---


def test_new_params(backend, tmp_path):
    """A step after ``layer.params = [new]`` updates the new array and leaves the old one.

    `save` writes the new one.
    """
    old, new = ones(3), 5 * ones(3)
    layer, optimizer = nbopt.Parameters((old, ones(3))), momentum()
    optimizer.optimize([layer], 0)
    layer.params = [new]
    assert layer.params[0] is new
    optimizer.optimize([layer], 0)
    np.testing.assert_array_equal(old, 0.5)
    np.testing.assert_array_equal(new, 4.25)
    nbopt.save(tmp_path / "run", optimizer, [layer])
    new[:] = 0
    nbopt.load(tmp_path / "run", optimizer, [layer])
    np.testing.assert_array_equal(layer.params[0], 4.25)


def test_new_params_of_another_number():
    """As many parameters are needed as there are, and nothing changes otherwise."""
    layer = nbopt.Parameters((ones(3), ones(3)))
    before = layer.params
    with pytest.raises(LayerError, match="1 parameters"):
        layer.params = [ones(3), ones(3)]
    assert layer.params is before


@pytest.mark.parametrize("replaced", ["params", "grads", "states"])
def test_changed_flag(host_backend, replaced):
    """A changed ``writeable`` flag is seen when the parameter, its gradient or its states are replaced."""
    param = ones(3)
    layer, optimizer = nbopt.Parameters((param, ones(3))), momentum()
    optimizer.optimize([layer], 0)
    param.flags.writeable = False
    setattr(layer, replaced, getattr(layer, replaced) if replaced != "states" else [[]])
    with pytest.raises(LayoutError, match="read-only"):
        optimizer.optimize([layer], 0)
    assert optimizer.t == 1


@pytest.mark.parametrize("reset", ["whole", "item", "clear", "append"])
def test_new_states(backend, reset):
    """A list of states that is replaced or emptied starts afresh at the next step."""
    param = ones(3)
    layer, optimizer = nbopt.Parameters((param, ones(3))), momentum()
    optimizer.optimize([layer], 0)
    if reset == "whole":
        layer.states = [[]]
    elif reset == "item":
        layer.states[0] = []
    elif reset == "clear":
        layer.states[0].clear()
    else:
        layer.states.clear()
        layer.states.append([])
    optimizer.optimize([layer], 0)
    np.testing.assert_array_equal(param, 0.0)
    np.testing.assert_array_equal(layer.states[0][0].get(), -0.5)


def test_states_of_another_number(host_backend):
    """As many lists of states are needed as there are parameters."""
    layer = nbopt.Parameters((ones(3), ones(3)))
    with pytest.raises(LayerError, match="1 lists of states"):
        layer.states = [[], []]
    layer.states.append([])
    with pytest.raises(LayerError, match="1 lists of states"):
        momentum().optimize([layer], 0)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies(host_backend, copied):
    """A copy of a layer counts the changes of its states on its own."""
    layer, optimizer = nbopt.Parameters((ones(3), ones(3))), momentum()
    optimizer.optimize([layer], 0)
    other = copied(layer)
    optimizer.optimize([other], 0)
    other.states[0] = []
    optimizer.optimize([other], 0)
    np.testing.assert_array_equal(other.states[0][0].get(), -0.5)


# --- missing gradients ---


@pytest.mark.parametrize("kind", [nbopt.Parameters, Plain])
def test_missing_gradient(backend, kind):
    """A parameter whose gradient is None is left out of the step.

    The others are updated, and both are again in the next step.
    """
    a, b = ones(3), ones(2)
    layer, optimizer = kind((a, ones(3)), (b, None)), momentum()
    for _ in range(2):
        optimizer.optimize([layer], 0)
    np.testing.assert_array_equal(a, -0.25)
    np.testing.assert_array_equal(b, 1)
    assert [len(states) for _, states in layer.get_params()] == [1, 0]
    if kind is nbopt.Parameters:
        layer.grads = [None, ones(2)]
    else:
        layer.entries = [((a, None), layer.entries[0][1]), ((b, ones(2)), layer.entries[1][1])]
    optimizer.optimize([layer], 0)
    np.testing.assert_array_equal(a, -0.25)
    np.testing.assert_array_equal(b, 0.5)
    assert optimizer.t == 3


def test_no_gradient_at_all(backend):
    """A call without any gradient changes nothing, as one without layers."""
    layer, optimizer = nbopt.Parameters((ones(3), None)), momentum()
    optimizer.optimize([layer], 0)
    assert optimizer.t == 0 and layer.states == [[]] and backend.rng_get_state()["updates"] == 0


def test_missing_gradient_and_random_bits(backend):
    """The random bits of a parameter stay where they are if others have no gradient."""

    def rounded(kept):
        backend.rng_set_state({"seed": 5, "updates": 0})
        params = [np.ones(n, ml_dtypes.bfloat16) for n in (300, 70, 200)]
        optimizer = nbopt.GradientDescentMomentum(0.001, 0.0, stochastic_round=True)
        layer = nbopt.Parameters(*((param, ones(*param.shape)) for param in params))
        for rows in kept:
            layer.grads = [ones(*param.shape) if row in rows else None for row, param in enumerate(params)]
            optimizer.optimize([layer], 0)
        return params

    whole = rounded([(0, 1, 2)])
    for rows in [(1, 2), (0, 2), (2,)]:
        for row, param in enumerate(rounded([rows])):
            assert same_bits(param, whole[row]) == (row in rows)
    # A plan that has seen the same tensors at other places is not taken for this one.
    alone = np.ones(200, ml_dtypes.bfloat16)
    optimizer = nbopt.GradientDescentMomentum(0.001, 0.0, stochastic_round=True)
    last = nbopt.Parameters((alone, ones(200)))
    first = nbopt.Parameters(
        (np.ones(300, ml_dtypes.bfloat16), None), (np.ones(70, ml_dtypes.bfloat16), None)
    )
    for layers, same in (([last], False), ([first, last], True)):
        backend.rng_set_state({"seed": 5, "updates": 0})
        alone[:] = 1
        optimizer.optimize(layers, 0)
        assert same_bits(alone, whole[2]) == same


def test_norm_of_some_gradients(backend):
    """The norm is over the gradients that there are, in the step and in `clip_gradient_norm`."""
    param = ones(4)
    layer = nbopt.Parameters((param, ones(4)), (ones(2), None))
    optimizer = nbopt.GradientDescentMomentum(1.0, 0.0, gradient_clip_norm=1.0)
    assert optimizer.clip_gradient_norm(nbopt.get_param_list([layer]), 1.0) == 0.5
    optimizer.optimize([layer], 0)
    np.testing.assert_array_equal(param, 0.5)


def test_missing_gradient_in_a_checkpoint(host_backend):
    """A parameter without gradient is saved and loaded like the others."""
    param, optimizer = 3 * ones(2), momentum()
    layer = nbopt.Parameters((ones(3), ones(3)), (param, None))
    optimizer.optimize([layer], 0)
    state = optimizer.state_dict([layer])
    param[:] = 0
    optimizer.load_state_dict(state, [layer])
    np.testing.assert_array_equal(param, 3)


# --- gradients that are numbers ---


@pytest.mark.parametrize("grad", [np.float32(6), np.float64(6), 6.0, 6, ml_dtypes.bfloat16(6)])
@pytest.mark.parametrize("kind", [nbopt.Parameters, Plain])
def test_number_as_gradient(backend, kind, grad):
    """A number is the gradient of a parameter without dimensions, with its value of now at each step."""
    param = np.array(1.0, np.float32)
    layer, optimizer = kind((param, grad)), nbopt.GradientDescentMomentum(0.5, 0.0)
    optimizer.optimize([layer], 0)
    assert param == -2
    if kind is nbopt.Parameters:
        layer.grads = [grad / 2]
        optimizer.optimize([layer], 0)
        assert param == -3.5


def test_number_for_a_vector(backend):
    """It is refused for any other parameter, by its shape."""
    with pytest.raises(ShapeError, match=r"\(3,\).* gradient \(\)"):
        momentum().optimize([nbopt.Parameters((ones(3), 6.0))], 0)


# --- several optimizers ---


def test_multi_counts_its_calls(backend):
    """MultiOptimizer.t counts its calls with parameters, and a checkpoint holds it."""
    layer, empty = nbopt.Parameters((ones(3), ones(3)), name="a"), nbopt.Parameters()
    optimizer = nbopt.MultiOptimizer({"default": momentum(), "a": momentum()})
    for layers in ([layer], [layer, empty], [empty], []):
        optimizer.optimize(layers, 0)
    nbopt.compile(optimizer, [layer])
    assert optimizer.t == 2
    state = optimizer.state_dict([layer])
    optimizer.optimize([layer], 0)
    optimizer.load_state_dict(state, [layer])
    assert optimizer.t == 2
    with pytest.raises(nbopt.errors.ArgumentError, match="t must be an int"):
        optimizer.t = "2"


@pytest.mark.parametrize("alone", [True, False])
def test_multi_counts_calls_of_neons_way(host_backend, alone):
    """So it does where an optimizer overrides `optimize`."""

    class Neons(nbopt.Optimizer):
        def optimize(self, layer_list, epoch):
            for (param, grad), _ in nbopt.get_param_list(layer_list):
                param[:] = param - grad

    layers = [nbopt.Parameters((ones(3), ones(3)), name="a"), nbopt.Parameters((ones(3), ones(3)), name="b")]
    optimizer = nbopt.MultiOptimizer({"default": Neons(), "b": Neons() if alone else momentum()})
    for _ in range(2):
        optimizer.optimize(layers, 0)
    assert optimizer.t == 2


@pytest.mark.rest(where=["gpu"])
def test_multi_counts_skipped_calls(backend):
    """MultiOptimizer.skipped is how many of its calls were skipped, and is set on its optimizers."""
    first, second = momentum(), momentum()
    first.skip_nonfinite = second.skip_nonfinite = True
    layers = [
        nbopt.Parameters((ones(3), ones(3)), name="a"),
        nbopt.Parameters((ones(3), np.inf * ones(3)), name="b"),
    ]
    optimizer = nbopt.MultiOptimizer({"default": first, "b": second})
    optimizer.optimize(layers, 0)
    assert (optimizer.skipped, optimizer.t) == (1, 1)
    state = optimizer.state_dict(layers)
    first.skipped = second.skipped = 0
    optimizer.load_state_dict(state, layers)
    assert optimizer.skipped == first.skipped == second.skipped == 1
    with pytest.raises(nbopt.errors.ArgumentError, match="on each of its optimizers"):
        optimizer.skipped = 0
    with pytest.raises(nbopt.errors.ArgumentError, match="one of its optimizers"):
        optimizer.skipped_tensor  # noqa: B018


@pytest.mark.parametrize("inside", [False, True])
def test_key_of_no_layer(host_backend, inside):
    """A key of MultiOptimizer that no layer matches is warned of, once."""
    layers = [nbopt.Parameters((ones(3), ones(3)), name="linear")]
    optimizer = nbopt.MultiOptimizer({"default": momentum(), "linaer": momentum(), "Parameters": momentum()})
    if inside:
        optimizer = nbopt.MultiOptimizer({"default": optimizer})
    with pytest.warns(UserWarning, match="'linaer', keys of MultiOptimizer.*'linear'") as caught:
        for _ in range(3):
            optimizer.optimize(layers, 0)
    assert len(caught) == 1


class Forgetful:
    """A layer that gives a new list of states at each call."""

    def __init__(self):
        self.param, self.grad = ones(3), ones(3)

    def get_params(self):
        return (self.param, self.grad), []


@pytest.mark.parametrize("multi", [False, True])
def test_lost_states(host_backend, multi):
    """A layer that loses its states at each step is warned of, once.

    One that keeps them, or was emptied, is not.
    """
    optimizer = nbopt.MultiOptimizer({"default": momentum()}) if multi else momentum()
    layer = nbopt.Parameters((ones(3), ones(3)))
    optimizer.optimize([layer], 0)
    layer.states[0].clear()
    optimizer.optimize([layer], 0)
    forgetful = Forgetful()
    with pytest.warns(UserWarning, match="Forgetful.*lost after each step") as caught:
        for _ in range(3):
            optimizer.optimize([layer, forgetful], 0)
    assert len(caught) == 1


# --- schedules without bounds ---

GROWING = {
    "every epoch": (nbopt.Schedule(1, 2.0), 2000),
    "listed epochs": (nbopt.Schedule([1, 2], 1e200), 2),
    "power": (nbopt.PowerSchedule(1, 2.0), 2000),
    "shift": (nbopt.ShiftSchedule(1, -1), 2000),
}


@pytest.mark.parametrize("name", GROWING)
def test_infinite_rate(host_backend, name):
    """A rate beyond all floats is an error that names the schedule and the epoch, and nothing has changed."""
    schedule, epoch = GROWING[name]
    param = ones(3)
    layer = nbopt.Parameters((param, ones(3)))
    optimizer = nbopt.GradientDescentMomentum(0.1, 0.0, schedule=schedule)
    with pytest.raises(
        nbopt.errors.ArgumentError, match=f"the rate of .*Schedule.* at epoch {epoch} is infinite"
    ):
        schedule.get_learning_rate(0.1, epoch)
    with pytest.raises(
        nbopt.errors.ArgumentError, match=f"the rate of .*Schedule.* at epoch {epoch} is infinite"
    ):
        optimizer.optimize([layer], epoch)
    assert optimizer.t == 0
    np.testing.assert_array_equal(param, 1)


def test_infinite_rate_of_ones_own(host_backend):
    """So it is if a schedule of one's own overflows, or gives infinity."""

    class Own(nbopt.Schedule):
        def get_learning_rate(self, learning_rate, epoch):
            return 2.0**epoch if epoch % 2 else math.inf

    optimizer = nbopt.GradientDescentMomentum(0.1, 0.0, schedule=Own())
    for epoch in (2000, 2001):
        with pytest.raises(
            nbopt.errors.ArgumentError, match=f"the rate of .*Own.* at epoch {epoch} must be a finite number"
        ):
            optimizer.optimize([nbopt.Parameters((ones(3), ones(3)))], epoch)


# --- a state that float16 can't hold ---


@pytest.mark.thorough("gpu")
def test_shift_adamax_float16(backend):
    """ShiftAdaMax with float16 states leaves a parameter without gradient as it is.

    It moves others as with float32 states.
    """
    moved = {}
    for dtype in ("float16", "float32"):
        param, grad = 0.5 * ones(4), np.array([0, 0.25, -0.5, 0], np.float32)
        layer, optimizer = nbopt.Parameters((param, grad)), nbopt.ShiftAdaMax(state_dtype=dtype)
        optimizer.optimize([layer], 0)
        grad[0], grad[1] = 0.125, 0
        optimizer.optimize([layer], 0)
        moved[dtype] = param
    np.testing.assert_allclose(moved["float16"], moved["float32"], rtol=1e-5)
    assert moved["float16"][3] == 0.5


# --- checkpoints from before a hyper-parameter existed ---


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_older_checkpoint(host_backend, tmp_path, on_disk, inside):
    """A hyper-parameter that a checkpoint doesn't have gets the constructor's default."""

    def older_class():
        class Descent(nbopt.Optimizer):
            def __init__(self, learning_rate=0.5, name=None):
                super().__init__(name=name)
                self.learning_rate = learning_rate

            def rule(self, step, param, grad):
                param[:] = param - step.lr * grad

        return Descent

    def newer_class():
        class Descent(older):
            __qualname__ = older.__qualname__  # which takes its place, as in a program of a later version

            def __init__(self, learning_rate=0.5, warmup=7, name=None):
                super().__init__(learning_rate, name)
                self.warmup = warmup

        return Descent

    def made(cls, *arguments):
        optimizer = cls(*arguments)
        return optimizer, nbopt.MultiOptimizer({"default": optimizer}) if inside else optimizer

    layers = [nbopt.Parameters((ones(3), ones(3)))]
    older = older_class()
    _, run = made(older, 0.25)
    run.optimize(layers, 0)
    state = run.state_dict(layers)
    nbopt.save(tmp_path / "run", run, layers)
    optimizer, run = made(newer_class(), 1.0, 99)
    if on_disk:
        nbopt.load(tmp_path / "run", run, layers)
    else:
        run.load_state_dict(state, layers)
    assert (optimizer.learning_rate, optimizer.warmup, optimizer.t) == (0.25, 7, 1)
