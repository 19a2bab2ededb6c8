"""Rules of users that reduce over parameters and over the step, against NumPy.

Also the shape of a reduction.
"""

import math

import ml_dtypes
import numpy as np
import pytest
from helpers import same_bits, values_of
from line_by_line import over_numbers, over_tensor, tiles, tree
from rules import Centred, Lamb

import nbopt
from nbopt_backends.meaning.tree import OPS, combined, fold, partial_results, row_sums, tiles_of

SHAPES = [(300, 70), (64,), (5, 4, 33), (), (0, 3)]
LISTS = {
    **{str(shape): [shape] for shape in SHAPES},
    "all": SHAPES,
    "300": [SHAPES[1 + k % 4] if k % 3 else (1 + k,) for k in range(300)],
}
RULES = [Lamb, Centred]
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


@pytest.fixture
def be(backend):
    backend.bsz = 2
    return backend


# --- the formulas, in float64 ---


def norm(arrays):
    return math.sqrt(sum(float((array * array).sum()) for array in arrays))


def lamb(optimizer, t, params, grads, states):
    """Return the new parameters and states of a step of LAMB."""
    b1, b2, made, changed = optimizer.beta_1, optimizer.beta_2, [], []
    for p, g, (m, v) in zip(params, grads, states):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        update = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + optimizer.epsilon) + optimizer.decay * p
        ratio = norm([p]) / norm([update]) if norm([update]) else 1.0
        made.append(p - optimizer.learning_rate * (ratio if ratio > 0 else 1.0) * update)
        changed.append((m, v))
    return made, changed


def centred(optimizer, t, params, grads, states):
    """Return the new parameters and states of a step of `Centred`."""
    total = norm(grads)
    if not math.isfinite(total):
        return params, states
    means = [g.mean() if g.size else 0.0 for g in grads]
    with np.errstate(invalid="ignore"):
        new = [
            (optimizer.decay * v + (g - mean) / np.float64(total),)
            for g, mean, (v,) in zip(grads, means, states)
        ]
    return [p - optimizer.learning_rate * v for p, (v,) in zip(params, new)], new


FORMULAS = {Lamb: lamb, Centred: centred}


class Trained:
    """Parameters that an optimizer trains, beside what the formula makes of them in float64."""

    def __init__(self, optimizer, shapes, rng, dtype="float64"):
        dtype = nbopt.get_backend().storage_dtype(dtype)
        params = [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]
        self.optimizer, self.rng, self.t = optimizer, rng, 0
        self.layer = nbopt.Parameters(*[(param, np.zeros_like(param)) for param in params])
        self.params = [np.array(param, np.float64) for param in params]
        self.states = [tuple(np.zeros(shape) for _ in optimizer.state_names) for shape in shapes]

    def step(self, spoil=None):
        """Run a step both ways, with new gradients, one of which `spoil` may change."""
        for grad in self.layer.grads:
            grad[...] = self.rng.normal(size=grad.shape)
        if spoil is not None:
            self.layer.grads[1].flat[0] = spoil
        self.optimizer.optimize([self.layer], 0)
        self.t += 1
        grads = [np.asarray(grad, np.float64) / 2 for grad in self.layer.grads]
        bound = self.optimizer.gradient_clip_norm
        grads = [grad * (bound / max(norm(grads), bound)) for grad in grads] if bound else grads
        formula = FORMULAS[type(self.optimizer)]
        self.params, self.states = formula(self.optimizer, self.t, self.params, grads, self.states)

    def check(self, tolerance):
        for number, (param, expected) in enumerate(zip(self.layer.params, self.params)):
            found = [param, *(state.get() for state in self.layer.states[number])]
            for one, other in zip(found, (expected, *self.states[number])):
                np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.thorough("compiled")  # test_bits has the reference's bits
@each_rule
@each_dtype
@pytest.mark.parametrize("shapes", LISTS.values(), ids=LISTS)
def test_formula(be, rule, dtype, shapes, rng):
    """Some steps equal the formula in float64."""
    if rule is Centred and shapes == [()]:
        shapes = [(), ()]  # centred alone it never moves
    trained = Trained(rule(), shapes, rng, dtype)
    for _ in range(3):
        trained.step()
    trained.check(TOLERANCES[dtype])


