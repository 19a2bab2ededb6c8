"""Traps: mistakes that would train wrongly, or not at all, and say nothing."""

import copy
import inspect
import pickle
import pydoc

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
    return nbopt.Parameters(
        *[(np.ones(shape, np.float32), np.ones(shape, np.float32)) for shape in shapes], name=name
    )


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
    assert "In place of return ..., write param[:]" in refusal(
        optimizer_with(lambda self, step, param, grad: param - grad), [layer_of(3)]
    )


def test_returned_value_of_a_loop(be):
    """A rule that is a generator by mistake runs nothing at all."""

    def rule(self, step, param, grad):
        yield param

    assert "returns a value" in refusal(optimizer_with(rule), [layer_of(3)])


def test_unassigned_state(be):
    """A state that starts at 0 and is never assigned has no effect.

    The message has the rule's own word for it.
    """

    def rule(self, step, param, grad, m):
        m = 0.9 * m + grad
        param[:] = param - step.lr * m

    message = refusal(optimizer_with(rule, ("momentum",)), [layer_of(3)])
    assert "write m[:] = ..." in message
    assert "m[:] = m" in message


def test_unassigned_state_of_two(be):
    """The state that is lost is named, not the other one, which is assigned.

    Nor is one named that is stored under a new name.
    """

    def rule(self, step, param, grad, mean, square):
        new_square = 0.9 * square + grad * grad
        mean[:] = 0.9 * mean + grad
        param[:] = param - step.lr * mean / (1.0 + new_square)

    message = refusal(optimizer_with(rule, ("mean", "square")), [layer_of(3)])
    assert "write square[:] = ..." in message
    assert "mean[:]" not in message


def test_state_kept_on_purpose(be):
    """The line that the message offers is taken.

    So is a state that a layer has before the first step, such as a mask.
    """

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
    """A state that the first step assigns may be read alone later, by a layer that joins then, too.

    One may be used in no step at all.
    """

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


def test_traps_in_torch():
    """The same in nbopt.torch: the state, the parameter, and the value that is returned."""
    torch = pytest.importorskip("torch")

    def state(self, step, param, grad, m):
        m = 0.9 * m + grad
        param[:] = param - step.lr * m

    def parameter(self, step, param, grad, m):
        m[:] = 0.9 * m + grad
        param = param - step.lr * m

    def returned(self, step, param, grad, m):
        m[:] = 0.9 * m + grad
        return param - step.lr * m

    for rule, typed in ((state, r"m\[:\] = "), (parameter, r"param\[:\] = "), (returned, r"param\[:\] = ")):
        param = torch.nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        optimizer = nbopt.torch.Optimizer([param], optimizer_with(rule, ("m",)), backend="reference")
        with pytest.raises(errors.TraceError, match=typed):
            optimizer.step()
        assert not optimizer.state
        assert param.tolist() == [1.0] * 3


def test_parameter_that_is_only_read(be):
    """A rule may average a parameter that something else trains, or assign it in some steps only."""

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
    """An array, or anything else that can't be compared, may be an attribute of an optimizer.

    It may be exchanged.
    """
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
    """The library's rules are traced again if a hyper-parameter has changed.

    All that they read is among those that are looked at.
    """
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


# --- names of hyper-parameters ---


@pytest.mark.parametrize(
    ("name", "value", "typed"),
    [
        ("learning_rat", 1.0, "optimizer.learning_rate = ..."),
        ("learnign_rate", 1.0, "optimizer.learning_rate = ..."),
        ("skip_nonfinte", True, "optimizer.skip_nonfinite = ..."),
        ("lr", 1.0, "optimizer.learning_rate = ..."),
        ("eps", 1e-8, "optimizer.epsilon = ..."),
        ("betas", (0.9, 0.99), "optimizer.beta_1 = ... and optimizer.beta_2 = ..."),
        ("weight_decay", 0.1, "nbopt.AdamW"),
        ("scheduler", nbopt.Schedule(), "optimizer.schedule = ..."),
        ("gradient_clip_nrm", 1.0, "optimizer.gradient_clip_norm = ..."),
    ],
)
def test_misspelt_attribute(name, value, typed):
    """An attribute that looks like a hyper-parameter by another name would do nothing."""
    optimizer = nbopt.Adam()
    with pytest.raises(errors.ArgumentError) as caught:
        setattr(optimizer, name, value)
    assert typed in str(caught.value)
    assert not hasattr(optimizer, name)


