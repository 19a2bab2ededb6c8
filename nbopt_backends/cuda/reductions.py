"""The text of CUDA kernels that reduce: sums, the norm-clip factor, extremes. Pure functions of what they are given.

Results have the fixed shape of `nbopt_backends.meaning.reduction`, whatever the number of blocks and threads.
"""

from nbopt_backends.lowering.text import COMMON_OPS, ITEM_SIZES, indented, widened
from nbopt_backends.meaning.reduction import LANES, TILE

_SUMS = '''"""Sums of {dtype} values in {arithmetic}, in the shape of nbopt_backends.meaning.reduction: one block a tile, lane after lane."""

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


def square_sums(table, tiles, n_tiles, slot, width, sums, views):
    """Write the sum of squares of every tile of one slot.

    Parameters
    ----------
    table : int64
        Address of int64[rows, width]: the address of each slot of each tensor.
    tiles : int64
        Address of int64[n_tiles, 4]: row, offset in elements, length in elements, place in `sums`.
    slot, width : int64
    sums : int64
        Address of {total}[...]: modified.
    views : int64
        0, or for strided tensors the address of the geometries' addresses.
    """
    lanes = cuda.shared.array({LANES}, {arithmetic})
    c = int64(cuda.blockIdx.x)
    while c < n_tiles:
        number = load_int64(tiles, 4 * c, -1) * width * 8
        offset = load_int64(tiles, 4 * c + 1, -1)
        n = load_int64(tiles, 4 * c + 2, -1)
        lane = int64(cuda.threadIdx.x)
        while lane < {LANES}:
            total = {arithmetic}(0)
            if views == 0:
                here = load_int64(table + number, slot, -1) + offset * {item_size}
                if n == {TILE}:
                    for k in range({rows}):
                        x = {load_full}
                        total = {add_square}
                else:
                    i = lane
                    while i < n:
                        x = {load_here}
                        total = {add_square}
                        i += {LANES}
            else:
                i = lane
                while i < n:
                    x = {load_strided}
                    total = {add_square}
                    i += {LANES}
            lanes[lane] = total
            lane += cuda.blockDim.x
        tree(lanes)
        if cuda.threadIdx.x == 0:
            store_{total}(sums, load_int64(tiles, 4 * c + 3, -1), -1, {total}(lanes[0]))
        cuda.syncthreads()
        c += cuda.gridDim.x


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


@inline
def add_up(sums, n, lanes):
    """Add n values, at most {TILE}, into lanes[0]; for all threads of a block together."""
    lane = int64(cuda.threadIdx.x)
    while lane < {LANES}:
        total = {arithmetic}(0)
        i = lane
        while i < n:
            x = load_{arithmetic}(sums, i, -1)
            total = {add_value}
            i += {LANES}
        lanes[lane] = total
        lane += cuda.blockDim.x
    tree(lanes)


def check_finite(sums, n, skip, skipped):
    """Write to `skip` (address of an int64) whether the total of n sums of squares is not finite, and if so add 1 to `skipped` (of a float64).

    For one block.
    """
    lanes = cuda.shared.array({LANES}, {arithmetic})
    add_up(sums, n, lanes)
    if cuda.threadIdx.x == 0:
        finite = {difference} == {arithmetic}(0)
        store_int64(skip, 0, -1, int64(0) if finite else int64(1))
        if not finite:
            store_float64(skipped, 0, -1, {counted})


def skip_together(updates, n):
    """Skip all of n updates where one is skipped. For one block.

    Parameters
    ----------
    updates : int64
        Address of int64[n, 2]: the addresses of an update's `skip` and `skipped`, see `check_finite`. What is there is modified.
    """
    if cuda.threadIdx.x == 0:
        skipping = int64(0)
        for k in range(n):
            skipping |= load_int64(load_int64(updates, 2 * k, -1), 0, -1)
        for k in range(n):
            skip, skipped = load_int64(updates, 2 * k, -1), load_int64(updates, 2 * k + 1, -1)
            if load_int64(skip, 0, -1) != skipping:
                store_int64(skip, 0, -1, skipping)
                store_float64(skipped, 0, -1, {counted})


def scale_divisor(divisor, scale, targets, n_targets):
    """Write divisor * scale where kernels read it. For one block.

    Parameters
    ----------
    divisor : int64
        Address of a float64.
    scale : int64
        Address of a {dtype}.
    targets, n_targets : int64
        As for `norm_factor`.
    """
    if cuda.threadIdx.x == 0:
        product = {product}
        for k in range(n_targets):
            target = load_int64(targets, 2 * k, -1)
            if load_int64(targets, 2 * k + 1, -1) == 8:
                store_float64(target, 0, -1, product)
            else:
                store_float32(target, 0, -1, float32(product))


def norm_factor(sums, n, settings, targets, n_targets):
    """Write the norm-clip factor where the update's kernels read it. For one block.

    Parameters
    ----------
    sums : int64
        Address of {arithmetic}[n], n at most {TILE}: sums of squares.
    settings : int64
        Address of {arithmetic}[2]: the norm to clip to, the divisor.
    targets : int64
        Address of int64[n_targets, 2]: where a factor goes, and its item size. What is there is modified.
    """
    lanes = cuda.shared.array({LANES}, {arithmetic})
    add_up(sums, n, lanes)
    if cuda.threadIdx.x == 0:
        clip = load_{arithmetic}(settings, 0, -1)
        norm = {norm}
        factor = {factor}
        for k in range(n_targets):
            target = load_int64(targets, 2 * k, -1)
{store_factor}


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


def sums_text(dialect, dtype, arithmetic, total):
    """Return the text of the module that reduces values of one dtype.

    Parameters
    ----------
    dialect : Dialect
        One of those in `cuda_kernels`.
    dtype : str
        The values' storage.
    arithmetic : str
        ``"float32"`` or ``"float64"``: what the values are widened to and added in.
    total : str
        What the tiles' sums of squares are stored in; at least as wide.
    """
    ops = {**COMMON_OPS, **dialect.ops}

    def spelled(op, *operands):
        return ops[op].format(*operands, F=arithmetic) if op in ops else f"{op}({', '.join(operands)})"

    stores = ["store_float32(target, 0, -1, factor)"]
    if arithmetic == "float64":
        stores = [
            "if load_int64(targets, 2 * k + 1, -1) == 8:",
            "    store_float64(target, 0, -1, factor)",
            "else:",
            "    store_float32(target, 0, -1, float32(factor))",
        ]
    return _SUMS.format(
        header=dialect.header,
        dtype=dtype,
        arithmetic=arithmetic,
        total=total,
        LANES=LANES,
        TILE=TILE,
        rows=TILE // LANES,
        item_size=ITEM_SIZES[dtype],
        lane_size=ITEM_SIZES[arithmetic],
        load_full=widened(dtype, arithmetic, f"load_{dtype}(here, lane + k * {LANES}, -1)"),
        load_here=widened(dtype, arithmetic, f"load_{dtype}(here, i, -1)"),
        load_strided=widened(dtype, arithmetic, f"load_{dtype}(place(views + number, table + number, slot, offset + i), 0, -1)"),
        add_square=spelled("add", "total", spelled("multiply", "x", "x")),
        add_value=spelled("add", "total", "x"),
        product=spelled("multiply", "load_float64(divisor, 0, -1)", f"float64(load_{dtype}(scale, 0, -1))"),
        counted=spelled("add", "load_float64(skipped, 0, -1)", "float64(1)"),
        difference=spelled("subtract", "lanes[0]", "lanes[0]"),
        add_lanes=spelled("add", "lanes[lane]", "lanes[lane + half]"),
        norm=spelled("divide", "sqrt(lanes[0])", f"load_{arithmetic}(settings, 1, -1)"),
        factor=spelled("divide", "clip", "maximum(norm, clip)"),
        store_factor=indented(stores, 3),
    )
