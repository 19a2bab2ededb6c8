"""The text of CUDA kernels: a program's, and those of the sums and extremes that go with it. Pure functions of what they are given.

A kernel takes a handful of int64 arguments, however many tensors there are: addresses of tables in device memory. Blocks stride over the
chunk table; the threads of a block share a chunk. No kernel depends on the number of blocks or threads for its results.
"""

from nbopt_backends.lowering import COMMON_OPS, ITEM_SIZES, Dialect, body_lines, rule_comment
from nbopt_backends.reduction import LANES, TILE

_EXACT = {"add": "add({0}, {1})", "subtract": "subtract({0}, {1})", "multiply": "multiply({0}, {1})", "divide": "divide({0}, {1})"}
_PARTS = {"kernel": "", "loop": "", "load": "x{slot}", "store": "y{slot} = {value}"}

#: Every operation rounds by itself: an infix ``*`` followed by ``+`` could become one fma, which rounds once.
DIALECT = Dialect(
    name="cuda",
    ops={**_EXACT, "finite": "{F}(1) if subtract({0}, {0}) == {F}(0) else {F}(0)"},
    header="from nbopt_backends.cuda_primitives import *\n\n",
    **_PARTS,
)
#: What ``fast_math`` allows: contraction, approximate division and square roots, flushing to zero.
FAST = DIALECT._replace(ops={})
#: The simulator has neither libdevice nor addresses: `cuda_simulated` has functions of the same names in NumPy.
SIMULATED = DIALECT._replace(name="cuda simulator", ops={}, header="from nbopt_backends.cuda_simulated import *\n\n")

_CONTIGUOUS = """{head}
def update(table, chunks, n_chunks, scalars):
{scalars}
    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
        row = table + load_int64(chunks, 3 * c, -1) * {row_bytes}
        offset = load_int64(chunks, 3 * c + 1, -1)
        n = load_int64(chunks, 3 * c + 2, -1)
{pointers}
        # {width} elements at a time, as far as every tensor starts at a multiple of 16 bytes; the rest one by one.
        whole = n & -{width} if ({misaligned}) & 15 == 0 else int64(0)
        i = int64(cuda.threadIdx.x) * {width}
        while i < whole:
{vector}
            i += int64(cuda.blockDim.x) * {width}
        i = whole + cuda.threadIdx.x
        while i < n:
{single}
            i += cuda.blockDim.x
        c += cuda.gridDim.x
"""

_STRIDED = """{head}
def update(table, chunks, n_chunks, scalars, views):
{scalars}
    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
        number = load_int64(chunks, 3 * c, -1) * {row_bytes}
        row, geometry = table + number, views + number
        offset = load_int64(chunks, 3 * c + 1, -1)
        n = load_int64(chunks, 3 * c + 2, -1)
        k = int64(cuda.threadIdx.x)
        while k < n:
            i = int64(0)
{pointers}
{single}
            k += cuda.blockDim.x
        c += cuda.gridDim.x
"""


