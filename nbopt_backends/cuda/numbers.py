"""The text of CUDA kernels on the numbers of parameters.

These are the ends of reductions, scalar code, and the step's condition.
"""

from nbopt_backends.lowering.text import COMMON_OPS, indented, number_lines

#: What a record of the end of a parameter's reduction is: the op (0 sum, 1 max, 2 min); the address of the
#: results of the tiles, or 0 if what is reduced is a number of each parameter; the bytes from one tile's
#: result to the next, or which number; the address of int64[rows + 1], where each row's tiles begin; which
#: number the result is, or -1 for none.
END_FIELDS = 5
#: That of a reduction over the step: the op, and which number the result is.
STEP_FIELDS = 2

_FOLD = '''@inline
def join(op, a, b):
    """Return what two values become."""
    return {add} if op == 0 else (maximum(a, b) if op == 1 else minimum(a, b))


@inline
def fold(values, step, n, op):
    """Fold n float64 that are `step` bytes apart into the first; for all threads of a block together."""
    while n > 1:
        half = int64(1)
        while 2 * half < n:
            half *= 2
        i, next_one = int64(cuda.threadIdx.x), cuda.blockDim.x * step
        here, there = values + i * step, values + (i + half) * step
        # Four at a time: their loads are under way together, where each store would hold up the next load.
        while i + 3 * cuda.blockDim.x < n - half:
            a, b = load_float64(here, 0, -1), load_float64(there, 0, -1)
            c, d = load_float64(here + next_one, 0, -1), load_float64(there + next_one, 0, -1)
            e, f = load_float64(here + 2 * next_one, 0, -1), load_float64(there + 2 * next_one, 0, -1)
            g, h = load_float64(here + 3 * next_one, 0, -1), load_float64(there + 3 * next_one, 0, -1)
            store_float64(here, 0, -1, join(op, a, b))
            store_float64(here + next_one, 0, -1, join(op, c, d))
            store_float64(here + 2 * next_one, 0, -1, join(op, e, f))
            store_float64(here + 3 * next_one, 0, -1, join(op, g, h))
            i += 4 * cuda.blockDim.x
            here += 4 * next_one
            there += 4 * next_one
        while i < n - half:
            store_float64(here, 0, -1, join(op, load_float64(here, 0, -1), load_float64(there, 0, -1)))
            i += cuda.blockDim.x
            here += next_one
            there += next_one
        cuda.syncthreads()
        n = half
'''

