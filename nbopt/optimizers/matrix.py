"""What the optimizers have in common whose steps are orthogonal matrices."""

import math
from typing import Any

from nbopt import checks
from nbopt.errors import ArgumentError, TraceError
from nbopt.language.linear import checked_coefficients
from nbopt.language.matrices import COEFFICIENTS, METHODS
from nbopt.optimizers.base import Optimizer
from nbopt.optimizers.hyper import hyper
from nbopt.optimizers.step import Expr, Slot


class MatrixOptimizer(Optimizer):
    """Base of optimizers whose steps are orthogonal matrices.

    A parameter with two axes is a matrix, and one with three a batch of matrices, such as the experts of a
    layer. One with more is refused unless `flatten` says what it is. Vectors are refused: give them, and
    embeddings and output layers, another optimizer (`MultiOptimizer` goes by layers).
    """

    learning_rate = hyper(0.02)
    momentum_coef = hyper(0.95, checks.below_one, "Decay of the running mean of gradients.", torch="momentum")
    wdecay = hyper(0.0, checks.non_negative, "Weight decay, as in `AdamW`.", torch="weight_decay")
    ns_steps = hyper(5, checks.positive_int, "Steps of the orthogonalisation.")
    ns_coefficients = hyper(
        COEFFICIENTS,
        checked_coefficients,
        takes="tuple of float",
        doc="The three numbers of its polynomial, or three for each step; see `be.orthogonalize`.",
    )
    flatten = hyper(
        None,
        checks.optional(checks.boolean),
        "True: a parameter is one matrix of its first axis and all others, as for kernels of convolutions. "
        "False: its last two axes are a matrix.",
    )
    method = hyper(
        None, checks.one_of(*METHODS), '"plain" or "gram", see `be.orthogonalize`. None: whichever is faster.'
    )
    workspace = hyper(
        None,
        checks.optional(checks.positive_int),
        "The most bytes that matrices may take besides, at a time; see `be.orthogonalize`. None: 256 MiB.",
    )

    def sides(self, param: Slot) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the axes of the parameter that are a matrix's rows, and its columns, as two tuples."""
        every = tuple(range(param.ndim))
        return (every[:1], every[1:]) if self.flatten else (every[-2:-1], every[-1:])

    def lengths(self, param: Slot) -> tuple[Any, Any]:
        """Return the numbers of rows and columns of the parameter's matrices."""
        shape = param.shape
        rows, columns = (math.prod((shape[axis] for axis in axes), start=1.0) for axes in self.sides(param))
        return rows, columns


def orthogonal(optimizer: Any, param: Slot, x: Expr, **options: Any) -> Expr:
    """Return the orthogonalisation of a value, in a rule.

    Parameters
    ----------
    optimizer : Optimizer
        With the attributes of `MatrixOptimizer`.
    param : Slot
    x : Value
    **options
        Further ones of `be.orthogonalize`.

    Returns
    -------
    Value

    Raises
    ------
    TraceError
        If the parameter is no matrix.
    """
    if param.ndim < 2:
        raise TraceError(
            f"{optimizer.classnm} takes matrices, and this is a vector: a bias, a gain, or a matrix that was"
            " flattened or cut to shards. Give vectors another optimizer, and matrices their shape"
        )
    if param.ndim > 3 and optimizer.flatten is None:
        raise TraceError(
            f"{optimizer.classnm} takes matrices and batches of them. Write flatten=True if the parameter is "
            "a kernel of a convolution, flatten=False if its last two axes are a matrix"
        )
    return optimizer.be.orthogonalize(
        x,
        optimizer.ns_steps,
        optimizer.ns_coefficients,
        optimizer.method,
        flatten=bool(optimizer.flatten),
        workspace=optimizer.workspace,
        **options,
    )


def lengths_of_parts(name: str, value: Any) -> tuple[int, ...] | None:
    """Check the lengths of the parts of a matrix: a tuple of ints from 1 on, or None."""
    if value is None:
        return None
    try:
        return tuple(checks.positive_int(name, part) for part in value)
    except (TypeError, ArgumentError):
        raise ArgumentError(
            f"{name} must be a tuple of ints from 1 on, such as (768, 768, 768), not {value!r}"
        ) from None


lengths_of_parts.type = "tuple of int, optional"  # type: ignore[attr-defined]
