"""Numbers in rules: a changed number traces nothing.

What a rule reads from ``self`` and from the step is a source or a guard.
"""

import math

import numpy as np
import pytest

import nbopt
from nbopt.errors import MissingError
from nbopt.language.scalars import evaluate, power

SHAPE = (3, 4)
LIBRARY = [
    nbopt.ASGD, nbopt.AdaBelief, nbopt.Adadelta, nbopt.Adagrad, nbopt.Adam, nbopt.AdaMax, nbopt.AdamW,
    nbopt.AMSGrad, nbopt.Lion, nbopt.NAdam, nbopt.RAdam, nbopt.RMSProp, nbopt.Rprop, nbopt.ShiftAdaMax,
    nbopt.Yogi,
]  # fmt: skip


@pytest.fixture(autouse=True)
def be():
    with nbopt.use_backend("reference", rng_seed=0, batch_size=2) as backend:
        yield backend


def layers(seed=0):
    values = np.random.default_rng(seed).normal(size=(2, *SHAPE))
    return [nbopt.Parameters((values[0], values[1]))]


def counted(optimizer):
    """Give the optimizer's class a rule that counts its calls; return the list that holds the count."""
    calls, own = [0], type(optimizer)

    def rule(self, *args):
        calls[0] += 1
        return own.rule(self, *args)

    optimizer.__class__ = type(own.__name__, (own,), {"rule": rule})
    return calls


def values_of(layer_list):
    return layer_list[0].params[0].copy()


@pytest.mark.parametrize("cls", LIBRARY, ids=lambda cls: cls.__name__)
def test_library(cls):
    """Another value of a step, an epoch or a hyper-parameter counts, and runs no rule again."""
    names = [
        name
        for name, check in cls.checks.items()
        if isinstance(getattr(cls(), name, None), float) and name not in ("loss_scale", "alpha")
    ]
    optimizer = cls()
    calls, trained = counted(optimizer), layers()
    twin, same = cls(), layers()
    for epoch in range(12):
        optimizer.optimize(trained, epoch)
        twin.optimize(same, epoch)
    before = calls[0]
    # A rule with a test of the count is traced for each outcome, at first perhaps twice.
    assert before <= 2 * 2
    for name in names:
        new = (
            getattr(optimizer, name) * 0.75 if getattr(optimizer, name) > 1e-3 or name != "eta_plus" else 1.5
        )
        for one in (optimizer, twin):
            setattr(one, name, new if name != "eta_plus" else 1.1)
        twin._kept = None  # it traces anew
        del twin._kept
        optimizer.optimize(trained, 12)
        twin.optimize(same, 12)
    assert calls[0] == before
    np.testing.assert_array_equal(values_of(trained), values_of(same))


class Own(nbopt.Optimizer):
    """A rule of a user's, with attributes that no check knows, a method, and a property."""

    state_names = ("velocity",)
    calls = 0
    at_class = 0.5

    def __init__(self, learning_rate=0.1, decay=0.9):
        super().__init__()
        self.learning_rate, self.decay, self.power, self.on = learning_rate, decay, 2.0, True
        self.bounds = (0.1, 0.2)

    @property
    def rest(self):
        return 1.0 - self.decay

    def bias(self, t):
        return 1.0 - self.decay**t

    def rule(self, step, param, grad, velocity):
        type(self).count()
        velocity[:] = self.decay * velocity + self.rest * grad
        change = step.lr * self.at_class * velocity / self.bias(step.t)
        if self.on:
            change = change + self.bounds[0] * np.sqrt(self.power)
        param[:] = param - change

    @classmethod
    def count(cls):
        Own.calls += 1


def expected(optimizer, steps):
    """Do what `Own` does, in NumPy."""
    (param, grad), velocity = np.random.default_rng(0).normal(size=(2, *SHAPE)), np.zeros(SHAPE)
    for t, (lr, decay, at_class, square, on, bounds) in enumerate(steps, 1):
        velocity = decay * velocity + (1 - decay) * grad / 2
        param = param - lr * at_class * velocity / (1 - decay**t) - on * bounds[0] * math.sqrt(square)
    return param


def test_own():
    """A user's rule is traced once, whatever numbers change; what is no number is a guard."""
    Own.calls = 0
    optimizer, trained, steps = Own(), layers(), []

    def step(traces, **changes):
        for name, value in changes.items():
            setattr(optimizer, name, value)
        optimizer.optimize(trained, 0)
        steps.append(
            tuple(
                getattr(optimizer, name)
                for name in ("learning_rate", "decay", "at_class", "power", "on", "bounds")
            )
        )
        assert Own.calls == traces

    step(1)
    step(1)
    step(1, learning_rate=0.05)
    step(1, decay=0.5)
    step(1, power=3.0, at_class=0.25)
    step(2, on=False)
    step(2, on=True)
    step(2, on=False)  # both traces are kept
    step(3, on=True, bounds=(0.3, 0.2))
    step(3, decay=np.float32(0.25))
    np.testing.assert_allclose(values_of(trained), expected(optimizer, steps), rtol=1e-12)


