"""What rules call functions of matrices by: ``be.matmul`` and ``be.orthogonalize``."""

import math
import numbers
from typing import Any

from nbopt.errors import ArgumentError, TraceError
from nbopt.language.expressions import Node
from nbopt.language.matrices import ADJUSTMENTS, COEFFICIENTS, METHODS, Orthogonalize
from nbopt.language.values import Value


def matmul(x: Node, y: Node) -> Value:
    """Return the product of two matrices of a rule.

    Parameters
    ----------
    x, y : Value
        Of the parameter's shape, or ``x.T``, or a product. The last two axes are a matrix; those before them
        are a batch.

    Returns
    -------
    Value
        It may have another shape if it is a factor of a further product: ``be.matmul(be.matmul(x, x.T), x)``.
    """
    return _value("be.matmul", x).factors().then(_value("be.matmul", y).factors())


def orthogonalize(
    x: Node,
    steps: Any = 5,
    coefficients: Any = COEFFICIENTS,
    method: str | None = None,
    *,
    epsilon: Any = 1e-7,
    adjust: str | None = None,
    heads: Any = 1,
    split: Any = (),
    axis: Any = -2,
    flatten: bool = False,
    workspace: Any = None,
) -> Value:
    """Return a matrix whose singular values are near 1, and whose singular vectors are those of `x`.

    ``x = x / max(norm(x), epsilon)``, and then in each step ``x = a x + (b (x x^T) + c (x x^T)^2) x``.

    Parameters
    ----------
    x : Value
        One value for each element of a parameter. The last two axes are a matrix; those before them are a
        batch. A matrix that is taller than wide is transposed meanwhile.
    steps : int
        How many steps.
    coefficients : tuple of float, or of tuples
        The ``a, b, c`` of all steps, or those of each step; the last ones are repeated.
    method : str, optional
        ``"plain"``: three products in each step. ``"gram"``: the steps are of ``x x^T`` alone, if the matrix
        is at least twice as long as wide, where that takes fewer operations and no more memory; it starts
        again after two steps, since small singular values would be lost. None: whichever takes fewer
        operations on this backend: the Gram form from 2 on, or from 1.5 where products are in 16 bits.
    epsilon : float
        The least norm that `x` is divided by.
    adjust : str, optional
        What each result is multiplied by: ``"original"``: ``max(1, rows / columns)^.5``;
        ``"match_rms_adamw"``: ``.2 max(rows, columns)^.5``; None: nothing.
    heads : int
        Cut each matrix, or part of it, into as many blocks of equal size, and orthogonalise each.
    split : tuple of int
        Cut each matrix into parts of these lengths, such as those of queries, keys and values.
    axis : int
        What is cut: -2 rows, -1 columns.
    flatten : bool
        Whether the parameter is one matrix: its first axis, and all others, as for kernels of convolutions.
    workspace : int, optional
        The most bytes that matrices of one step may take at a time, and that batches may in their products;
        more go in parts, of one parameter at least, and of one matrix. Without it 256 MiB.

    Returns
    -------
    Value

    Raises
    ------
    ArgumentError
        If an argument makes no sense.
    TraceError
        Outside a rule, or if `x` varies with less than elements, or the parameter has fewer than two axes.
    """
    value = _value("be.orthogonalize", x)
    function = Orthogonalize(
        _per_step(checked_coefficients("coefficients", coefficients), _int("steps", steps)),
        float(epsilon),
        method,
        adjust,
        _int("heads", heads),
        tuple(_int("split", part) for part in split or ()),
        int(axis),
        bool(flatten),
        None if workspace is None else _int("workspace", workspace),
    )
    for name, allowed in (("method", METHODS), ("adjust", (None, *ADJUSTMENTS)), ("axis", (-2, -1))):
        if getattr(function, name) not in allowed:
            raise ArgumentError(
                f"{name} must be {' or '.join(map(repr, allowed))}, not {getattr(function, name)!r}"
            )
    if not function.epsilon >= 0:
        raise ArgumentError(f"epsilon must be a number from 0 on, not {epsilon!r}")
    return Value(value.tracer, value.tracer.matrix(function, [value.tracer.operand(value)]))


def _value(called: str, x: Any) -> Value:
    if not isinstance(x, Value):
        raise TraceError(
            f"{called} takes the matrices of a rule, such as param and grad, not {type(x).__name__}. For "
            "other arrays use numpy.matmul or torch.matmul"
        )
    return x


def _int(name: str, value: Any) -> int:
    number = float(value) if isinstance(value, (numbers.Real, Value)) else 0.0
    if isinstance(value, bool) or not 1 <= number < math.inf or number != int(number):
        raise ArgumentError(f"{name} takes an int from 1 on, not {value!r}")
    return int(number)


def checked_coefficients(name: str, value: Any) -> tuple[Any, ...]:
    """Return the coefficients of steps as a tuple of three floats, or of such tuples; raise ArgumentError."""
    try:
        found = tuple(
            tuple(map(float, row)) if isinstance(row, (tuple, list)) else float(row) for row in value
        )
        rows: Any = found if found and isinstance(found[0], tuple) else (found,)
        if all(len(row) == 3 and all(map(math.isfinite, row)) for row in rows):
            return found
    except (TypeError, ValueError):
        pass
    raise ArgumentError(
        f"{name} must be three finite numbers, such as (3.4445, -4.775, 2.0315), or three for each step, not"
        f" {value!r}"
    )


def _per_step(coefficients: tuple[Any, ...], steps: int) -> tuple[tuple[float, ...], ...]:
    """Return three coefficients for each step."""
    every = [*coefficients] if isinstance(coefficients[0], tuple) else [coefficients]
    return tuple([*every, *[every[-1]] * steps][:steps])
