"""Sums on the CPU, in the fixed shape that `nbopt_backends.meaning.reduction` defines: the text of their kernels."""

from nbopt_backends.lowering.text import ITEM_SIZES
from nbopt_backends.meaning.reduction import LANES, TILE

_TEMPLATE = '''"""Sums of {arithmetic} values, in the fixed shape of nbopt_backends.meaning.reduction."""

import numpy as np
from numba import njit, prange

from nbopt_backends.cpu.primitives import *


@njit(error_model="numpy")
def tile_sum(source, n, lanes):
    """Return the sum of n values from the address `source`; `lanes` is scratch memory."""
    for lane in range({LANES}):
        store_{arithmetic}(lanes, lane, 1, {arithmetic}(0))
    full = n // {LANES}
    for row in range(full):
        here = source + row * {row_bytes}
        for lane in range({LANES}):
            store_{arithmetic}(lanes, lane, 1, load_{arithmetic}(lanes, lane, 1) + load_{arithmetic}(here, lane, 0))
    here = source + full * {row_bytes}
    for lane in range(n - full * {LANES}):
        store_{arithmetic}(lanes, lane, 1, load_{arithmetic}(lanes, lane, 1) + load_{arithmetic}(here, lane, 0))
    half = {LANES} // 2
    while half > 0:
        upper = lanes + half * {lane_bytes}
        for lane in range(half):
            store_{arithmetic}(lanes, lane, 1, load_{arithmetic}(lanes, lane, 1) + load_{arithmetic}(upper, lane, 2))
        half //= 2
    return load_{arithmetic}(lanes, 0, 1)


def row_sums(matrix, m, n, tiles, sums):
    """Write the sum of every tile of every row of a contiguous (m, n) matrix to sums[m, tiles]."""
    for c in prange(m * tiles):
        lanes = empty({LANES}, np.{arithmetic})
        row, tile = c // tiles, c % tiles
        source = matrix + (row * n + tile * {TILE}) * {lane_bytes}
        store_{arithmetic}(sums, c, -1, tile_sum(source, min({TILE}, n - tile * {TILE}), lanes.ctypes.data))
'''


def reduction_text(arithmetic):
    """Return the text of the module that sums values of one dtype, ``"float32"`` or ``"float64"``."""
    size = ITEM_SIZES[arithmetic]
    return _TEMPLATE.format(arithmetic=arithmetic, LANES=LANES, TILE=TILE, lane_bytes=size, row_bytes=LANES * size)
