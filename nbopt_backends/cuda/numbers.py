"""The text of CUDA kernels on the numbers of parameters: the ends of reductions, scalar code, the step's condition."""

from nbopt_backends.lowering.text import COMMON_OPS, indented, number_lines

#: What a record of a reduction's end is: the op (0 sum, 1 max, 2 min); 1 if it is over the step; the address of the
#: results of the tiles, or 0 if what is reduced is a number of each parameter; the bytes from one tile's result to the
#: next, or which number; which number the result is.
END_FIELDS = 5

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
        i = int64(cuda.threadIdx.x)
        while i < n - half:
            here = values + i * step
            joined = join(op, load_float64(here, 0, -1), load_float64(here + half * step, 0, -1))
            store_float64(here, 0, -1, joined)
            i += cuda.blockDim.x
        cuda.syncthreads()
        n = half
'''

_ENDS = '''"""The ends of reductions, in the shape of nbopt_backends.meaning.tree, and the condition of a step."""

{header}
{fold}

@inline
def of_nothing(op):
    """Return the result over no values."""
    return float64(0) if op == 0 else (float64(-inf) if op == 1 else float64(inf))


def fold_tiles(ends, n_ends, starts, rows, numbers, stride):
    """Fold the results of each parameter's tiles, in place, and write what is over a parameter to its numbers.

    There is a block for each parameter and each end.

    Parameters
    ----------
    ends, n_ends : int64
        Address of int64[n_ends, {fields}].
    starts : int64
        Address of int64[rows + 1]: where each row's tiles begin.
    rows : int64
    numbers, stride : int64
        Address of the first row's numbers, and the bytes from one row's to the next.
    """
    c = int64(cuda.blockIdx.x)
    while c < n_ends * rows:
        number = c // rows
        row, end = c - number * rows, ends + number * {bytes}
        op, sums, step = load_int64(end, 0, -1), load_int64(end, 2, -1), load_int64(end, 3, -1)
        first = load_int64(starts, row, -1)
        n = load_int64(starts, row + 1, -1) - first
        if sums != 0:
            fold(sums + first * step, step, n, op)
        if cuda.threadIdx.x == 0 and load_int64(end, 1, -1) == 0:
            own = numbers + row * stride
            found = of_nothing(op)
            if n > 0:
                found = load_float64(own, step, -1) if sums == 0 else load_float64(sums + first * step, 0, -1)
            store_float64(own, load_int64(end, 4, -1), -1, found)
        c += cuda.gridDim.x


def fold_rows(ends, n_ends, starts, full, n_full, numbers, stride, n_numbers, scratch):
    """Fold the parameters' results, and write what is over the step to the numbers of all: a block for each end.

    Parameters
    ----------
    ends, n_ends, starts, numbers, stride : int64
        As for `fold_tiles`.
    full, n_full : int64
        Address of int64[n_full]: the rows with elements.
    n_numbers : int64
        How many rows have numbers of their own.
    scratch : int64
        Address of float64[n_ends, n_full].
    """
    c = int64(cuda.blockIdx.x)
    while c < n_ends:
        end, values = ends + c * {bytes}, scratch + c * n_full * 8
        op, sums, step = load_int64(end, 0, -1), load_int64(end, 2, -1), load_int64(end, 3, -1)
        if load_int64(end, 1, -1) != 0:
            i = int64(cuda.threadIdx.x)
            while i < n_full:
                row = load_int64(full, i, -1)
                found = load_float64(numbers + row * stride, step, -1) if sums == 0 else load_float64(
                    sums + load_int64(starts, row, -1) * step, 0, -1
                )
                store_float64(values, i, -1, found)
                i += cuda.blockDim.x
            cuda.syncthreads()
            fold(values, 8, n_full, op)
            found = load_float64(values, 0, -1) if n_full > 0 else of_nothing(op)
            row = int64(cuda.threadIdx.x)
            while row < n_numbers:
                store_float64(numbers + row * stride, load_int64(end, 4, -1), -1, found)
                row += cuda.blockDim.x
        c += cuda.gridDim.x


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
    """Return the text of the module that ends reductions, and judges whether a step is taken."""
    return _ENDS.format(header=dialect.header, fold=fold_text(dialect), fields=END_FIELDS, bytes=8 * END_FIELDS)


def run_text(stage, dialect, dtypes):
    """Return the text of the module that does a stage of arithmetic on numbers: see `number_lines`."""
    rows = "n_rows and taken != 0" if stage.guarded else "n_rows"
    return _SCALARS.format(header=dialect.header, rows=rows, body=indented(number_lines(stage, dialect, dtypes), 2))
