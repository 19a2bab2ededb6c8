"""Traps: mistakes that would train wrongly, or not at all, and say nothing."""

import inspect

import numpy as np
import pytest
from helpers import OPTIMIZERS, layers_of, same_bits, values_of

import nbopt
from nbopt import errors


@pytest.fixture
def be():
    with nbopt.use_backend("reference", rng_seed=0) as be:
        yield be


def layer_of(*shapes, name=None):
    return nbopt.Parameters(*[(np.ones(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes], name=name)


def optimizer_with(rule, state_names=()):
    """An optimizer of a class of its own, which has this function as its rule."""
    attributes = {"rule": rule, "state_names": state_names, "learning_rate": 0.1}
    return type("Own", (nbopt.Optimizer,), attributes)()


def refusal(optimizer, layers):
    """Return the TraceError's message of a step. Nothing has changed."""
    before = values_of(layers)
    with pytest.raises(errors.TraceError) as caught:
        optimizer.optimize(layers, 0)
    assert optimizer.t == 0
    assert all(same_bits(a, b) for a, b in zip(before, values_of(layers), strict=True))
    return str(caught.value)


# --- rules that lose what they compute ---


def test_returned_value(be):
    """A rule that returns a value beside its stores never moves the parameter."""

    def rule(self, step, param, grad, m):
        m[:] = 0.9 * m + grad
        return param - step.lr * m

    message = refusal(optimizer_with(rule, ("m",)), [layer_of(3)])
    assert "returns a value" in message
    assert "param[:] = ..." in message


def test_returned_value_without_stores(be):
    """Likewise where there are no stores."""
    assert "In place of return ..., write param[:]" in refusal(optimizer_with(lambda self, step, param, grad: param - grad), [layer_of(3)])


def test_returned_value_of_a_loop(be):
    """A rule that is a generator by mistake runs nothing at all."""

    def rule(self, step, param, grad):
        yield param

    assert "returns a value" in refusal(optimizer_with(rule), [layer_of(3)])


def test_unassigned_state(be):
    """A state that starts at 0 and is never assigned has no effect. The message has the rule's own word for it."""

    def rule(self, step, param, grad, m):
        m = 0.9 * m + grad
        param[:] = param - step.lr * m

    message = refusal(optimizer_with(rule, ("momentum",)), [layer_of(3)])
    assert "write m[:] = ..." in message
    assert "m[:] = m" in message


def test_unassigned_state_of_two(be):
    """The state that is lost is named, not the other one, which is assigned; nor one that is stored under a new name."""

    def rule(self, step, param, grad, mean, square):
        new_square = 0.9 * square + grad * grad
        mean[:] = 0.9 * mean + grad
        param[:] = param - step.lr * mean / (1.0 + new_square)

    message = refusal(optimizer_with(rule, ("mean", "square")), [layer_of(3)])
    assert "write square[:] = ..." in message
    assert "mean[:]" not in message


def test_state_kept_on_purpose(be):
    """The line that the message offers is taken, and so is a state that a layer has before the first step: a mask, say."""

    def kept(self, step, param, grad, mask):
        mask[:] = mask
        param[:] = param - grad * mask

    def read(self, step, param, grad, mask):
        param[:] = param - grad * mask

    layers = [layer_of(2), layer_of(2)]
    layers[1].states[0].append(be.array([1.0, 0.0]))
    optimizer_with(kept, ("mask",)).optimize(layers[:1], 0)
    optimizer_with(read, ("mask",)).optimize(layers[1:], 0)
    assert layers[0].params[0].tolist() == [1.0, 1.0]
    assert layers[1].params[0].tolist() == [0.0, 1.0]


def test_state_assigned_at_times(be):
    """A state that the first step assigns may be read alone later, by a layer that joins then, too; and one may be used in no step at all."""

    def rule(self, step, param, grad, slow, unused):
        if step.t % 2:
            slow[:] = 0.5 * slow + grad
        param[:] = param - slow

    layers, optimizer = [layer_of(1), layer_of(1)], optimizer_with(rule, ("slow", "unused"))
    for count in (1, 2, 2):
        optimizer.optimize(layers[:count], 0)
    assert [layer.params[0].tolist() for layer in layers] == [[1 - 1 - 1 - 1.5], [1 - 0 - 1]]


def test_parameter_under_a_new_name(be):
    """``param = ...`` beside an assigned state never moves the parameter."""

    def rule(self, step, param, grad, m):
        m[:] = 0.9 * m + grad
        param = param - step.lr * m

    assert "write param[:] = ..., not param = ..." in refusal(optimizer_with(rule, ("m",)), [layer_of(3)])


def test_parameter_that_is_only_read(be):
    """A rule may keep an average of a parameter that something else trains, or assign it in some steps only."""

    def average(self, step, param, grad, mean):
        mean[:] = 0.5 * mean + 0.5 * param

    def at_times(self, step, param, grad, total):
        total[:] = total + grad
        if step.t % 2 == 0:
            param[:] = param - total

    for rule, expected in ((average, 1.0), (at_times, -1.0)):
        layer, optimizer = layer_of(1), optimizer_with(rule, ("state",))
        optimizer.optimize([layer], 0)
        optimizer.optimize([layer], 0)
        assert layer.params[0].tolist() == [expected]


# --- attributes of one's own ---


def test_array_attribute(be):
    """An array, or anything else that can't be compared, may be an attribute of an optimizer, and may be exchanged."""
    optimizer, layer, twin = nbopt.RMSProp(), layer_of(3), layer_of(3)
    for number in range(3):
        optimizer.history = np.arange(number + 2.0)
        optimizer.tensors = [be.ones(2), {"array": np.ones(2)}]
        optimizer.optimize([layer], 0)
    other = nbopt.RMSProp()
    for _ in range(3):
        other.optimize([twin], 0)
    assert same_bits(layer.params[0], twin.params[0])
    assert optimizer == other


def test_array_attribute_in_a_rule(be):
    """A rule that reads such an attribute sees what is in it now, after a change in place, too."""

    def rule(self, step, param, grad):
        param[:] = param - float(self.rates[0]) * grad

    optimizer, layer = optimizer_with(rule), layer_of(1)
    optimizer.rates = np.array([0.5])
    optimizer.optimize([layer], 0)
    optimizer.rates[0] = 0.25
    optimizer.optimize([layer], 0)
    assert layer.params[0].tolist() == [0.25]


class Scaled(nbopt.Optimizer):
    """An optimizer that has anything as an argument."""

    def __init__(self, scale, name=None):
        super().__init__(name=name)
        self.scale = scale


def test_equality_with_arrays(be):
    """Optimizers with arrays as arguments are compared: element by element, in lists and dicts, too."""
    assert Scaled(np.arange(3.0)) == Scaled(np.arange(3.0))
    assert Scaled(np.arange(3.0)) != Scaled(np.arange(3.0) + 1)
    assert Scaled(np.arange(3.0)) != Scaled(np.arange(4.0))
    assert Scaled(np.arange(3.0)) != Scaled(np.arange(3))
    assert Scaled(np.arange(3.0)) != Scaled(None)
    assert Scaled({"a": [np.ones(2)]}) == Scaled({"a": [np.ones(2)]})
    assert Scaled({"a": [np.ones(2)]}) != Scaled({"b": [np.ones(2)]})
    assert Scaled([np.ones(2)]) != Scaled([np.ones(2), np.ones(2)])
    tensor = be.ones(2)
    assert Scaled(tensor) == Scaled(tensor)
    assert Scaled(tensor) != Scaled(be.ones(2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hyper_parameters_of_a_trace(be, name):
    """The library's rules are traced again where a hyper-parameter has changed: all that they read is among those that are looked at."""
    optimizer = OPTIMIZERS[name]()
    read = set()

    class Watched(type(optimizer)):
        def __getattribute__(self, attribute):
            read.add(attribute)
            return super().__getattribute__(attribute)

    watched = Watched.__new__(Watched)
    watched.__dict__.update(optimizer.__dict__)
    watched.optimize(layers_of([(3,)], np.random.default_rng(1)), 0)
    arguments = set(inspect.signature(type(optimizer)).parameters)
    assert read & arguments
    assert read & arguments <= {*optimizer.checks, "name", "state_dtype"}


def test_rule_exchanged(be):
    """A rule that is set on one optimizer of the library's is taken at once."""
    optimizer, layer = nbopt.RMSProp(), layer_of(1)
    optimizer.optimize([layer], 0)

    def rule(step, param, grad, mean_square):
        param[:] = 7.0
        mean_square[:] = mean_square

    optimizer.rule = rule
    optimizer.optimize([layer], 0)
    assert layer.params[0].tolist() == [7.0]
