"""The fixed shape of reductions, so that they repeat bit for bit on any backend, thread count and grid.

A reduction over the elements of a parameter, in C order, goes by tiles of `TILE` values. A tile is folded in
the arithmetic of the update: of n values, with h the largest power of two below n, those from h on are added
to the first n - h (or the larger or smaller of both is taken), until one value is left. The results of the
tiles are float64; they are folded in the same way into the parameter's result, and the results of the
parameters with elements, in list order, into the step's.

A sum outside of rules has the same shape: a row along the axis, or the whole tensor, is summed as a
parameter's elements are, and rounded once.

Here it stands in NumPy. `fold` of `nbopt_backends.cpu.primitives` is the same in Numba. CUDA's is in
`nbopt_backends.cuda.tiles` and `numbers`.
"""

import numpy as np

from nbopt.language.ops import PRIMITIVES

TILE = 4096
#: op -> the primitive that joins two values, and the result over no values.
OPS = {"sum": ("add", 0.0), "max": ("maximum", -np.inf), "min": ("minimum", np.inf)}


def tiles_of(n):
    """Return how many tiles `n` values fill."""
    return -(-n // TILE)


def fold(op, values):
    """Reduce the last axis of an array to one value.

    Parameters
    ----------
    op : str
        ``"sum"``, ``"max"`` or ``"min"``.
    values : numpy.ndarray
        float32 or float64; at least one value along the last axis.

    Returns
    -------
    numpy.ndarray
        Without the last axis, of the same dtype.
    """
    join = PRIMITIVES[OPS[op][0]].numpy
    n = values.shape[-1]
    while n > 1:
        half = 1 << ((n - 1).bit_length() - 1)
        joined = join(values[..., : n - half], values[..., half:n])
        values = np.concatenate([joined, values[..., n - half : half]], axis=-1)
        n = half
    return values[..., 0]


def partial_results(op, values):
    """Reduce each tile along the last axis of an array, float32 or float64, to one float64."""
    *outer, n = values.shape
    tiles = n // TILE
    found = fold(op, values[..., : tiles * TILE].reshape(*outer, tiles, TILE)).astype(np.float64)
    rest = values[..., tiles * TILE :]
    return np.concatenate([found, fold(op, rest)[..., None]], axis=-1) if rest.shape[-1] else found


def combined(op, results):
    """Reduce a flat float64 array to a float; over no values it is what the op gives then."""
    return float(fold(op, np.asarray(results, np.float64))) if len(results) else OPS[op][1]


def row_sums(matrix):
    """Sum the rows of a matrix, float32 or float64, outside of a step. Returns an array of the same dtype."""
    found = partial_results("sum", matrix)
    return (fold("sum", found) if found.shape[1] else np.zeros(len(matrix))).astype(matrix.dtype)
