"""The ops: what they mean, and that the CPU gives the reference's bits.

Also how they broadcast, reduce and treat views.
"""

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from device_checks import assert_every_op
from helpers import same_bits, special_values, thorough_but, ulp_distance
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import nbopt
from nbopt.language.ops import COMPOSED, PRIMITIVES

# The design's exact ops, and the others. `ldexp` is shift(value=False).
EXACT = {
    "add": 2, "subtract": 2, "multiply": 2, "divide": 2, "true_divide": 2, "sqrt": 1, "square": 1,
    "reciprocal": 1, "maximum": 2, "minimum": 2, "clip": 3, "absolute": 1, "fabs": 1, "negative": 1, "sgn": 1,
    "rint": 1, "equal": 2, "not_equal": 2, "less": 2, "less_equal": 2, "greater": 2, "greater_equal": 2,
    "finite": 1, "where": 3, "shift": 2, "ldexp": 2,
}  # fmt: skip
WITHIN_4_ULP = {
    "power": 2,
    "exp": 1,
    "exp2": 1,
    "log": 1,
    "log2": 1,
    "safelog": 1,
    "sig": 1,
    "sig2": 1,
    "tanh": 1,
    "tanh2": 1,
}
ARITY = {**EXACT, **WITHIN_4_ULP}
# Of each kind that a number can be an operand of, one: the plain run compiles these.
BESIDE_A_NUMBER = ("subtract", "divide", "maximum", "clip", "less", "where", "shift", "power")

each_op = pytest.mark.parametrize("name", ARITY)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


@functools.cache
@np.errstate(all="ignore")
def interesting(dtype):
    """Values at which ops change their ways.

    They are zeros, the ends of the ranges, halves, the neighbours of sqrt(2), and exponents.
    """
    info = np.finfo(dtype)
    root = dtype(math.sqrt(2))
    low = dtype(info.smallest_subnormal)
    roots = [np.nextafter(root, low), root, np.nextafter(root, info.max)]
    positive = [
        0.0, low, low * 3, info.tiny / 2, info.tiny, 1e-3, 0.5, np.nextafter(dtype(1), dtype(0)), 1, 1.5, 2,
        2.5, 3, 10, 60, 88.5, 700, info.max / 2, info.max, np.inf,
        *(x * scale for x in roots for scale in (1, 0.25, info.tiny)), -info.minexp, -info.minexp + 1,
        -info.minexp + info.nmant, info.maxexp, info.maxexp - 1, 2.0**info.nmant - 0.5,
    ]  # fmt: skip
    values = np.array(positive, dtype)
    return np.concatenate([values, -values, [dtype(np.nan)]])


@functools.cache
def grid(dtype, arity):
    """All combinations of the interesting values, one array for each operand.

    Of three operands there are some combinations.
    """
    values = interesting(dtype)
    if arity < 3:
        return [x.ravel() for x in np.meshgrid(*[values] * arity)]
    return [x.ravel() for x in np.meshgrid(values[::3], values[1::3], values[2::3])]


@functools.cache
@np.errstate(invalid="ignore")
def operands(dtype, arity):
    """The interesting values, random bits, special values, and ordinary numbers of a few magnitudes."""
    rng = np.random.default_rng(arity)
    n = 4000
    columns = []
    for column in grid(dtype, arity):
        # The product makes signalling NaN quiet: these are out of scope.
        bits = rng.integers(0, 2**64, n, dtype=np.uint64).view(dtype)[:n] * dtype(1)
        ordinary = (rng.standard_normal(n) * 10.0 ** rng.integers(-2, 3, n)).astype(dtype)
        columns.append(np.concatenate([column, bits, special_values(dtype, rng, n), ordinary]))
    return columns


def run_op(be, name, arrays, **options):
    """Return ``out[:] = be.<name>(*arrays)`` as an array."""
    out = be.empty(arrays[0].shape, arrays[0].dtype)
    out[:] = getattr(be, name)(*(be.array(x, dtype=x.dtype) for x in arrays), **options)
    return out.get()


def run_op_on(backend, name, arrays, **options):
    with nbopt.use_backend(backend) as be:
        return run_op(be, name, arrays, **options)


# --- the table ---


def test_the_design_lists_every_op():
    assert set(ARITY) == {*PRIMITIVES, *COMPOSED}


def test_exact_ops_are_marked_exact():
    assert {name for name, op in PRIMITIVES.items() if op.exact} == set(PRIMITIVES) & set(EXACT)


