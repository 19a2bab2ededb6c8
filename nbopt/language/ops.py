"""The op table: every element-wise operation that a kernel may contain, and what it means.

`PRIMITIVES` is the vocabulary of programs and backends. Each row gives the meaning in NumPy, which the
reference backend runs as it stands; a Numba dialect spells the same row for its target. `COMPOSED` operations
are written in terms of the primitives, once, here, and no backend ever sees them.

To add an op: one row here. A primitive also needs a spelling, where a call of the same name does not do: in
`nbopt_backends.lowering.text.COMMON_OPS` for all targets whose kernels are Python source, or in one dialect's
table.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Op(NamedTuple):
    """One primitive operation.

    Attributes
    ----------
    name : str
    arity : int
        The number of operands.
    numpy : callable
        The meaning: takes arrays or scalars of one floating dtype, gives the same dtype.
    exact : bool
        True: correctly rounded, so that every backend gives the same bits. False: within 4 ulp of the
        reference.
    doc : str
        One line.
    """

    name: str
    arity: int
    numpy: Callable[..., Any]
    exact: bool
    doc: str


def _in_double(function: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluate `function` in float64 and round once.

    So the reference is the more accurate side of a comparison.
    """

    def rounded(*operands: Any) -> Any:
        dtype = np.result_type(*operands)
        return function(*(np.asarray(x, dtype=np.float64) for x in operands)).astype(dtype)

    return rounded


