"""Sums outside of rules on the CPU, in the shape of `nbopt_backends.meaning.tree`.

Each function that takes ``(argument, entry, step)`` is compiled by its name when a sum needs it, see
`nbopt_backends.cpu.drivers`. The argument of both is the address of int64[6]: 0, 1 the address of a
contiguous [m, n] of float32 or float64, and the bytes of an element; 2, 3 m and n; 4 how many tiles a row
has, one if it has no elements; 5 the address of float64[m, tiles].
"""

import numpy as np

from nbopt_backends.cpu.primitives import (
    empty,
    fold_sum_float32,
    fold_sum_float64,
    int64_at,
    load_float32,
    load_float64,
    part,
    put_float64,
    store_float32,
    store_float64,
)
from nbopt_backends.meaning.tree import TILE


def sum_tile(rows, c, step):
    """Sum tile number `c` of all."""
    matrix, size, n, tiles = int64_at(rows, 0), int64_at(rows, 1), int64_at(rows, 3), int64_at(rows, 4)
    start = c % tiles * TILE
    found = tile_sum(matrix + (c // tiles * n + start) * size, min(TILE, n - start), size)
    put_float64(int64_at(rows, 5), c, found)


def sum_row(rows, row, step):
    """Fold the tiles of a row: the first of them becomes its sum, and the others are used up."""
    tiles = int64_at(rows, 4)
    fold_sum_float64(int64_at(rows, 5) + row * tiles * 8, tiles)


@part
def tile_sum(source, n, size):
    """Return the sum of up to a tile of elements as a float64."""
    if n == 0:
        return 0.0
    buffer = empty(TILE, np.float64)
    # The folds below take it anew: Numba would free the buffer after its last use.
    values = buffer.ctypes.data
    if size == 4:
        for k in range(n):
            store_float32(values, k, 1, load_float32(source, k, 0))
        return float(fold_sum_float32(buffer.ctypes.data, n))
    for k in range(n):
        store_float64(values, k, 1, load_float64(source, k, 0))
    return fold_sum_float64(buffer.ctypes.data, n)