def test_inherited():
    """super().rule works, and so does isinstance."""

    class Child(Own):
        def rule(self, step, param, grad, velocity):
            assert isinstance(self, Child)
            assert type(self).__name__ == "Child"
            super().rule(step, param, 2.0 * grad, velocity)

    one, other = layers(), layers()
    other[0].grads = [other[0].grads[0] * 2]
    Child().optimize(one, 0)
    Own().optimize(other, 0)
    np.testing.assert_array_equal(values_of(one), values_of(other))


class Rules:
    """Optimizers with one line of a rule."""

    @staticmethod
    def make(change, **attributes):
        class Line(nbopt.Optimizer):
            learning_rate = 0.5
            traced = 0

            def rule(self, step, param, grad):
                Line.traced += 1
                param[:] = param - change(self, step) * grad

        optimizer = Line()
        for name, value in attributes.items():
            setattr(optimizer, name, value)
        return optimizer


def test_if():
    """A test of a number is a guard: one trace for each outcome."""
    optimizer, trained = Rules.make(lambda self, step: 1.0 if step.t > 3 else 2.0), layers()
    param, grad = values_of(trained), trained[0].grads[0]
    for _ in range(6):
        optimizer.optimize(trained, 0)
    assert type(optimizer).traced == 2
    np.testing.assert_allclose(values_of(trained), param - (3 * 2.0 + 3 * 1.0) * grad / 2, rtol=1e-12)


def test_number_of_python():
    """math.sqrt of a number works, and joins the guard."""
    optimizer, trained = Rules.make(lambda self, step: math.sqrt(self.a), a=4.0), layers()
    param, grad = values_of(trained), trained[0].grads[0]
    optimizer.optimize(trained, 0)
    optimizer.optimize(trained, 0)
    assert type(optimizer).traced == 1
    optimizer.a = 9.0
    optimizer.optimize(trained, 0)
    assert type(optimizer).traced == 2
    np.testing.assert_allclose(values_of(trained), param - 7.0 * grad / 2, rtol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t % 2,
        lambda t: t // 2,
        lambda t: round(t / 3),
        lambda t: math.floor(t / 3),
        lambda t: 5 % t,
        int,
    ],
)
def test_functions_of_python(change):
    """Whole numbers of the count are Python numbers."""
    optimizer, trained = Rules.make(lambda self, step: change(step.t)), layers()
    param, grad = values_of(trained), trained[0].grads[0]
    for _ in range(5):
        optimizer.optimize(trained, 0)
    np.testing.assert_allclose(
        values_of(trained), param - sum(change(t) for t in range(1, 6)) * grad / 2, rtol=1e-12
    )


def test_warning():
    """A rule that is traced at every step says so, once."""
    optimizer, trained = Rules.make(lambda self, step: float(step.t)), layers()
    with pytest.warns(
        RuntimeWarning, match=r"the rule of Line is traced anew at every step.*Write be\.sqrt"
    ) as caught:
        for _ in range(30):
            optimizer.optimize(trained, 0)
    assert len(caught) == 1


def test_impure():
    """pure = False: the rule is run at every step, with plain numbers."""
    optimizer, trained, seen = (
        Rules.make(lambda self, step: seen.append((step.t, step.lr, self.a)) or 1.0, a=3),
        layers(),
        [],
    )
    type(optimizer).pure = False
    for _ in range(3):
        optimizer.optimize(trained, 0)
    assert seen == [(1, 0.5, 3), (2, 0.5, 3), (3, 0.5, 3)]
    assert [type(value) for value in seen[0]] == [int, float, int]


@pytest.mark.parametrize(
    "value", [[0.25], {"a": 0.25}, type("Config", (), {"a": 0.25})()], ids=["list", "dict", "object"]
)
def test_mutable(value):
    """What can change without being another value is read at every step."""

    def read(self, step):
        return (
            self.given[0]
            if isinstance(value, list)
            else self.given["a"]
            if isinstance(value, dict)
            else self.given.a
        )

    optimizer, trained = Rules.make(read, given=value), layers()
    param, grad = values_of(trained), trained[0].grads[0]
    optimizer.optimize(trained, 0)
    if isinstance(value, list):
        value[0] = 0.5
    elif isinstance(value, dict):
        value["a"] = 0.5
    else:
        value.a = 0.5
    optimizer.optimize(trained, 0)
    np.testing.assert_allclose(values_of(trained), param - 0.75 * grad / 2, rtol=1e-12)


def test_attribute_set():
    """A rule that keeps something on ``self`` is run at every step."""

    def remember(self, step):
        self.calls = self.calls + 1 if "calls" in self.__dict__ else 1
        return 1.0

    optimizer, trained = Rules.make(remember), layers()
    for _ in range(3):
        optimizer.optimize(trained, 0)
    assert optimizer.calls == 3
    assert type(optimizer.calls) is int


