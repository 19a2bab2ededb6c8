"""Sums outside of rules on the CPU, in the shape of `nbopt_backends.meaning.tree`.

Compiled as `nbopt_backends.cpu.drivers` is.
"""

import numpy as np
from numba import prange

from nbopt_backends.cpu.primitives import (
    empty,
    fold_sum_float32,
    fold_sum_float64,
    load_float32,
    load_float64,
    part,
    store_float32,
    store_float64,
)
from nbopt_backends.meaning.tree import TILE


def row_sums(matrix, size, m, n, tiles, sums):
    """Sum each row of a matrix.

    Parameters
    ----------
    matrix, size : int64
        Address of a contiguous [m, n] of float32 or float64, and the bytes of an element.
    m, n, tiles : int64
        Each row has so many tiles: one if it has no elements.
    sums : int64
        Address of float64[m, tiles]. The first of each row becomes its sum; the others are used up.
    """
    for c in prange(m * tiles):
        start = c % tiles * TILE
        store_float64(
            sums, c, -1, tile_sum(matrix + (c // tiles * n + start) * size, min(TILE, n - start), size)
        )
    if tiles > 1:
        for row in range(m):
            fold_sum_float64(sums + row * tiles * 8, tiles)


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