def test_misspelt_attribute_of_others():
    """So it is with classes of one's own, their own hyper-parameters, and a MultiOptimizer."""

    class Own(nbopt.Optimizer):
        def __init__(self, threshold=1.0, name=None):
            super().__init__(name=name)
            self.threshold = threshold

    with pytest.raises(errors.ArgumentError, match=r"optimizer\.threshold = "):
        Own().treshold = 2.0
    with pytest.raises(errors.ArgumentError, match=r"optimizer\.learning_rate = "):
        Own().learning_rat = 2.0
    with pytest.raises(errors.ArgumentError, match="learning_rate"):
        nbopt.MultiOptimizer({"default": nbopt.Adam()}).learning_rat = 1.0


def test_own_attributes():
    """Other attributes are free.

    They are names less like one, values that the hyper-parameter couldn't have, and what methods set.
    """

    class Own(nbopt.Adam):
        beta_4 = 0.5

        def __init__(self, lr=0.1):
            super().__init__(learning_rate=lr)
            self.lr = lr
            for name in ("beta_33", "learning_rat"):
                setattr(self, name, 1.0)

        def reset(self):
            self.eps = 1.0

    optimizer = Own()
    optimizer.reset()
    optimizer.lr, optimizer.eps, optimizer.beta_4 = 0.2, 0.3, 0.4
    assert (optimizer.lr, optimizer.eps, optimizer.beta_4, optimizer.learning_rat) == (0.2, 0.3, 0.4, 1.0)
    plain = nbopt.Adam()
    plain.learning_rates, plain.history, plain.tag, plain.x, plain._lr = [], {}, "a", 1.0, 2.0
    assert plain.learning_rates == []


@pytest.mark.parametrize(
    "kind",
    [nbopt.RMSProp, nbopt.Adagrad, nbopt.Adadelta, nbopt.Adam, nbopt.AdamW, nbopt.ShiftAdaMax, nbopt.Lion],
)
@pytest.mark.parametrize("number", [1, 0, 1e-3, np.float32(0.1), np.int64(3)], ids=repr)
def test_positional_number(kind, number):
    """The first argument is neon's stochastic_round: a number there was meant for another one."""
    meant = "decay" if kind is nbopt.Adadelta else "learning_rate"

    class Inheriting(kind):
        pass

    class Passing(kind):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)

    class Own(kind):
        def __init__(self, stochastic_round):
            super().__init__(stochastic_round)

    for each in (kind, Inheriting, Passing):
        with pytest.raises(errors.ArgumentError, match=rf"stochastic_round.*{meant}="):
            each(number)
    assert kind(stochastic_round=3).stochastic_round == Own(stochastic_round=3).stochastic_round == 3
    assert [kind(value).stochastic_round for value in (True, False)] == [True, False]


def test_positional_rate():
    """Where the first argument is the learning rate, a number is fine."""
    assert nbopt.GradientDescentMomentum(1, 0.9).learning_rate == 1.0

    class Own(nbopt.Adam):
        def __init__(self, learning_rate):
            super().__init__(learning_rate=learning_rate)

    assert Own(0.5).learning_rate == 0.5


def test_constructor_is_seen():
    """inspect, help, pickle, copy and descriptions find the constructors as they are written."""

    class Inheriting(nbopt.Adam):
        pass

    for kind in (nbopt.Adam, Inheriting):
        parameters = list(inspect.signature(kind).parameters)
        assert parameters[:2] == ["stochastic_round", "learning_rate"]
        assert parameters[parameters.index("schedule") + 1] == "ema_decay"
    assert "beta_1=0.9" in pydoc.render_doc(nbopt.Adam)
    optimizer = nbopt.Adam(stochastic_round=10, learning_rate=0.5)
    for other in (
        pickle.loads(pickle.dumps(optimizer)),
        copy.deepcopy(optimizer),
        nbopt.NervanaObject.gen_class(optimizer.get_description()),
    ):
        assert other == optimizer
        assert other.stochastic_round == 10