@pytest.mark.thorough("compiled")
@each_rule
@each_dtype
def test_norm_clip(be, rule, dtype, rng):
    """The rule gets its gradients scaled; a level more."""
    optimizer = rule()
    optimizer.gradient_clip_norm = 0.75
    trained = Trained(optimizer, SHAPES, rng, dtype)
    for _ in range(2):
        trained.step()
    optimizer.gradient_clip_norm = 1e6  # clips nothing, by the same program
    trained.step()
    trained.check(TOLERANCES[dtype])


@pytest.mark.thorough("gpu")
def test_all_zero(be):
    """LAMB's ratio is 0 / 0 or infinite where it has no meaning; then the step is not scaled."""
    layer = nbopt.Parameters(
        *[(np.full(4, p), np.full(4, g)) for p, g in [(0.0, 0.0), (0.0, 1.0), (2.0, 0.0)]]
    )
    Lamb(learning_rate=0.1, weight_decay=0.0).optimize([layer], 0)
    assert [param.tolist() for param in layer.params] == [
        [0.0] * 4,
        [pytest.approx(-0.1, rel=1e-5)] * 4,
        [2.0] * 4,
    ]


# --- skipped steps ---


@pytest.mark.thorough("gpu")
@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.rest("cpu-True-*")
def test_skipped(be, spoil, counts, rng):
    """A condition of the rule's own: nothing is stored. `skipped` counts it if the optimizer counts any."""
    optimizer = Centred()
    optimizer.skip_nonfinite = counts
    trained = Trained(optimizer, SHAPES, rng, "float32")
    for number, value in enumerate((None, spoil, spoil, None)):
        before = values_of([trained.layer])
        trained.step(value)
        if value is not None:
            assert all(same_bits(one, other) for one, other in zip(values_of([trained.layer]), before))
        assert optimizer.skipped == counts * min(number, 2)
        assert optimizer.t == number + 1
    trained.check(1e-5)


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_lamb_skips(be, rng):
    """skip_nonfinite around a rule with reductions of its own; the first step makes states of zero."""
    optimizer = Lamb()
    optimizer.skip_nonfinite, optimizer.beta_1 = True, 0.0
    trained = Trained(optimizer, SHAPES, rng, "float32")
    before = [param.copy() for param in trained.layer.params]
    states, params = trained.states, trained.params
    trained.step(np.nan)
    assert all(same_bits(one, other) for one, other in zip(trained.layer.params, before))
    assert not any(state.get().any() for states in trained.layer.states for state in states)
    trained.states, trained.params = states, params
    trained.step()
    trained.check(1e-5)
    assert optimizer.skipped == 1 and optimizer.t == 2


@pytest.mark.rest
def test_condition_that_is_no_flag(be, rng):
    """Any number other than 0 and NaN lets the step go on; two conditions have to hold."""

    class Conditional(nbopt.Optimizer):
        first = second = 1.0

        def rule(self, step, param, grad):
            step.only_if(self.first * step.max(grad * 0.0 + 1.0))
            step.only_if(self.second)
            param[:] = param - grad

    for first, second, taken in [
        (-3.0, 1e-300, True),
        (0.0, 1.0, False),
        (1.0, 0.0, False),
        (np.nan, 1.0, False),
        (np.inf, 2.0, True),
    ]:
        optimizer, layer = Conditional(), nbopt.Parameters((np.ones(5), rng.normal(size=5)))
        optimizer.first, optimizer.second = first, second
        optimizer.optimize([layer], 0)
        assert (layer.params[0] != 1.0).all() == (layer.params[0] != 1.0).any() == taken


# --- bits ---