_ENDS = '''"""The ends of reductions, in the shape of nbopt_backends.meaning.tree, and a step's condition."""

{header}
{fold}

@inline
def of_nothing(op):
    """Return the result over no values."""
    return float64(0) if op == 0 else (float64(-inf) if op == 1 else float64(inf))


@inline
def distance(place, n, axes):
    """Return how many bytes lie before a place in C order of n axes.

    `axes` is the address of their lengths and distances.
    """
    found = int64(0)
    axis = n - 1
    while axis >= 0:
        outer = place // load_int64(axes, 2 * axis, -1)
        found += (place - outer * load_int64(axes, 2 * axis, -1)) * load_int64(axes, 2 * axis + 1, -1)
        place = outer
        axis -= 1
    return found


def fold_large(ends, n_ends, rows, n_rows, width):
    """Fold the results of large parameters' tiles, in place, until `width` are left of each.

    There is a thread for each result that is left. It folds those that are a multiple of `width` behind it,
    which is what a fold of all of them does first, since `width` is a power of two.

    Parameters
    ----------
    ends, n_ends : int64
        Address of int64[n_ends, {fields}].
    rows, n_rows : int64
        Address of int64[n_rows]: the parameters with more tiles than `width`.
    width : int64
    """
    item = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    while item < n_ends * n_rows * width:
        number = item // width
        place, end = item - number * width, ends + number // n_rows * {bytes}
        row = load_int64(rows, number - number // n_rows * n_rows, -1)
        op, sums, step = load_int64(end, 0, -1), load_int64(end, 1, -1), load_int64(end, 2, -1)
        first = load_int64(load_int64(end, 3, -1), row, -1)
        here = sums + (first + place) * step
        n = (load_int64(load_int64(end, 3, -1), row + 1, -1) - first - place + width - 1) // width
        if sums == 0:
            n = int64(0)
        while n > 1:
            half, i = int64(1), int64(0)
            while 2 * half < n:
                half *= 2
            while i < n - half:
                one, other = here + i * width * step, here + (i + half) * width * step
                found = join(op, load_float64(one, 0, -1), load_float64(other, 0, -1))
                store_float64(one, 0, -1, found)
                i += 1
            n = half
        item += int64(cuda.gridDim.x) * cuda.blockDim.x


def fold_tiles(ends, n_ends, rows, numbers, stride, most):
    """Fold the results of each parameter's tiles, in place.

    What is over a parameter is written to its numbers. There is a block for each parameter and each end.

    Parameters
    ----------
    ends, n_ends : int64
        Address of int64[n_ends, {fields}].
    rows : int64
    numbers, stride : int64
        Address of the first row's numbers, and the bytes from one row's to the next.
    most : int64
        How many results `fold_large` has left of each parameter.
    """
    c = int64(cuda.blockIdx.x)
    while c < n_ends * rows:
        number = c // rows
        row, end = c - number * rows, ends + number * {bytes}
        op, sums, step = load_int64(end, 0, -1), load_int64(end, 1, -1), load_int64(end, 2, -1)
        starts, output = load_int64(end, 3, -1), load_int64(end, 4, -1)
        first = load_int64(starts, row, -1)
        n = min(load_int64(starts, row + 1, -1) - first, most)
        if sums != 0:
            fold(sums + first * step, step, n, op)
        if cuda.threadIdx.x == 0 and output >= 0:
            own = numbers + row * stride
            found = of_nothing(op)
            if n > 0:
                found = load_float64(own, step, -1) if sums == 0 else load_float64(sums + first * step, 0, -1)
            store_float64(own, output, -1, found)
        c += cuda.gridDim.x


def fold_rows(ends, n_ends, results, n, numbers, stride, n_numbers, scratch):
    """Fold the parameters' results, and write what is over the step to the numbers of all.

    There is a block for each end.

    Parameters
    ----------
    ends, n_ends : int64
        Address of int64[n_ends, {step_fields}].
    results, n : int64
        Address of int64[n_ends, n]: the addresses of the results, in the order of the parameters.
    numbers, stride : int64
        As for `fold_tiles`.
    n_numbers : int64
        How many rows have numbers of their own.
    scratch : int64
        Address of float64[n_ends, n].
    """
    c = int64(cuda.blockIdx.x)
    while c < n_ends:
        end, values = ends + c * {step_bytes}, scratch + c * n * 8
        op = load_int64(end, 0, -1)
        i = int64(cuda.threadIdx.x)
        while i < n:
            store_float64(values, i, -1, load_float64(load_int64(results, c * n + i, -1), 0, -1))
            i += cuda.blockDim.x
        cuda.syncthreads()
        fold(values, 8, n, op)
        found = load_float64(values, 0, -1) if n > 0 else of_nothing(op)
        row = int64(cuda.threadIdx.x)
        while row < n_numbers:
            store_float64(numbers + row * stride, load_int64(end, 1, -1), -1, found)
            row += cuda.blockDim.x
        c += cuda.gridDim.x


def join_slices(records, chunks, n_chunks):
    """Join what folds have left of each value of slices, one after the other in C order.

    There is a thread for each value.

    Parameters
    ----------
    records : int64
        Address of int64: the records, see `nbopt_backends.cuda.ends.slice_record`.
    chunks, n_chunks : int64
        Address of int64[n_chunks, 3]: where a record begins, the first value, and how many there are.
    """
    c = int64(cuda.blockIdx.x)
    while c < n_chunks:
        record = records + 8 * load_int64(chunks, 3 * c, -1)
        first, n = load_int64(chunks, 3 * c + 1, -1), load_int64(chunks, 3 * c + 2, -1)
        op, source, size = load_int64(record, 0, -1), load_int64(record, 1, -1), load_int64(record, 2, -1)
        target, target_size = load_int64(record, 3, -1), load_int64(record, 4, -1)
        n_kept, n_gone, runs = load_int64(record, 5, -1), load_int64(record, 6, -1), load_int64(record, 7, -1)
        kept = record + 64
        gone = kept + 16 * n_kept
        length, step = load_int64(gone, 2 * n_gone, -1), load_int64(gone, 2 * n_gone + 1, -1)
        i = first + cuda.threadIdx.x
        while i < first + n:
            start, found, run = source + distance(i, n_kept, kept), of_nothing(op), int64(0)
            while run < runs:
                here, k = start + distance(run, n_gone, gone), int64(0)
                while k < length:
                    value = load_float64(here, 0, -1) if size == 8 else float64(load_float32(here, 0, -1))
                    found = join(op, found, value)
                    here += step
                    k += 1
                run += 1
            if target_size == 8:
                store_float64(target, i, -1, found)
            else:
                store_float32(target, i, -1, float32(found))
            i += cuda.blockDim.x
        c += cuda.gridDim.x


def advance(state):
    """Count an update: `state` is the address of the seed and the count, two int64. For one block."""
    if cuda.threadIdx.x == 0:
        store_int64(state, 1, -1, load_int64(state, 1, -1) + int64(1))


def judge(condition, first, taken):
    """Write to `taken`, the address of an int64, whether the float64 `condition` holds: is neither 0 nor NaN.

    If it is not the `first` condition of a step, those before it must hold as well. For one block.
    """
    if cuda.threadIdx.x == 0:
        value = load_float64(condition, 0, -1)
        before = int64(1) if first != 0 else load_int64(taken, 0, -1)
        store_int64(taken, 0, -1, before if value == value and value != float64(0) else int64(0))
'''