@each_dtype
def test_cpu_equals_reference_in_one_kernel(dtype):
    """Every op, of which one kernel stores each result."""
    with nbopt.use_backend("cpu") as be:
        assert_every_op(be, np.dtype(dtype).name)


@each_dtype
@each_op
@pytest.mark.covering
@pytest.mark.rest
def test_cpu_equals_reference(name, dtype):
    arrays = operands(dtype, ARITY[name])
    got, wanted = (run_op_on(backend, name, arrays) for backend in ("cpu", "reference"))
    assert got.dtype == dtype
    if name in EXACT:
        assert same_bits(got, wanted)
    else:
        assert ulp_distance(got, wanted).max() <= 4


@pytest.mark.parametrize(
    "name", thorough_but([name for name, arity in ARITY.items() if arity > 1], *BESIDE_A_NUMBER)
)
@pytest.mark.rest("shift", "where", "power")
def test_cpu_equals_reference_beside_a_number(name):
    x, *others = operands(np.float32, ARITY[name])
    # One kernel serves them all.
    numbers = [0.1, -2.5, 0.5, 0.0, -0.0, 1e-40, 1e39, math.nan, math.inf, -math.inf]
    results = {}
    for backend in ("cpu", "reference"):
        with nbopt.use_backend(backend) as be:
            t, op, out = be.array(x), getattr(be, name), be.empty(x.shape)
            third = [be.array(y) for y in others[1:]]
            results[backend] = [
                op(*args, *third, out=out).get() for number in numbers for args in ((t, number), (number, t))
            ]
    for got, wanted in zip(results["cpu"], results["reference"]):
        assert same_bits(got, wanted) if name in EXACT else ulp_distance(got, wanted).max() <= 4


# --- the meaning of each op, in plain Python ---


def no_domain_error(function, *args, outside=math.nan):
    """Call a function of the math module.

    An overflow gives infinity, an argument outside the domain `outside`.
    """
    try:
        return function(*args)
    except OverflowError:
        return math.inf
    except ValueError:
        return outside


def divide(a, b):
    if b != 0:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1, b)


def maximum(a, b):
    if a != a or b != b:
        return math.nan
    if a == b:
        return b if math.copysign(1, a) < 0 else a
    return a if a > b else b


def minimum(a, b):
    return -maximum(-a, -b)


def rint(a):
    # Python rounds halves to even, to an int that has no -0.
    return math.copysign(round(a), a) if math.isfinite(a) else a


def exact_ldexp(a, k):
    if a == 0 or not math.isfinite(a):
        return a
    try:
        # Division of ints rounds correctly, to subnormals as well. For a float32 a nothing is rounded here
        # yet.
        scaled = Fraction(a) * Fraction(2) ** int(k)
        return scaled.numerator / scaled.denominator
    except OverflowError:
        return math.copysign(math.inf, a)


def exact_shift(a, b):
    if b == 0:
        return 0.0
    if not math.isfinite(b):
        return a * b
    mantissa, exponent = math.frexp(abs(b))
    # log2 of the mantissa, in [0.5, 1), is nearer to 0 than to -1 above sqrt(1/2), which is no fraction.
    k = exponent if Fraction(mantissa) ** 2 > Fraction(1, 2) else exponent - 1
    return exact_ldexp(math.copysign(1, b) * a, k)


def power(a, b):
    # The math module refuses 0 to a negative power, which C and NumPy give as infinity, and a negative number
    # to a broken power.
    odd = math.isfinite(b) and math.fmod(abs(b), 2) == 1
    sign = math.copysign(1, a) if odd else 1
    try:
        return math.pow(a, b)
    except OverflowError:
        return sign * math.inf
    except ValueError:
        return sign * math.inf if a == 0 else math.nan


def log(function, a):
    return -math.inf if a == 0 else no_domain_error(function, a)


def exp2(a):
    return no_domain_error(math.pow, 2.0, a)


