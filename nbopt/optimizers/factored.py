"""Mean squares that are kept for rows and columns alone."""

from nbopt.interface.backend import Backend
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr, Slot


def factored(shape: tuple[int, ...]) -> tuple[State, State]:
    """Return the states that stand for a mean square of each element.

    Parameters
    ----------
    shape : tuple of int
        With two axes or more.

    Returns
    -------
    (State, State)
        One number for each row of each matrix, and one for each column. The last two axes are a matrix's.
    """
    *others, row, column = range(len(shape))
    return State(axes=(*others, row)), State(axes=(*others, column))


def inverse_roots(be: Backend, row: Expr, column: Expr, least: float = 0.0) -> tuple[Expr, Expr]:
    """Return a factor for each row and one for each column.

    Their product is 1 over the root of the mean square of an element, which is about ``row * column / (mean
    of row)``. Roots and divisions of rows and columns cost next to nothing; those of elements would take more
    time than the memory does.

    Parameters
    ----------
    be : Backend
    row, column : Value
        The mean squares.
    least : float
        The least mean of the rows.

    Returns
    -------
    (Value, Value)
        Infinite where a row or a column is 0.
    """
    mean = be.mean(row, axis=-2)
    # The root of each first: their quotient may be too small for float32.
    return be.sqrt(be.maximum(mean, least) if least else mean) / be.sqrt(row), 1.0 / be.sqrt(column)


def divided(be: Backend, value: Expr, square: Expr, decay: float, *states: Slot) -> Expr:
    """Return a value over the root of a running mean, which it takes a step.

    Parameters
    ----------
    be : Backend
    value, square : Value
        What is divided, and what the mean is of.
    decay : float
        The mean's.
    *states : Slot
        The mean, or those of rows and of columns.

    Returns
    -------
    Value
    """
    for state, axis in zip(states, (-1, -2) if states[1:] else (None,)):
        state[:] = decay * state + (1.0 - decay) * (square if axis is None else be.mean(square, axis=axis))
    if not states[1:]:
        return value / be.sqrt(states[0])
    of_row, of_column = inverse_roots(be, states[0], states[1])
    # In this order, since the product of both may be infinite where there are no gradients.
    return value * of_row * of_column