_SCALARS = '''{header}
def run(table, width, first, stride, rows, n_rows, verdict):
    """Do arithmetic on the numbers of so many parameters: a thread for each.

    Parameters
    ----------
    table, width : int64
        Address of int64[rows, width]: the addresses of the slots.
    first, stride : int64
        Address of the first row's numbers, and the bytes from one row's to the next.
    rows, n_rows : int64
        Address of int64[n_rows]: which parameters.
    verdict : int64
        Address of an int64: whether the step is taken.
    """
    taken = load_int64(verdict, 0, -1)
    k = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    while k < {rows}:
        number = load_int64(rows, k, -1)
        row, numbers = table + number * width * 8, first + number * stride
{body}
        k += int64(cuda.gridDim.x) * cuda.blockDim.x
'''


def fold_text(dialect):
    """Return the text of ``fold(values, step, n, op)``, which ends a reduction."""
    return _FOLD.format(add={**COMMON_OPS, **dialect.ops}["add"].format("a", "b"))


def ends_text(dialect):
    """Return the text of the module that ends reductions, judges whether a step is taken, and counts it."""
    fields = {
        "fields": END_FIELDS,
        "bytes": 8 * END_FIELDS,
        "step_fields": STEP_FIELDS,
        "step_bytes": 8 * STEP_FIELDS,
    }
    return _ENDS.format(header=dialect.header, fold=fold_text(dialect), **fields)


def run_text(stage, dialect, dtypes):
    """Return the text of the module that does a stage of arithmetic on numbers: see `number_lines`."""
    rows = "n_rows and taken != 0" if stage.guarded else "n_rows"
    return _SCALARS.format(
        header=dialect.header, rows=rows, body=indented(number_lines(stage, dialect, dtypes), 2)
    )