# For each op ``(rounded, operands) -> value``. `rounded` rounds a Python float to the dtype; sums, products,
# quotients and square roots of float32 values may be rounded to float64 first: its 53 bits are more than
# twice 24, so the second rounding gives the correct result.
MEANING = {
    "add": lambda r, a, b: a + b,
    "subtract": lambda r, a, b: a - b,
    "multiply": lambda r, a, b: a * b,
    "divide": lambda r, a, b: divide(a, b),
    "true_divide": lambda r, a, b: divide(a, b),
    "sqrt": lambda r, a: no_domain_error(math.sqrt, a),
    "square": lambda r, a: a * a,
    "reciprocal": lambda r, a: divide(1.0, a),
    "maximum": lambda r, a, b: maximum(a, b),
    "minimum": lambda r, a, b: minimum(a, b),
    "clip": lambda r, a, low, high: minimum(maximum(a, low), high),
    "absolute": lambda r, a: abs(a),
    "fabs": lambda r, a: math.fabs(a),
    "negative": lambda r, a: -a,
    "sgn": lambda r, a: a if a != a else float((a > 0) - (a < 0)),
    "rint": lambda r, a: rint(a),
    "finite": lambda r, a: float(math.isfinite(a)),
    "equal": lambda r, a, b: float(a == b),
    "not_equal": lambda r, a, b: float(a != b),
    "less": lambda r, a, b: float(a < b),
    "less_equal": lambda r, a, b: float(a <= b),
    "greater": lambda r, a, b: float(a > b),
    "greater_equal": lambda r, a, b: float(a >= b),
    "where": lambda r, c, a, b: a if c != 0 else b,
    "shift": lambda r, a, b: exact_shift(a, b),
    "power": lambda r, a, b: power(a, b),
    "exp": lambda r, a: no_domain_error(math.exp, a),
    "exp2": lambda r, a: exp2(a),
    "log": lambda r, a: log(math.log, a),
    "log2": lambda r, a: log(math.log2, a),
    "safelog": lambda r, a: math.log(r(math.exp(-50))) if a < math.exp(-50) else log(math.log, a),
    # An infinity is where the exponential of the dtype overflows.
    "sig": lambda r, a: 1 / (1 + r(no_domain_error(math.exp, -a))),
    "sig2": lambda r, a: 1 / (1 + r(exp2(-a))),
    "tanh": lambda r, a: math.tanh(a),
    "tanh2": lambda r, a: math.tanh(a * math.log(2)),
}


@np.errstate(all="ignore")
def meant(name, arrays):
    """Return the meaning of an op over arrays, element by element."""
    dtype = arrays[0].dtype.type
    values = [MEANING[name](lambda x: float(dtype(x)), *map(float, row)) for row in zip(*arrays)]
    return np.array(values, np.float64).astype(dtype)


@each_dtype
@pytest.mark.parametrize("name", MEANING)
@pytest.mark.thorough("compiled")  # test_cpu_equals_reference has these operands too
def test_meaning(backend, name, dtype):
    arrays = grid(dtype, ARITY[name])
    got, wanted = run_op(backend, name, arrays), meant(name, arrays)
    if name in EXACT:
        assert same_bits(got, wanted)
    else:
        assert ulp_distance(got, wanted).max() <= 4


def halfway_to_a_subnormal(dtype, k):
    """Return (a, k) where a * 2^k lies half-way between two subnormal numbers, or a hair beside.

    To round twice gives another result.
    """
    info = np.finfo(dtype)
    lowest = info.minexp - info.nmant
    with np.errstate(all="ignore"):
        ties = np.ldexp((np.array([0, 1, 2, 5, 100, 1001]) + 0.5).astype(dtype), lowest - int(k))
        a = np.concatenate([ties, np.nextafter(ties, dtype(0)), np.nextafter(ties, dtype(np.inf))])
    a = a[np.isfinite(a) & (a != 0)]
    return a, np.full(a.shape, k, dtype)


@each_dtype
@pytest.mark.thorough("gpu")
def test_shift_by_an_integer_is_exact(backend, dtype):
    info = np.finfo(dtype)
    # So far the smallest subnormal becomes infinity, and the largest number 0.
    reach = 2 * (info.maxexp + info.nmant)
    exponents = np.unique(
        [
            *range(-reach, reach + 1, 7),
            *range(info.minexp - 60, info.minexp + 4),
            *range(info.maxexp - 4, info.maxexp + 4),
        ]
    )
    a, b = (x.ravel() for x in np.meshgrid(interesting(dtype), exponents.astype(dtype)))
    near_ties = [halfway_to_a_subnormal(dtype, k) for k in exponents if k < info.minexp + 40]
    a, b = (np.concatenate([first, *more]) for first, more in zip((a, b), zip(*near_ties)))
    with np.errstate(all="ignore"):
        wanted = np.array([exact_ldexp(x, k) for x, k in zip(a.tolist(), b.tolist())]).astype(dtype)
    assert (
        (wanted != 0) & (np.abs(wanted) < info.tiny)
    ).sum() > 100  # results in the subnormal range are where rounding can go wrong
    assert same_bits(run_op(backend, "shift", [a, b], value=False), wanted)
    assert same_bits(run_op(backend, "ldexp", [a, b]), wanted)


