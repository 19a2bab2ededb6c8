"""The text of CUDA kernels that reduce a tensor outside a step: sums and extremes.

Pure functions of what they are given.

Results have the bits of the reference, whatever the number of blocks and threads.
"""

from nbopt_backends.cuda.numbers import fold_text
from nbopt_backends.lowering.text import COMMON_OPS, ITEM_SIZES
from nbopt_backends.meaning.tree import TILE

LANES = 256

_SUMS = '''"""Reductions of {arithmetic} values outside of a step.

Sums have the shape of nbopt_backends.meaning.tree.
"""

{header}
{fold}

@inline
def value(source, i, n):
    """Return a value of a tile of n, or behind its end -0, which changes no sum."""
    return load_{arithmetic}(source, i, -1) if i < n else {arithmetic}(-0.0)


def row_sums(matrix, m, n, tiles, sums, found):
    """Write the sum of each tile of each row of a contiguous {arithmetic}[m, n] to float64[m, tiles].

    If a row is one tile, they are written to found[m].
    """
    lanes = cuda.shared.array({LANES}, {arithmetic})
    c = int64(cuda.blockIdx.x)
    while c < m * tiles:
        row = c // tiles
        start = (c - row * tiles) * {TILE}
        here, length = matrix + (row * n + start) * {lane_size}, n - start
        lane = int64(cuda.threadIdx.x)
        while lane < {LANES}:
            lanes[lane] = {lane_sum}
            lane += cuda.blockDim.x
        cuda.syncthreads()
        half = int64({LANES} // 2)
        while half > 0:
            lane = int64(cuda.threadIdx.x)
            while lane < half:
                lanes[lane] = {add_lanes}
                lane += cuda.blockDim.x
            cuda.syncthreads()
            half >>= 1
        if cuda.threadIdx.x == 0:
            if tiles == 1:
                store_{arithmetic}(found, row, -1, lanes[0] if n > 0 else {arithmetic}(0))
            else:
                store_float64(sums, c, -1, float64(lanes[0]))
        cuda.syncthreads()
        c += cuda.gridDim.x


def fold_sums(sums, m, tiles, found):
    """Fold each row of float64[m, tiles], which is used up, to one of {arithmetic}[m]: a block for a row."""
    row = int64(cuda.blockIdx.x)
    while row < m:
        here = sums + row * tiles * 8
        fold(here, 8, tiles, 0)
        if cuda.threadIdx.x == 0:
            store_{arithmetic}(found, row, -1, {arithmetic}(load_float64(here, 0, -1)))
        row += cuda.gridDim.x


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
    add = {**COMMON_OPS, **dialect.ops}["add"]
    terms = [f"value(here, lane + {k}, length)" for k in range(0, TILE, LANES)]
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [f"({add.format(*pair)})" for pair in zip(terms[:half], terms[half:])]
    return _SUMS.format(
        header=dialect.header,
        fold=fold_text(dialect),
        arithmetic=arithmetic,
        LANES=LANES,
        TILE=TILE,
        lane_size=ITEM_SIZES[arithmetic],
        lane_sum=terms[0],
        add_lanes=add.format("lanes[lane]", "lanes[lane + half]"),
    )
