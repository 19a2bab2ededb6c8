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


def relative(be: Backend, row: Expr, least: float = 0.0) -> Expr:
    """Return the means of rows over their own mean, which is taken to be at least some number.

    Times the means of columns they are about the means of elements.

    Parameters
    ----------
    be : Backend
    row : Value
    least : float

    Returns
    -------
    Value
    """
    mean = be.mean(row, axis=-2)
    return row / (be.maximum(mean, least) if least else mean)