@each_dtype
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-float32")
def test_int_powers_multiply_in_a_fixed_order(backend, dtype):
    (x,) = operands(dtype, 1)
    t = backend.array(x, dtype=dtype)
    with np.errstate(all="ignore"):
        positive = {1: x, 2: x * x, 3: (x * x) * x, 4: (x * x) * (x * x)}
        wanted = {0: np.ones_like(x), **positive, **{-n: 1 / y for n, y in positive.items()}}
    for exponent, y in wanted.items():
        out = backend.empty(x.shape, dtype)
        for form in (backend.power(t, exponent), t**exponent, t ** np.int64(exponent)):
            out[:] = form
            assert same_bits(out.get(), y)


@pytest.mark.parametrize("dtype, fraction, least", [("float32", 23, -126), ("float64", 52, -1022)])
@pytest.mark.thorough("gpu")
def test_division_by_powers_of_two_and_their_neighbours_is_exact(backend, rng, dtype, fraction, least):
    """Kernels multiply where the reciprocal is exact.

    Beyond the ends of that range, and beside powers of two, they must not.
    """
    x = np.concatenate([rng.standard_normal(997), [0, -0.0, np.inf, -np.inf, np.nan]]).astype(dtype)
    x[:100] *= np.dtype(dtype).type(2.0) ** (least + 3)  # quotients that are subnormal, or too large
    t, out = backend.array(x, dtype), backend.zeros(x.shape, dtype)
    powers = [
        2.0**k
        for k in (
            least - fraction,
            least - 1,
            least,
            least + 1,
            -3,
            -1,
            0,
            1,
            7,
            -least - 1,
            -least,
            -least + 1,
        )
    ]
    neighbours = [
        float(np.nextafter(np.dtype(dtype).type(power), np.dtype(dtype).type(up)))
        for power in powers
        for up in (0, np.inf)
    ]
    for divisor in [*powers, *(-power for power in powers), *neighbours, 0.0, -0.0, np.inf, np.nan, 3.0]:
        out[:] = t / divisor
        with np.errstate(all="ignore"):
            assert same_bits(out.get(), x / np.dtype(dtype).type(divisor)), divisor


@pytest.mark.parametrize("exponent", [2.0, -1.0, 0.5, 5, -7, 0.0, math.inf, math.nan])
@pytest.mark.thorough("gpu")
def test_other_powers_are_within_4_ulp(backend, exponent):
    x = np.concatenate([interesting(np.float64), np.random.default_rng(0).standard_normal(50)])
    out = backend.empty(x.shape, np.float64)
    out[:] = backend.array(x, dtype=np.float64) ** exponent
    assert ulp_distance(out.get(), np.array([power(a, exponent) for a in x.tolist()])).max() <= 4


# --- numbers, operators, out= ---


@each_op
def test_an_op_on_numbers_alone_gives_a_float(backend, name):
    for kind in (float, int, np.float32, np.float64, np.int64):
        for numbers in ((2, 3, 5), (3, 1, 2), (0, 0, -1), (1, 0, 4), (4, -2, 0)):
            result = getattr(backend, name)(*map(kind, numbers[: ARITY[name]]))
            assert type(result) is float, (kind, numbers)
            wanted = meant(
                "shift" if name == "ldexp" else name,
                [np.array([float(x)]) for x in _as_shift(name, numbers)[: ARITY[name]]],
            )
            assert ulp_distance(np.array([result]), wanted)[0] <= (0 if name in EXACT else 4)


def _as_shift(name, numbers):
    """Return the operands with which `shift` does what `ldexp` does: 2^b for b."""
    return (numbers[0], 2.0 ** numbers[1]) if name == "ldexp" else numbers


EXPRESSIONS = [
    "t + u", "t - u", "t * u", "t / u", "t ** u", "t < u", "t <= u", "t > u", "t >= u", "t == u", "t != u",
    "-t", "+t", "abs(t)",
    "t + 2", "t - 2", "t * 2", "t / 2", "t ** 2", "t < 1", "t <= 1", "t > 1", "t >= 1", "t == 1", "t != 1",
    "2 + t", "2 - t", "2 * t", "2 / t", "2 ** t", "1 < t", "1 <= t", "1 > t", "1 >= t", "1 == t", "1 != t",
    "np.float32(2) + t", "np.float32(2) - t", "np.float32(2) * t", "np.float32(2) / t", "np.float32(2) ** t",
    "np.float32(1) < t", "np.float32(1) >= t", "np.float32(1) == t", "np.float64(2) * t", "np.float64(2) - t",
    "np.int64(3) / t", "t - np.float32(2)", "t / np.float64(2)", "(t + u) * (t - u)", "-(t + u)",
    "abs(t - u)", "1 - t * u", "(t + u) / (1 + t)", "(t + u) > 2", "2 > (t + u)", "np.float32(3) - (t + u)",
    "(t < u) + (t == u)", "t * t * t", "t + t", "t - t",
]  # fmt: skip


