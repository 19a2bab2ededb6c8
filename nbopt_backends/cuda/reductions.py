"""The text of CUDA kernels that reduce a tensor outside a step: sums and extremes. Pure functions of what they are given.

Results have the fixed shape of `nbopt_backends.meaning.reduction`, whatever the number of blocks and threads.
"""

from nbopt_backends.lowering.text import COMMON_OPS, ITEM_SIZES
from nbopt_backends.meaning.reduction import LANES, TILE

_SUMS = '''"""Sums of {arithmetic} values, in the shape of nbopt_backends.meaning.reduction: one block a tile, lane after lane."""

{header}
@inline
def tree(lanes):
    """Add the upper half of the lanes to the lower until one is left; for all threads of a block together."""
    cuda.syncthreads()
    half = int64({LANES} // 2)
    while half > 0:
        lane = int64(cuda.threadIdx.x)
        while lane < half:
            lanes[lane] = {add_lanes}
            lane += cuda.blockDim.x
        cuda.syncthreads()
        half >>= 1


def row_sums(matrix, m, n, tiles, sums):
    """Write the sum of every tile of every row of a contiguous {arithmetic}[m, n] to sums[m, tiles]."""
    lanes = cuda.shared.array({LANES}, {arithmetic})
    c = int64(cuda.blockIdx.x)
    while c < m * tiles:
        row = c // tiles
        start = (c - row * tiles) * {TILE}
        here = matrix + (row * n + start) * {lane_size}
        length = min(int64({TILE}), n - start)
        lane = int64(cuda.threadIdx.x)
        while lane < {LANES}:
            total = {arithmetic}(0)
            i = lane
            while i < length:
                x = load_{arithmetic}(here, i, -1)
                total = {add_value}
                i += {LANES}
            lanes[lane] = total
            lane += cuda.blockDim.x
        tree(lanes)
        if cuda.threadIdx.x == 0:
            store_{arithmetic}(sums, c, -1, lanes[0])
        cuda.syncthreads()
        c += cuda.gridDim.x


def extremes(matrix, m, n, kind, found):
    """Write the extreme of every row of a contiguous {arithmetic}[m, n] to found[m]: one block for a row.

    `kind` is 0 for the largest value, 1 for the smallest, 2 and 3 for the place of the first of these.
    """
    values = cuda.shared.array({LANES}, {arithmetic})
    places = cuda.shared.array({LANES}, int64)
    row = int64(cuda.blockIdx.x)
    while row < m:
        here = matrix + row * n * {lane_size}
        lane = int64(cuda.threadIdx.x)
        while lane < {LANES}:
            place = min(lane, n - 1)
            value = load_{arithmetic}(here, place, -1)
            i = lane + {LANES}
            while i < n:
                x = load_{arithmetic}(here, i, -1)
                if kind >= 2:
                    if beats(x, value, kind):
                        value, place = x, i
                else:
                    value = maximum(value, x) if kind == 0 else minimum(value, x)
                i += {LANES}
            values[lane], places[lane] = value, place
            lane += cuda.blockDim.x
        cuda.syncthreads()
        half = int64({LANES} // 2)
        while half > 0:
            lane = int64(cuda.threadIdx.x)
            while lane < half:
                x, y = values[lane], values[lane + half]
                if kind >= 2:
                    if beats(y, x, kind) or (places[lane + half] < places[lane] and not beats(x, y, kind)):
                        values[lane], places[lane] = y, places[lane + half]
                else:
                    values[lane] = maximum(x, y) if kind == 0 else minimum(x, y)
                lane += cuda.blockDim.x
            cuda.syncthreads()
            half >>= 1
        if cuda.threadIdx.x == 0:
            store_{arithmetic}(found, row, -1, {arithmetic}(places[0]) if kind >= 2 else values[0])
        cuda.syncthreads()
        row += cuda.gridDim.x
'''


def sums_text(dialect, arithmetic):
    """Return the text of the module that reduces contiguous values outside a step.

    Parameters
    ----------
    dialect : Dialect
        One of `nbopt_backends.cuda.dialects`.
    arithmetic : str
        ``"float32"`` or ``"float64"``: what the values are, and what they are added in.
    """
    ops = {**COMMON_OPS, **dialect.ops}
    return _SUMS.format(
        header=dialect.header,
        arithmetic=arithmetic,
        LANES=LANES,
        TILE=TILE,
        lane_size=ITEM_SIZES[arithmetic],
        add_value=ops["add"].format("total", "x"),
        add_lanes=ops["add"].format("lanes[lane]", "lanes[lane + half]"),
    )