@pytest.mark.thorough("compiled")  # test_bits has the reference's bits
@each_rule
def test_stochastic(be, rule, rng):
    """bfloat16 parameters, rounded stochastically: one of the two neighbours, by bits that repeat."""

    def run(seed, rounding):
        be.rng_set_state({"seed": seed, "updates": 0})
        optimizer = rule()
        optimizer.stochastic_round = rounding
        trained = Trained(optimizer, SHAPES, np.random.default_rng(5), "bfloat16")
        trained.step()
        return trained

    one, same, other, nearest = run(1, True), run(1, True), run(2, True), run(1, False)
    values = [values_of([trained.layer]) for trained in (one, same, other, nearest)]
    assert all(same_bits(a, b) for a, b in zip(values[0], values[1]))
    for different in values[2:]:
        assert any(not same_bits(a, b) for a, b in zip(values[0], different))
    step = 2.0**-7
    for found, expected in zip(one.layer.params, one.params):
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=step, atol=1e-6)
    for found, expected in zip(nearest.layer.params, one.params):
        np.testing.assert_allclose(
            np.asarray(found, np.float64), expected, rtol=step / 2 * (1 + 1e-3), atol=1e-6
        )


@pytest.mark.thorough("gpu")
@each_rule
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.rest("cpu-float32-Lamb")
def test_bits(be, rule, dtype):
    """The bits are those of the reference, in whatever order the parameters lie in memory.

    So it is in float64 with the norm clip.
    """
    dtype, shapes = be.storage_dtype(dtype), [(300, 70), (5, 4, 33), (4096,), (4097,), (), (0, 3)]

    def run(backend, order):
        rng = np.random.default_rng(7)
        with nbopt.use_backend(backend):
            optimizer = rule()
            optimizer.stochastic_round = True
            optimizer.gradient_clip_norm = 0.75 * (dtype == np.float64)
            backend.rng_set_state({"seed": 3, "updates": 0})
            pairs = [[np.array(rng.normal(size=shape), dtype, order=order) for _ in "pg"] for shape in shapes]
            layer = nbopt.Parameters(*map(tuple, pairs))
            for _ in range(3):
                optimizer.optimize([layer], 0)
            return values_of([layer])

    expected = run(nbopt.gen_backend("reference", batch_size=2), "C")
    for order in "CF":
        assert all(same_bits(np.array(a, order="C"), b) for a, b in zip(run(be, order), expected))


@pytest.mark.thorough("gpu")
@each_rule
def test_partition(be, rule, rng):
    """Parameters count in list order, however they are divided among layers."""
    arrays = [rng.normal(size=(2, *shape)).astype(np.float32) for shape in LISTS["300"]]
    found = []
    for size in (1, 7, 300):
        copies = [(array[0, ...].copy(), array[1, ...].copy()) for array in arrays]
        layers = [nbopt.Parameters(*copies[start : start + size]) for start in range(0, 300, size)]
        rule().optimize(layers, 0)
        found.append([param for layer in layers for param in layer.params])
    for other in found[1:]:
        assert len(other) == 300 and all(same_bits(a, b) for a, b in zip(found[0], other))


# --- the fixed shape of reductions ---

SIZES = [0, 1, 2, 3, 5, 6, 100, 4095, 4096, 4097, 10_000]


def some_values(kind, size, dtype):
    rng = np.random.default_rng(size)
    values = rng.normal(size=size).astype(dtype)
    if size and kind == "nan":
        values[rng.integers(size)] = np.nan
    elif kind == "zeros":
        values = np.where(rng.random(size) < 0.5, 0.0, -0.0).astype(dtype)
    elif kind == "negative zeros":
        values = np.full(size, -0.0, dtype)
    elif kind == "infinities" and size:
        values[rng.integers(size, size=2)] = np.inf, -np.inf
    return values


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", ["normal", "nan", "zeros", "negative zeros", "infinities"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tree(op, kind, dtype):
    """The fold, tile by tile and over tiles, against a recursion."""
    for size in SIZES:
        values = some_values(kind, size, dtype)
        with np.errstate(invalid="ignore"):
            if size:
                assert same_bits(np.asarray(fold(op, values)), np.asarray(tree(op, list(values))))
            found = partial_results(op, values)
            assert same_bits(found, np.array(tiles(op, values), np.float64)) and len(found) == tiles_of(size)
            whole = np.float64(combined(op, found))
            assert same_bits(np.asarray(whole), np.asarray(over_tensor(op, values)))
            assert same_bits(np.asarray(whole), np.asarray(over_numbers(op, list(found))))