# What an operator is, all backends are told alike; what the ops are on each of them, others of these tests
# say.
@pytest.mark.parametrize(
    "text",
    thorough_but(
        EXPRESSIONS, "t - u", "2 / t", "t ** 2", "(t + u) / (1 + t)", "(t < u) + (t == u)", where=["compiled"]
    ),
)
@pytest.mark.thorough("gpu")
def test_operators_mean_what_they_mean_on_arrays(backend, rng, text):
    t, u = (rng.random((3, 50), np.float32) * 3 for _ in range(2))
    t[:, :9] = u[:, :9] = 1  # so that some are equal
    out = backend.empty(t.shape)
    out[:] = eval(text, {"np": np, "t": backend.array(t), "u": backend.array(u)})
    wanted = np.asarray(eval(text, {"np": np, "t": t, "u": u})).astype(np.float32)
    assert ulp_distance(out.get(), wanted).max() <= (4 if "**" in text and text != "t ** 2" else 0)


@pytest.mark.rest(where=["gpu"])
def test_a_comparison_of_tensors_is_no_identity_test(backend):
    t = backend.array([1.0, np.nan])
    out = backend.empty(2)
    out[:] = t == t
    assert out.get().tolist() == [1.0, 0.0]
    assert len({t, t}) == 1  # the hash goes by identity


@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_out_takes_the_result_and_is_returned(backend, rng):
    x, y = rng.random((4, 6), np.float32), rng.random((4, 6), np.float32)
    be, t, u = backend, backend.array(x), backend.array(y)
    column, row = be.array(x[:, :1]), be.array(y[:1])
    for function, wanted in [
        (lambda out: be.add(t, u, out=out), x + y),
        (lambda out: be.subtract(t * 2, 1, out=out), x * 2 - 1),
        (lambda out: be.sqrt(t, out=out), np.sqrt(x)),
        (lambda out: be.sqrt(t, out), np.sqrt(x)),
        (lambda out: be.multiply(2, 3, out=out), np.full_like(x, 6)),
        (lambda out: be.multiply(column, row, out=out), x[:, :1] * y[:1]),
        (lambda out: be.where(t < u, t, 0, out=out), np.where(x < y, x, np.float32(0))),
        (lambda out: be.clip(t, 0.25, 0.75, out=out), np.clip(x, np.float32(0.25), np.float32(0.75))),
        (lambda out: be.shift(t, 3, value=False, out=out), x * 8),
        (lambda out: be.power(t, 2, out=out), x * x),
        (lambda out: be.max(t, axis=0, out=out), x.max(0, keepdims=True)),
        (lambda out: be.min(t, out=out), x.min().reshape(1, 1)),
        (lambda out: be.argmin(t, out=out), x.argmin(1)[:, None].astype(np.float32)),
    ]:
        out = be.empty(wanted.shape)
        assert function(out) is out
        assert same_bits(out.get(), wanted)
    for name in ("sum", "mean", "var", "std"):
        out = be.empty((4, 1))
        assert getattr(be, name)(t, axis=1, out=out) is out
        np.testing.assert_allclose(out.get(), getattr(np, name)(x, axis=1, keepdims=True), rtol=1e-5)


# --- reductions ---

BIG = 1_000_003
# Shapes, and the axes to reduce over. (A tile of a sum is 4096 elements; above 16384 the CPU uses its
# threads.)
CASES = [
    ((1,), (None, 0)), ((257,), (None, 0)), ((BIG,), (None, 0)), ((1, 1), (None, 0, 1)),
    ((200, 128), (None, 0, 1)), ((3, 70_001), (None, 1)), ((20_000, 7), (None, 0)), ((2, 3, 4), (None, 0, 1)),
]  # fmt: skip
REDUCTIONS = {
    "sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "var": np.var, "std": np.std,
    "argmax": np.argmax, "argmin": np.argmin,
}  # fmt: skip


@functools.cache
def sample(shape, dtype):
    return (np.random.default_rng(7).standard_normal(shape) + 0.5).astype(dtype)