def test_kinds():
    """A number that becomes None, and the other way round."""
    optimizer, trained = Rules.make(lambda self, step: 1.0 if self.a is None else self.a, a=2.0), layers()
    param, grad = values_of(trained), trained[0].grads[0]
    for value in (2.0, None, 3.0, None):
        optimizer.a = value
        optimizer.optimize(trained, 0)
    np.testing.assert_allclose(values_of(trained), param - (2.0 + 1.0 + 3.0 + 1.0) * grad / 2, rtol=1e-12)


def test_without_a_rate():
    """step.lr of an optimizer without a learning rate."""
    optimizer = Rules.make(lambda self, step: step.lr)
    type(optimizer).learning_rate = None
    with pytest.raises(MissingError, match=r"self\.learning_rate = learning_rate"):
        optimizer.optimize(layers(), 0)


def test_infinite_numbers():
    """A division by zero is what it is for elements: an infinity."""
    optimizer, trained = Rules.make(lambda self, step: 1.0 / self.a, a=1.0), layers()
    optimizer.optimize(trained, 0)
    optimizer.a = 0.0
    optimizer.optimize(trained, 0)
    assert type(optimizer).traced == 1
    assert np.isinf(values_of(trained)).all()


def test_clip_of_a_rule_without_scale(be):
    """A rule that never reads step.scale gets its gradient scaled by the norm clip."""
    optimizer, trained = Rules.make(lambda self, step: 1.0, gradient_clip_norm=0.5), layers()
    param, grad = values_of(trained), trained[0].grads[0] / be.bsz
    optimizer.optimize(trained, 0)
    np.testing.assert_allclose(values_of(trained), param - grad * 0.5 / np.linalg.norm(grad), rtol=1e-6)


def test_powers():
    """Whole powers are multiplications in a fixed order; the others are the C library's."""
    assert power(0.9, 5) == 0.9 * ((0.9 * 0.9) * (0.9 * 0.9))
    assert power(2.0, -3) == 0.125
    assert power(0.5, 0) == 1.0
    assert power(2.0, 0.5) == pytest.approx(math.sqrt(2.0), rel=1e-15)
    assert power(0.0, -1) == math.inf
    assert math.isnan(power(-1.0, 0.5))
    assert evaluate("power", 0.999, 100_000.0) == pytest.approx(0.999**100_000, rel=1e-11)


@pytest.mark.parametrize("make", [nbopt.Adadelta, nbopt.ShiftAdaMax], ids=lambda make: make.__name__)
def test_clip_of_every_optimizer(be, make):
    """The norm clip scales the gradient of rules that never ask for the scale."""
    clipped, small = layers(), layers()
    optimizer = make()
    optimizer.gradient_clip_norm = 0.5
    optimizer.optimize(clipped, 0)
    small[0].grads = [small[0].grads[0] * (0.5 / np.linalg.norm(small[0].grads[0] / be.bsz))]
    make().optimize(small, 0)
    np.testing.assert_allclose(values_of(clipped), values_of(small), rtol=1e-12)


def test_parameter_clip(be):
    """The bound of parameters holds for any rule, at its last assignment to the parameter.

    Without one nothing is done.
    """

    class Twice(nbopt.Optimizer):
        def rule(self, step, param, grad):
            param[:] = param * 10.0
            param[:] = param - grad

    optimizer, trained = Twice(), layers()
    (param, grad), bound = (trained[0].params[0].copy(), trained[0].grads[0].copy()), 2.5
    for clip in (bound, None, bound):
        optimizer.param_clip_value = clip
        optimizer.optimize(trained, 0)
        param = param * 10.0 - grad / be.bsz
        param = param if clip is None else np.clip(param, -clip, clip)
        np.testing.assert_array_equal(values_of(trained), param)


def test_names_of_the_step():
    """An attribute that is called like a number of the step is another one.

    A division of it by zero is computed exactly, too.
    """
    optimizer = Rules.make(
        lambda self, step: 10.0 * self.t + step.t + step.epoch + self.epoch * (1.0 / (1.0 / self.zero)),
        zero=1.0,
        epoch=3.0,
    )
    for zero in (1.0, 0.0, 0.0):  # 1 / 0 is infinite, and 1 / that is 0
        optimizer.zero, trained, t = zero, layers(), optimizer.t
        param, grad = values_of(trained), trained[0].grads[0]
        optimizer.optimize(trained, 7)
        np.testing.assert_allclose(
            values_of(trained), param - (10.0 * t + t + 1 + 7.0 + 3.0 * zero) * grad / 2, rtol=1e-12
        )
    assert type(optimizer).traced == 1


@pytest.mark.parametrize("value", ["0.5", b"0.5", [0.5]], ids=str)
def test_no_number(value):
    """An attribute that is no number any more is refused, and nothing changes."""
    optimizer, trained = Rules.make(lambda self, step: self.a, a=1.0), layers()
    optimizer.optimize(trained, 0)
    before, optimizer.a = values_of(trained), value
    with pytest.raises(nbopt.errors.OperandError, match="not"):
        optimizer.optimize(trained, 0)
    assert optimizer.t == 1
    np.testing.assert_array_equal(values_of(trained), before)