@pytest.mark.parametrize("op", OPS)
def test_tree_of_many(op):
    """The last axis of a matrix is folded row by row, and the input stays as it is."""
    values = np.random.default_rng(1).normal(size=(3, 4, 37)).astype(np.float32)
    before = values.copy()
    found = fold(op, values)
    assert found.dtype == np.float32 and found.shape == (3, 4)
    for place in np.ndindex(3, 4):
        assert found[place] == tree(op, list(values[place]))
    assert same_bits(values, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tree_of_rows(dtype):
    """Outside of rules a row is summed as a parameter's elements are, and rounded at the end."""
    for size in SIZES:
        rows = np.array(
            [
                some_values(kind, size, dtype)
                for kind in ("normal", "zeros", "negative zeros", "nan", "infinities")
            ]
        )
        with np.errstate(invalid="ignore"):
            found, wanted = row_sums(rows), np.array([dtype(over_tensor("sum", row)) for row in rows])
        assert same_bits(found, wanted)
    assert row_sums(np.empty((0, 10_000), dtype)).shape == (0,)


AXES = [
    ((5, 4), None),
    ((70, 300), None),
    ((0, 3), None),
    ((0, 3), 0),
    ((5, 4), 0),
    ((20_000, 3), 0),
    ((5, 4), 1),
    ((3, 4097), 1),
]


@pytest.mark.parametrize(("shape", "axis"), AXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.rest("cpu-float32-*", "cpu-bfloat16-*")
def test_sums_outside(be, shape, axis, dtype):
    """The sums of a tensor are what a rule finds for a parameter with these elements.

    So are those along an axis.
    """

    class Stores(nbopt.Optimizer):
        def rule(self, step, param, grad):
            param[:] = self.be.sum(grad)

    values, wide = (
        np.random.default_rng(3).normal(size=shape).astype(dtype),
        np.result_type(dtype, np.float32),
    )
    rows = [values.ravel()] if axis is None else np.moveaxis(values, axis, 1)
    params = [np.empty(len(row), wide) for row in rows]
    Stores().optimize([nbopt.Parameters(*((param, be.bsz * row) for param, row in zip(params, rows)))], 0)
    out = be.empty(np.zeros(shape).sum(axis, keepdims=True).shape, wide)
    out[:] = be.sum(be.array(values, dtype), axis=axis)
    assert same_bits(out.get().ravel(), np.array([param[0] if len(param) else 0.0 for param in params], wide))


def test_over_nothing():
    """What reductions over no values give."""
    assert [combined(op, []) for op in ("sum", "max", "min")] == [0.0, -math.inf, math.inf]
    assert len(partial_results("sum", np.empty(0, np.float32))) == tiles_of(0) == 0


@pytest.mark.rest
def test_parameters_without_elements(be):
    """They take no part in a reduction over the step, and their own are those over nothing."""

    class Stores(nbopt.Optimizer):
        def rule(self, step, param, grad):
            param[:] = step.max(self.be.sum(grad)) + step.min(self.be.max(grad)) + 0.0 * param

    layer = nbopt.Parameters((np.zeros(2), np.array([-3.0, -4.0])), (np.zeros((0, 3)), np.zeros((0, 3))))
    Stores().optimize([layer], 0)
    assert layer.params[0].tolist() == [-5.0, -5.0]  # the batch size is 2


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_accuracy_of_long_sums(be):
    """A sum of a million equal float32 is right to the last bits: the tree keeps its error small."""

    class Stores(nbopt.Optimizer):
        def rule(self, step, param, grad):
            param[:] = self.be.mean(grad) + 0.0 * param

    layer = nbopt.Parameters((np.zeros(1_000_003, np.float32), np.full(1_000_003, 0.2, np.float32)))
    Stores().optimize([layer], 0)
    np.testing.assert_allclose(layer.params[0], np.float32(0.1), rtol=1e-6)