def reduced(be, name, array, axis, keepdims=True):
    """Return ``be.<name>(array, axis, keepdims=keepdims)`` as an array."""
    shape = np.max(array, axis=axis, keepdims=keepdims).shape
    return getattr(be, name)(
        be.wrap(array), axis=axis, keepdims=keepdims, out=be.empty(shape, array.dtype)
    ).get()


@each_dtype
@pytest.mark.parametrize(("shape", "axes"), CASES, ids=str)
@pytest.mark.covering
@pytest.mark.thorough("gpu")
@pytest.mark.rest("cpu-(257*")
def test_reductions_equal_numpys_in_float64(backend, shape, axes, dtype):
    x = sample(shape, dtype)
    wide = x.astype(np.float64)
    for name, axis in itertools.product(REDUCTIONS, axes):
        wanted = np.asarray(REDUCTIONS[name](wide, axis=axis, keepdims=True))
        got = reduced(backend, name, x, axis)
        assert got.shape == wanted.shape and got.dtype == dtype
        if name in ("max", "min", "argmax", "argmin"):
            assert same_bits(got, wanted.astype(dtype))
        else:
            # A value passes 12 additions in its tile, and 8 at most above. The values' magnitudes are about
            # 1.
            scale = np.sum(np.abs(wide), axis=axis, keepdims=True) if name == "sum" else 1
            assert (np.abs(got - wanted) <= 20 * np.finfo(dtype).eps * scale).all(), (name, axis)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.thorough("gpu")
def test_keepdims(backend, name):
    x = sample((5, 4), np.float32)
    for axis in (None, 0, 1):
        kept, dropped = (reduced(backend, name, x, axis, keepdims) for keepdims in (True, False))
        assert kept.shape == x.max(axis=axis, keepdims=True).shape
        assert dropped.shape == x.max(axis=axis).shape
        assert same_bits(kept.reshape(dropped.shape), dropped)


def test_reductions_go_over_everything_and_arg_reductions_over_axis_1_by_default(backend):
    x = sample((5, 4), np.float32)
    t = backend.wrap(x)
    assert same_bits(backend.max(t, out=backend.empty((1, 1))).get(), x.max().reshape(1, 1))
    assert same_bits(
        backend.argmax(t, out=backend.empty((5, 1))).get(), x.argmax(axis=1)[:, None].astype(np.float32)
    )


@each_dtype
@pytest.mark.rest("float32")
def test_reductions_have_the_references_bits(dtype):
    rng = np.random.default_rng(11)
    cases = [(sample(shape, dtype), axes) for shape, axes in CASES]
    cases += [(special_values(dtype, rng, n), (None,)) for n in (5, 9, 30, BIG)]
    cases += [(np.where(rng.random((400, 3)) < 0.5, dtype(0), dtype(-0.0)), (0, 1))]
    for x, axes in cases:
        for name, axis in itertools.product(REDUCTIONS, axes):
            with nbopt.use_backend("reference") as be:
                wanted = reduced(be, name, x, axis)
            for num_threads in (1, 2):
                with nbopt.use_backend("cpu", num_threads=num_threads) as be:
                    assert same_bits(reduced(be, name, x, axis), wanted), (name, x.shape, axis, num_threads)


@each_dtype
@pytest.mark.thorough("gpu")
def test_largest_and_smallest_of_special_values(backend, dtype):
    nan, inf = np.nan, np.inf
    rows = np.array(
        [
            [0.0, -0.0, -0.0],
            [-0.0, 0.0, 0.0],
            [-0.0, -0.0, -0.0],
            [1, nan, inf],
            [-inf, 3, inf],
            [2, 2, 1],
            [-1, -0.0, -2],
        ],
        dtype,
    )
    assert same_bits(
        reduced(backend, "max", rows, 1)[:, 0], np.array([0.0, 0.0, -0.0, nan, inf, 2, -0.0], dtype)
    )
    assert same_bits(
        reduced(backend, "min", rows, 1)[:, 0], np.array([-0.0, -0.0, -0.0, nan, -inf, 1, -2], dtype)
    )
    assert reduced(backend, "argmax", rows[4:], 1)[:, 0].tolist() == [2, 0, 1]
    assert reduced(backend, "argmin", rows[4:], 1)[:, 0].tolist() == [0, 2, 2]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.thorough("gpu")
