"""Sums on the CPU, in the fixed shape that `nbopt_backends.meaning.reduction` defines: the text of their kernels."""

from nbopt_backends.lowering.text import ITEM_SIZES, widened
from nbopt_backends.meaning.reduction import LANES, TILE

_TEMPLATE = '''"""Sums of {dtype} values in {arithmetic}, in the fixed shape of nbopt_backends.meaning.reduction."""

import math

import numpy as np
from numba import njit, prange

from nbopt_backends.cpu.drivers import copy_strided
from nbopt_backends.cpu.primitives import *


@njit(error_model="numpy")
def tile_sum(source, n, square, lanes):
    """Return the sum (of squares, where `square` is 1) of n values from the address `source`; `lanes` is scratch memory."""
    for lane in range({LANES}):
        store_{arithmetic}(lanes, lane, 1, {arithmetic}(0))
    full = n // {LANES}
    four = full // 4 if square else 0
    # Four rows at a time: a lane is loaded and stored once for four values, and added to in the same order.
    for rows in range(four):
        first = source + rows * {four_rows_bytes}
        for lane in range({LANES}):
            here = first
            x0 = {load_here}
            here = first + {row_bytes}
            x1 = {load_here}
            here = first + 2 * {row_bytes}
            x2 = {load_here}
            here = first + 3 * {row_bytes}
            x3 = {load_here}
            store_{arithmetic}(lanes, lane, 1, load_{arithmetic}(lanes, lane, 1) + x0 * x0 + x1 * x1 + x2 * x2 + x3 * x3)
    for row in range(4 * four, full):
        here = source + row * {row_bytes}
        if square:
            for lane in range({LANES}):
                x = {load_here}
                store_{arithmetic}(lanes, lane, 1, load_{arithmetic}(lanes, lane, 1) + x * x)
        else:
            for lane in range({LANES}):
                x = {load_here}
                store_{arithmetic}(lanes, lane, 1, load_{arithmetic}(lanes, lane, 1) + x)
    here = source + full * {row_bytes}
    for lane in range(n - full * {LANES}):
        x = {load_here}
        store_{arithmetic}(lanes, lane, 1, load_{arithmetic}(lanes, lane, 1) + (x * x if square else x))
    half = {LANES} // 2
    while half > 0:
        upper = lanes + half * {lane_bytes}
        for lane in range(half):
            store_{arithmetic}(lanes, lane, 1, load_{arithmetic}(lanes, lane, 1) + load_{arithmetic}(upper, lane, 2))
        half //= 2
    return load_{arithmetic}(lanes, 0, 1)


def square_sums(slot, table, width, chunks, n_chunks, tiles, sums):
    """Write the sum of squares of every tile of one slot of all tensors.

    Parameters
    ----------
    slot : int64
        Which slot; contiguous.
    table, width, chunks, n_chunks
        As for cpu_drivers.run_chunks; all int64.
    tiles : int64
        Address of int64[n_chunks]: where the first tile of each chunk stands in `sums`.
    sums : int64
        Address of {total}[...]: modified.
    """
    for c in prange(n_chunks):
        lanes = np.empty({LANES}, np.{arithmetic})
        row = table + load_int64(chunks, 3 * c, -1) * width * 8
        source = address(row, slot, load_int64(chunks, 3 * c + 1, -1), {item_size})
        n = load_int64(chunks, 3 * c + 2, -1)
        first = load_int64(tiles, c, -1)
        for tile in range((n + {TILE} - 1) // {TILE}):
            here = source + tile * {tile_bytes}
            store_{total}(sums, first + tile, -1, {total}(tile_sum(here, min({TILE}, n - tile * {TILE}), 1, lanes.ctypes.data)))


def staged_square_sums(slot, table, views, width, chunks, n_chunks, tiles, sums):
    """Do what square_sums does where some tensors are strided: a strided tile is gathered first.

    Parameters
    ----------
    views : int64
        As for cpu_drivers.run_staged_chunks.
    """
    for c in prange(n_chunks):
        lanes = np.empty({LANES}, np.{arithmetic})
        buffer = np.empty({TILE}, np.float64)
        place = load_int64(chunks, 3 * c, -1) * width * 8
        offset = load_int64(chunks, 3 * c + 1, -1)
        n = load_int64(chunks, 3 * c + 2, -1)
        first = load_int64(tiles, c, -1)
        geometry = load_int64(views + place, slot, -1)
        base = load_int64(table + place, slot, -1)
        for tile in range((n + {TILE} - 1) // {TILE}):
            start = offset + tile * {TILE}
            count = min({TILE}, n - tile * {TILE})
            here = base + start * {item_size}
            if load_int64(geometry, 0, -1) > 0:
                here = buffer.ctypes.data
                copy_strided(here, base, geometry, start, count, True)
            store_{total}(sums, first + tile, -1, {total}(tile_sum(here, count, 1, lanes.ctypes.data)))


def row_sums(matrix, m, n, tiles, sums):
    """Write the sum of every tile of every row of a contiguous (m, n) matrix to sums[m, tiles]."""
    for c in prange(m * tiles):
        lanes = np.empty({LANES}, np.{arithmetic})
        row, tile = c // tiles, c % tiles
        source = matrix + (row * n + tile * {TILE}) * {item_size}
        store_{arithmetic}(sums, c, -1, tile_sum(source, min({TILE}, n - tile * {TILE}), 0, lanes.ctypes.data))


def norm_factor(sums, n, clip_norm, divisor, skip):
    """Return clip_norm / max(sqrt(total of n sums) / divisor, clip_norm) as a float64. The sums are used up.

    -1 where `skip` is not 0 and the total is not finite.
    """
    lanes = np.empty({LANES}, np.{arithmetic})
    while n > 1:
        tiles = (n + {TILE} - 1) // {TILE}
        for tile in range(tiles):
            part = tile_sum(sums + tile * {tile_bytes}, min({TILE}, n - tile * {TILE}), 0, lanes.ctypes.data)
            store_{arithmetic}(sums, tile, -1, part)
        n = tiles
    total = load_{arithmetic}(sums, 0, -1)
    if skip and total - total != 0:
        return -1.0
    norm = sqrt(total) / {arithmetic}(divisor)
    clip = {arithmetic}(clip_norm)
    return float64(clip / maximum(norm, clip))
'''


def reduction_text(dtype, arithmetic, total):
    """Return the text of the module that sums values of one dtype.

    Parameters
    ----------
    dtype : str
        The values' storage.
    arithmetic : str
        ``"float32"`` or ``"float64"``: what the values are widened to and added in.
    total : str
        What the tiles' sums of squares are stored in; at least as wide.
    """
    return _TEMPLATE.format(
        dtype=dtype,
        arithmetic=arithmetic,
        total=total,
        LANES=LANES,
        TILE=TILE,
        item_size=ITEM_SIZES[dtype],
        lane_bytes=ITEM_SIZES[arithmetic],
        four_rows_bytes=4 * LANES * ITEM_SIZES[dtype],
        row_bytes=LANES * ITEM_SIZES[dtype],
        tile_bytes=TILE * ITEM_SIZES[dtype],
        load_here=widened(dtype, arithmetic, f"load_{dtype}(here, lane, 0)"),
    )
