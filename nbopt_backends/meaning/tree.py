"""The fixed shape of reductions in a step, so that they repeat bit for bit on any backend, thread count and grid.

A reduction over the elements of a parameter, in C order, goes by tiles of `TILE` values. A tile is folded in the arithmetic of the update: of n
values, with h the largest power of two below n, those from h on are added to the first n - h (or the larger or smaller of both is taken), until
one value is left. The results of the tiles are float64; they are folded in the same way into the parameter's result, and the results of the
parameters with elements, in list order, into the step's.

Here it stands in NumPy. `fold` of `nbopt_backends.cpu.primitives` is the same in Numba. CUDA's is in `nbopt_backends.cuda.tiles` and `numbers`.
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
    """Reduce each tile of a flat array, float32 or float64, to one float64."""
    whole = len(values) // TILE * TILE
    found = fold(op, values[:whole].reshape(-1, TILE)).astype(np.float64)
    return np.append(found, np.float64(fold(op, values[whole:]))) if whole < len(values) else found


def combined(op, results):
    """Reduce a flat float64 array to a float; over no values it is what the op gives then."""
    return float(fold(op, np.asarray(results, np.float64))) if len(results) else OPS[op][1]