def test_reductions_go_by_c_order_whatever_the_strides(backend, name):
    x = sample((200, 128), np.float32)
    spread = np.zeros((400, 128), np.float32)[::-2]
    spread[...] = x
    for axis in (None, 0, 1):
        wanted = reduced(backend, name, x, axis)
        assert same_bits(reduced(backend, name, np.asfortranarray(x), axis), wanted)
        assert same_bits(reduced(backend, name, spread, axis), wanted)


REDUCING = {
    "t - be.mean(t, axis=0)": lambda x, y: x - x.mean(axis=0),
    "t / be.sum(t)": lambda x, y: x / x.sum(),
    "be.sum(t * u, axis=1)": lambda x, y: (x * y).sum(axis=1, keepdims=True),
    "u * be.sqrt(be.sum(be.square(t)))": lambda x, y: y * np.sqrt((x * x).sum()),
    "be.max(be.sum(t, axis=0)) - u": lambda x, y: x.sum(axis=0).max() - y,
    "(t - be.mean(t, axis=1)) / be.std(t, axis=1)": lambda x, y: (
        (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    ),
    "be.var(t - u)": lambda x, y: (x - y).var(),
}


@pytest.mark.parametrize("text", REDUCING)
@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_reductions_inside_expressions(backend, text):
    x, y = sample((6, 11), np.float64), sample((7, 11), np.float64)[1:]
    out = backend.empty(x.shape, np.float64)
    out[:] = eval(text, {"be": backend, "t": backend.wrap(x), "u": backend.wrap(y)})
    np.testing.assert_allclose(out.get(), np.broadcast_to(REDUCING[text](x, y), x.shape), rtol=1e-12)


# --- shapes, views, overlap: a few programs, many layouts ---

_dtypes = st.tuples(*[st.sampled_from([np.float32, np.float64])] * 3)


def drawn(seed, shape, dtype):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def difference(a, b, out_dtype):
    """``a - b`` as an update of these dtypes computes it.

    It is in float64 if any is float64, and rounded once more when it is stored.
    """
    wide = np.result_type(a, b, out_dtype)
    return (a.astype(wide) - b.astype(wide)).astype(out_dtype)


@given(shapes=mutually_broadcastable_shapes(num_shapes=3, min_side=0, max_side=5, max_dims=4), dtypes=_dtypes)
@pytest.mark.thorough("gpu")
@pytest.mark.rest
def test_broadcasting_is_numpys(backend, shapes, dtypes):
    a, b = (drawn(seed, shape, dtype) for seed, shape, dtype in zip((1, 2), shapes.input_shapes, dtypes))
    # It has the third shape too, so that it can be larger than a - b.
    out = backend.empty(shapes.result_shape, dtypes[2])
    out[:] = backend.wrap(a) - backend.wrap(b)
    assert same_bits(out.get(), np.broadcast_to(difference(a, b, dtypes[2]), out.shape))


@given(shapes=mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=5, max_dims=3), dtypes=_dtypes)
@pytest.mark.rest(where=["gpu"])
def test_plain_values_broadcast_too(backend, shapes, dtypes):
    a = drawn(3, shapes.input_shapes[0], dtypes[0])
    out = backend.empty(shapes.result_shape, dtypes[1])
    wanted = np.broadcast_to(a.astype(dtypes[1]), out.shape)
    for value in (a, backend.wrap(a)):
        out.fill(7)
        out[:] = value
        assert same_bits(out.get(), wanted)
    out[:] = 3
    assert (out.get() == 3).all()


@pytest.mark.parametrize(("shape", "target"), [((3,), (1,)), ((2, 3), (3,)), ((4,), (3,)), ((2, 3), (3, 2))])
def test_a_result_that_does_not_fit_is_refused(backend, shape, target):
    a, out = backend.ones(shape), backend.zeros(target)
    with pytest.raises(nbopt.errors.ShapeError):
        out[:] = a + 1
    assert (out.get() == 0).all()


@st.composite
def layouts(draw, ndim):
    """For each axis (step, lead), and an order of the axes in memory: see `laid_out`."""
    axes = draw(
        st.lists(
            st.tuples(st.sampled_from([1, 1, 2, 3, -1, -2]), st.integers(0, 2)), min_size=ndim, max_size=ndim
        )
    )
    return axes, draw(st.permutations(range(ndim)))


def laid_out(values, layout):
    """Return (memory, view): a view equal to `values` of an array of sevens.

    It has gaps, lead-ins, reversed and permuted axes.
    """
    axes, order = layout
    extents = [lead + abs(step) * n for n, (step, lead) in zip(values.shape, axes)]
    memory = np.full([extents[axis] for axis in order], 7, values.dtype)
    view = memory.transpose([order.index(axis) for axis in range(values.ndim)])
    view = view[(..., *(slice(lead, None, abs(step)) for step, lead in axes))]
    view = view[(..., *(slice(None, None, 1 if step > 0 else -1) for step, _ in axes))]
    view[...] = values
    return memory, view


