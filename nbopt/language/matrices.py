"""Functions of whole matrices: what a stage of a program computes.

A value that varies with elements is a matrix in its last two axes; the axes before them are a batch. A
function of matrices is a stage of its own. It runs on a library of linear algebra, and is as exact as that.
"""

import math
from typing import NamedTuple

from nbopt.errors import ShapeError

#: Those of K. Jordan's Muon, and of `torch.optim.Muon`.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
#: How the result for each matrix is scaled -> the factor, from its rows and columns.
ADJUSTMENTS = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
METHODS = (None, "plain", "gram")


class Product(NamedTuple):
    """A product of matrices.

    Attributes
    ----------
    factors : tuple of (int, bool)
        Which of the operands each factor is, and whether it is transposed.
    """

    factors: tuple[tuple[int, bool], ...]

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError if the product is not defined for parameters of a shape, or has another shape."""
        *_, rows, columns = shape
        sides = [side for _, flipped in self.factors for side in _sides(rows, columns, flipped)]
        if sides[1:-1:2] != sides[2::2] or (sides[0], sides[-1]) != (rows, columns):
            raise ShapeError(
                f"the product {self} does not exist for matrices of shape ({rows}, {columns}), or has another"
                " shape than they; x.T is the transpose of x"
            )

    def flops(self, shape: tuple[int, ...]) -> int:
        """Return how many additions and multiplications it takes for a parameter of a shape, done plainly."""
        *batch, rows, columns = shape
        return math.prod(batch) * 2 * (len(self.factors) - 1) * rows * columns * min(rows, columns)

    def __str__(self) -> str:
        return " @ ".join("xyzuvw"[number % 6] + ".T" * flipped for number, flipped in self.factors)


def _sides(rows: int, columns: int, flipped: bool) -> tuple[int, int]:
    return (columns, rows) if flipped else (rows, columns)


class Orthogonalize(NamedTuple):
    """The orthogonalisation of matrices by Newton and Schulz, see `orthogonalize`.

    Attributes
    ----------
    coefficients : tuple of tuple of float
        Three for each step.
    epsilon : float
    method, adjust : str or None
    heads : int
    split : tuple of int
    axis : int
        -2 or -1.
    flatten : bool
    workspace : int or None
    """

    coefficients: tuple[tuple[float, ...], ...]
    epsilon: float = 1e-7
    method: str | None = None
    adjust: str | None = None
    heads: int = 1
    split: tuple[int, ...] = ()
    axis: int = -2
    flatten: bool = False
    workspace: int | None = None

    def batch_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the matrices of a parameter: the length of the batch, the rows, the columns."""
        if self.flatten:
            return 1, shape[0], math.prod(shape[1:])
        return math.prod(shape[:-2]), *shape[-2:]

    def parts_of(self, length: int) -> list[tuple[int, int]]:
        """Return the parts that `split` cuts an axis into: the first index and the length of each."""
        lengths = self.split or (length,)
        return [(sum(lengths[:number]), own) for number, own in enumerate(lengths)]

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError if parameters of a shape can't be cut as `split` and `heads` say."""
        length, side = self.batch_of(shape)[self.axis], "rows" if self.axis == -2 else "columns"
        if self.split and sum(self.split) != length:
            raise ShapeError(
                f"split={self.split} cuts {sum(self.split)} {side}, and the matrix of shape {tuple(shape)} "
                f"has {length}: give lengths whose sum is {length}, or another axis= (-2: rows, -1: columns)"
            )
        for _, part in self.parts_of(length):
            if part % self.heads:
                raise ShapeError(
                    f"heads={self.heads} does not divide the {part} {side} of a matrix of shape"
                    f" {tuple(shape)}: give a divisor, or another axis= (-2: rows, -1: columns)"
                )

    def flops(self, shape: tuple[int, ...]) -> int:
        """Return how many additions and multiplications it takes for a parameter of a shape, done plainly."""
        many, *sides = self.batch_of(shape)
        found = 0
        for _, part in self.parts_of(sides[self.axis]):
            own = [*sides]
            own[self.axis] = part // self.heads
            small, large = sorted(own)
            found += self.heads * len(self.coefficients) * (4 * small * small * large + 2 * small**3)
        return many * found

    def __str__(self) -> str:
        cut = [f"split into {self.split}"] * bool(self.split) + [f"{self.heads} heads each"] * (
            self.heads > 1
        )
        return ", ".join([f"orthogonalize, {len(self.coefficients)} steps", *cut])