def update_text(program, dialect, dtypes, arithmetic, strided=False):
    """Return the text of the module that holds the kernel of `program`.

    For RMSProp on float32 it reads

        # mean_square = ...
        @inline
        def element(x0, x1, x2, s0, s1, s2, s3, s4, s5, s6):
            v0 = x2
            v1 = multiply(s0, v0)
            ...
            y2 = v6
            ...
            return y0, y2

        def update(table, chunks, n_chunks, scalars):
            s0 = load_float32(scalars, 0, -1)
            ...
                while i < whole:
                    x0 = load_float32x4(p0, i)
                    ...
                    e0 = element(x0[0], x1[0], x2[0], s0, s1, s2, s3, s4, s5, s6)
                    e1 = element(x0[1], ...)
                    ...
                    store_float32x4(p0, i, e0[0], e1[0], e2[0], e3[0])

    Parameters
    ----------
    program : nbopt.trace.Program
    dialect : Dialect
        One of this module's.
    dtypes : tuple of str
        The slots' storage.
    arithmetic : str
    strided : bool
        Whether some tensors are not contiguous: then every element's address is computed from its position.
    """
    read = sorted({line[1] for line in program.code if line[0] == "load"})
    written, used = program.written(), program.used()
    # Storage of 16 bits and stochastic rounding go here: `kept`, primitives load_bfloat16x8 and the like (a load gives float32s), and the
    # element's place in the stream of random bits as one more argument of `element`.
    kept = (0,) * len(dtypes)
    parameters = [*(f"x{slot}" for slot in read), *(f"s{j}" for j in range(program.n_scalars))]
    head = [
        *(f"# {line}" for line in rule_comment(program)),
        "@inline",
        f"def element({', '.join(parameters)}):",
        *(f"    {line}" for line in body_lines(program, dialect, dtypes, arithmetic, kept)),
        f"    return ({', '.join(f'y{slot}' for slot in written)},)",
        "",
    ]
    width = 16 // min(ITEM_SIZES[dtypes[slot]] for slot in used)
    pointers = []
    for slot in used:
        what = " and ".join(["read"] * (slot in read) + ["written"] * (slot in written))
        place = f"place(geometry, row, {slot}, offset + k)" if strided else f"address(row, {slot}, offset, {ITEM_SIZES[dtypes[slot]]})"
        pointers.append(f"p{slot} = {place}  # {program.names[slot]}: {dtypes[slot]}, {what}")

    def element(lane=""):
        return f"element({', '.join([*(f'x{slot}{lane}' for slot in read), *parameters[len(read) :]])})"

    lanes = [f"e{k}" for k in range(width)]
    vector = [
        *(f"x{slot} = load_{dtypes[slot]}x{width}(p{slot}, i)" for slot in read),
        *(f"{lane} = {element(f'[{k}]')}" for k, lane in enumerate(lanes)),
        *(f"store_{dtypes[slot]}x{width}(p{slot}, i, {', '.join(f'{lane}[{j}]' for lane in lanes)})" for j, slot in enumerate(written)),
    ]
    single = [
        *(f"x{slot} = load_{dtypes[slot]}(p{slot}, i, {slot})" for slot in read),
        f"e0 = {element()}",
        *(f"store_{dtypes[slot]}(p{slot}, i, {slot}, e0[{j}])" for j, slot in enumerate(written)),
    ]
    return dialect.header + (_STRIDED if strided else _CONTIGUOUS).format(
        head="\n".join(head),
        scalars=_indented([f"s{j} = load_{arithmetic}(scalars, {j}, -1)" for j in range(program.n_scalars)] or ["pass"], 1),
        row_bytes=8 * len(dtypes),
        pointers=_indented(pointers, 3 if strided else 2),
        width=width,
        misaligned=" | ".join(f"p{slot}" for slot in used),
        vector=_indented(vector, 3),
        single=_indented(single, 3),
    )


_SUMS = '''"""Sums of {dtype} values in {arithmetic}, in the fixed shape of nbopt_backends.reduction: one block for a tile, a lane after the other."""

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


def norm_factor(sums, n, settings, targets, n_targets):
    """Write the norm-clip factor where the update's kernels read it. For one block.

    Parameters
    ----------
    sums : int64
        Address of {arithmetic}[n], n at most {TILE}: sums of squares.
    settings : int64
        Address of {arithmetic}[2]: the norm to clip to, the batch size.
    targets : int64
        Address of int64[n_targets, 2]: where a factor goes, and its item size. What is there is modified.
    """
    lanes = cuda.shared.array({LANES}, {arithmetic})
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
        One of this module's.
    dtype : str
        The values' storage.
    arithmetic : str
        ``"float32"`` or ``"float64"``: what the values are widened to and added in.
    total : str
        What the tiles' sums of squares are stored in; at least as wide.
    """
    ops = {**COMMON_OPS, **dialect.ops}

    def loaded(text):
        return text if dtype == arithmetic else f"{arithmetic}({text})"

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
        load_full=loaded(f"load_{dtype}(here, lane + k * {LANES}, -1)"),
        load_here=loaded(f"load_{dtype}(here, i, -1)"),
        load_strided=loaded(f"load_{dtype}(place(views + number, table + number, slot, offset + i), 0, -1)"),
        add_square=spelled("add", "total", spelled("multiply", "x", "x")),
        add_value=spelled("add", "total", "x"),
        add_lanes=spelled("add", "lanes[lane]", "lanes[lane + half]"),
        norm=spelled("divide", "sqrt(lanes[0])", f"load_{arithmetic}(settings, 1, -1)"),
        factor=spelled("divide", "clip", "maximum(norm, clip)"),
        store_factor=_indented(stores, 3),
    )


def _indented(lines, depth):
    return "\n".join("    " * depth + line for line in lines)
