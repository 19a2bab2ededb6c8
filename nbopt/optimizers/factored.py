"""Mean squares that are kept for rows and columns alone."""

from nbopt.interface.backend import Backend
from nbopt.optimizers.states import State
from nbopt.optimizers.step import Expr


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
