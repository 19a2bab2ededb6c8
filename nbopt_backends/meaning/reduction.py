"""The fixed shape of sums outside rules, so that they repeat bit for bit on any backend, thread count and grid.

A sum over n values in C order goes by tiles of `TILE` values. Within a tile, lane l adds the values l, l + LANES, l + 2 LANES, ... one
after the other to 0; then the upper half of the lanes is added to the lower half until one lane is left. The tiles' sums are the values of
the next pass, until one value is left. Here it stands in NumPy; `cpu_reductions` and `cuda_reductions` have the same in Numba.
"""

import numpy as np

LANES = 256
TILE = 8192
_AT_ONCE = 1 << 16


def tile_count(n):
    """Return the number of tiles that `n` values fill; 1 for none."""
    return max(1, -(-n // TILE))


def tile_sums(values):
    """Sum the last axis of `values`, float32 or float64, tile by tile. Returns shape ``(..., tile_count(n))``."""
    n = values.shape[-1]
    tiles = tile_count(n)
    # The last row, and where there are several tiles the last tile, are filled up with 0. That changes no lane: a lane starts
    # at +0, so it is never -0.
    height = TILE // LANES if tiles > 1 else max(1, -(-n // LANES))
    padded = np.zeros((*values.shape[:-1], tiles * height * LANES), values.dtype)
    padded[..., :n] = values
    rows = padded.reshape(*values.shape[:-1], tiles, height, LANES)
    lanes = np.zeros((*values.shape[:-1], tiles, LANES), values.dtype)
    for row in range(height):
        lanes += rows[..., row, :]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def tree_sum(values):
    """Sum the last axis of `values`, float32 or float64, in the fixed shape."""
    if values.ndim > 1 and values.size > _AT_ONCE:  # short rows are padded to LANES, so not too many at a time
        half = len(values) // 2
        return np.concatenate([tree_sum(values[:half]), tree_sum(values[half:])]) if half else tree_sum(values[0])[None]
    sums = tile_sums(values)
    while sums.shape[-1] > 1:
        sums = tile_sums(sums)
    return sums[..., 0]