@given(data=st.data(), shape=st.lists(st.integers(0, 5), max_size=3).map(tuple), dtypes=_dtypes)
@pytest.mark.thorough("gpu")
def test_views_of_any_layout(backend, data, shape, dtypes):
    values = [drawn(seed, shape, dtype) for seed, dtype in enumerate(dtypes)]
    (_, a), (_, b), (memory, out) = (laid_out(x, data.draw(layouts(len(shape)))) for x in values)
    backend.wrap(out)[:] = backend.wrap(a) - backend.wrap(b)
    assert same_bits(out, difference(values[0], values[1], dtypes[2]))
    out[...] = 7
    assert (memory == 7).all()  # nothing was written beside the view


@st.composite
def overlapping(draw, n=40):
    """Three slices of an array of n elements, of the same length and with steps of their own."""
    length = draw(st.integers(0, 12))
    slices = []
    for step in draw(st.lists(st.sampled_from([1, 1, 2, 3, -1, -2]), min_size=3, max_size=3)):
        first = draw(st.integers(0, n - 1 - max(0, length - 1) * abs(step)))
        part = range(first, first + length * abs(step), abs(step))
        slices.append(slice(part[0], part[-1] + 1, step) if step > 0 and length else _backwards(part))
    return slices


def _backwards(part):
    if not part:
        return slice(0, 0)
    return slice(part[-1], part[0] - 1 if part[0] else None, -part.step)


@given(slices=overlapping())
@pytest.mark.rest(where=["gpu"])
def test_overlapping_views_of_one_array_behave_as_numpys(backend, slices):
    target, first, second = slices
    wanted, memory = drawn(1, 40, np.float32), drawn(1, 40, np.float32)
    wanted[target] = wanted[first] * 2 - wanted[second]
    w = backend.wrap(memory)
    w[target] = w[first] * 2 - w[second]
    assert same_bits(memory, wanted)


SHIFTED = {
    "forward": (slice(1, None), slice(None, -1)),
    "backward": (slice(None, -1), slice(1, None)),
    "reversed": (slice(None), slice(None, None, -1)),
    "in place": (slice(None), slice(None)),
    "in place, backwards": (slice(None, None, -1), slice(None, None, -1)),
}


@pytest.mark.parametrize(("target", "source"), SHIFTED.values(), ids=SHIFTED)
@pytest.mark.rest("cpu-*", "*-forward")
def test_overlap_across_chunks_and_threads(backend, target, source):
    wanted, memory = drawn(2, 100_003, np.float64), drawn(2, 100_003, np.float64)
    wanted[target] = wanted[source] * 2
    w = backend.wrap(memory)
    w[target] = w[source] * 2
    assert same_bits(memory, wanted)


@pytest.mark.thorough("gpu")
def test_overlap_in_two_dimensions(backend):
    wanted, memory = drawn(3, (60, 60), np.float32), drawn(3, (60, 60), np.float32)
    wanted[:] = wanted.T - wanted[::-1]
    backend.wrap(memory)[:] = backend.wrap(memory.T) - backend.wrap(memory[::-1])
    assert same_bits(memory, wanted)
    wanted[1:, 1:] += 1
    w = backend.wrap(memory)
    w[1:, 1:] += 1
    assert same_bits(memory, wanted)
    wanted[:] = wanted[0] * wanted[:, :1]
    w[:] = w[0] * w[:, :1]
    assert same_bits(memory, wanted)


@pytest.mark.rest(where=["gpu"])
def test_overlap_of_views_of_different_dtypes(backend):
    memory = np.linspace(1, 2, 500).astype(np.float32).astype(np.float64)  # so that no half of one is a NaN
    halves = memory.view(np.float32)[1::2]
    wanted = memory - halves
    backend.wrap(memory)[:] = backend.wrap(memory) - backend.wrap(halves)
    assert same_bits(memory, wanted)


@pytest.mark.rest(where=["gpu"])
def test_two_tensors_of_the_same_memory(backend):
    wanted, memory = drawn(5, 5000, np.float32), drawn(5, 5000, np.float32)
    wanted[:] = wanted * wanted - wanted
    t, u = backend.wrap(memory), backend.wrap(memory)
    t[:] = t * u - u
    assert same_bits(memory, wanted)