def _as_float(predicate: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a NumPy predicate into one that gives 0.0 or 1.0 in the operands' dtype."""
    return lambda *operands: np.asarray(predicate(*operands)).astype(np.result_type(*operands))


def _maximum(a: Any, b: Any) -> Any:
    # NumPy leaves the order of -0 and +0 open; here -0 is the smaller one.
    return np.where(a == b, np.where(np.signbit(a), b, a), np.maximum(a, b))


def _minimum(a: Any, b: Any) -> Any:
    return np.where(a == b, np.where(np.signbit(a), a, b), np.minimum(a, b))


def _shift(a: Any, b: Any) -> Any:
    mantissa, exponent = np.frexp(np.abs(b))  # mantissa in [0.5, 1)
    # log2|b| rounds up where the mantissa is above sqrt(1/2). math.sqrt(0.5) is the smallest float64 above
    # the true root, so the comparison is exact for float64 and, widened, for float32.
    up = mantissa.astype(np.float64) >= math.sqrt(0.5)
    power = np.where(up, exponent, exponent - 1)
    scaled = np.ldexp(np.where(np.signbit(b), -a, a), power.astype(np.int32))
    special = ~np.isfinite(b)
    scaled = np.where(b == 0, np.zeros_like(scaled), scaled)
    return np.where(special, a * b, scaled)


def _ldexp(a: Any, b: Any) -> Any:
    # Beyond +-2200 every float64 has become zero or infinity already.
    power = np.clip(np.rint(np.nan_to_num(b, nan=0.0)), -2200, 2200).astype(np.int32)
    return np.where(np.isnan(b), b, np.ldexp(a, power))


def _power_of(a: Any, b: Any) -> Any:
    # NumPy takes a square root for a scalar exponent of 0.5, which differs from IEEE 754's pow at -0 and
    # -infinity.
    root = (b == 0.5) & ((a == 0) | np.isneginf(a))
    return np.where(root, np.absolute(a), np.power(a, b))


_ROWS = [
    Op("add", 2, np.add, True, "a + b"),
    Op("subtract", 2, np.subtract, True, "a - b"),
    Op("multiply", 2, np.multiply, True, "a * b"),
    Op("divide", 2, np.divide, True, "a / b; x / 0 is an infinity or NaN, as in IEEE 754"),
    Op("negative", 1, np.negative, True, "-a"),
    Op("absolute", 1, np.absolute, True, "the magnitude of a"),
    Op("sgn", 1, np.sign, True, "-1, 0 or 1 by the sign of a; NaN for NaN"),
    Op("sqrt", 1, np.sqrt, True, "the square root of a"),
    Op("rint", 1, np.rint, True, "a rounded to the nearest integer, halves to even"),
    Op("finite", 1, _as_float(np.isfinite), True, "1 where a is finite, 0 where it is infinite or NaN"),
    Op("equal", 2, _as_float(np.equal), True, "1 where a == b, else 0"),
    Op("not_equal", 2, _as_float(np.not_equal), True, "1 where a != b, else 0"),
    Op("less", 2, _as_float(np.less), True, "1 where a < b, else 0"),
    Op("less_equal", 2, _as_float(np.less_equal), True, "1 where a <= b, else 0"),
    Op("greater", 2, _as_float(np.greater), True, "1 where a > b, else 0"),
    Op("greater_equal", 2, _as_float(np.greater_equal), True, "1 where a >= b, else 0"),
    Op("maximum", 2, _maximum, True, "the larger of a and b; NaN if either is NaN; -0 is below +0"),
    Op("minimum", 2, _minimum, True, "the smaller of a and b; NaN if either is NaN; -0 is below +0"),
    Op("where", 3, lambda c, a, b: np.where(c != 0, a, b), True, "a where c is not 0, else b"),
    Op("shift", 2, _shift, True, "a * sign(b) * 2^k, k the integer nearest to log2|b|; 0 where b is 0"),
    Op("ldexp", 2, _ldexp, True, "a * 2^b for an integer b (other b are rounded to one)"),
    Op("power", 2, _in_double(_power_of), False, "a to the power b"),
    Op("exp", 1, _in_double(np.exp), False, "e to the power a"),
    Op("exp2", 1, _in_double(np.exp2), False, "2 to the power a"),
    Op("log", 1, _in_double(np.log), False, "the natural logarithm of a"),
    Op("log2", 1, _in_double(np.log2), False, "the base-2 logarithm of a"),
    Op("tanh", 1, _in_double(np.tanh), False, "the hyperbolic tangent of a"),
]

PRIMITIVES = {op.name: op for op in _ROWS}


class Composed(NamedTuple):
    """One operation written in terms of others.

    Attributes
    ----------
    name : str
    build : callable
        ``build(op, *operands)``, where ``op(name, *operands)`` applies a primitive.
    operands : tuple of str
        The operands' names, for signatures and documentation.
    doc : str
        One line.
    """

    name: str
    build: Callable[..., Any]
    operands: tuple[str, ...]
    doc: str


def _power(op: Callable[..., Any], a: Any, b: Any) -> Any:
    """Build a power; an int from -4 to 4 is structure and becomes multiplications in a fixed order."""
    if not (isinstance(b, (int, np.integer)) and -4 <= b <= 4):
        return op("power", a, b)
    exponent = int(b)
    if exponent == 0:
        return op("where", a, 1.0, 1.0)  # 1 in the shape of a, for NaN too
    result = a
    if abs(exponent) > 1:
        square = op("multiply", a, a)
        result = {
            2: lambda: square,
            3: lambda: op("multiply", square, a),
            4: lambda: op("multiply", square, square),
        }[abs(exponent)]()
    return op("divide", 1.0, result) if exponent < 0 else result


def _clip(op: Callable[..., Any], a: Any, a_min: Any, a_max: Any) -> Any:
    return op("minimum", op("maximum", a, a_min), a_max)


def _tanh2(op: Callable[..., Any], a: Any) -> Any:
    return op("tanh", op("multiply", a, math.log(2.0)))


def _sig(op: Callable[..., Any], exponential: str, a: Any) -> Any:
    return op("divide", 1.0, op("add", 1.0, op(exponential, op("negative", a))))


COMPOSED = {
    row.name: row
    for row in [
        Composed(
            "true_divide", lambda op, a, b: op("divide", a, b), ("a", "b"), "a / b, another name of divide"
        ),
        Composed(
            "fabs", lambda op, a: op("absolute", a), ("a",), "the magnitude of a, another name of absolute"
        ),
        Composed("square", lambda op, a: op("multiply", a, a), ("a",), "a * a"),
        Composed("reciprocal", lambda op, a: op("divide", 1.0, a), ("a",), "1 / a"),
        Composed("clip", _clip, ("a", "a_min", "a_max"), "min(max(a, a_min), a_max); NaN stays NaN"),
        Composed(
            "power",
            _power,
            ("a", "b"),
            "a to the power b; an int b from -4 to 4 becomes exact multiplications",
        ),
        # neon's bound: below e^-50 the logarithm is cut off, so that log(0) is finite.
        Composed(
            "safelog",
            lambda op, a: op("log", op("maximum", a, math.exp(-50.0))),
            ("a",),
            "log(max(a, e^-50))",
        ),
        Composed("sig", lambda op, a: _sig(op, "exp", a), ("a",), "the logistic function 1 / (1 + e^-a)"),
        Composed(
            "sig2",
            lambda op, a: _sig(op, "exp2", a),
            ("a",),
            "the logistic function in base 2, 1 / (1 + 2^-a)",
        ),
        Composed("tanh2", _tanh2, ("a",), "the hyperbolic tangent in base 2, (4^a - 1) / (4^a + 1)"),
        Composed(
            "shift",
            lambda op, a, b, value=True: op("shift" if value else "ldexp", a, b),
            ("a", "b", "value=True"),
            "a * sign(b) * 2^k, k the integer nearest to log2|b|; with value=False a * 2^b for an integer b",
        ),
    ]
}

#: Reductions: name -> one line. All keep the reduced axis with length 1 unless told otherwise.
REDUCTIONS = {
    "sum": "the sum",
    "max": "the largest value; NaN if any is NaN",
    "min": "the smallest value; NaN if any is NaN",
    "argmax": "the index of the first largest value, as a float",
    "argmin": "the index of the first smallest value, as a float",
}


def compute_dtype(dtypes: Iterable[Any]) -> np.dtype[Any]:
    """Return the numpy.dtype in which operations over these dtypes compute.

    It is float64 if any of them is float64, else float32. They may be names.
    """
    return np.dtype(np.float64 if any(dtype == "float64" for dtype in dtypes) else np.float32)


def evaluate_numbers(name: str, *operands: float) -> float:
    """Apply primitive `name` to numbers, in float64. Returns a float."""
    with np.errstate(all="ignore"):
        return float(PRIMITIVES[name].numpy(*(np.float64(x) for x in operands)))
