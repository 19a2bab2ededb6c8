"""The text of folds of results, and of the ends of reductions along axes."""

from nbopt_backends.lowering.text import COMMON_OPS

_FOLD = '''@inline
def of_nothing(op):
    """Return the result over no values."""
    return float64(0) if op == 0 else (float64(-inf) if op == 1 else float64(inf))


@inline
def join(op, a, b):
    """Return what two values become."""
    return {add} if op == 0 else (maximum(a, b) if op == 1 else minimum(a, b))


@inline
def join_far(op, place, distance):
    """Join a float64 with the one that lies so many bytes behind it, in place."""
    store_float64(place, 0, -1, join(op, load_float64(place, 0, -1), load_float64(place + distance, 0, -1)))


@inline
def fold(values, step, n, op):
    """Fold n float64 that are `step` bytes apart into the first; for all threads of a block together."""
    while n > 1:
        half = int64(1)
        while 2 * half < n:
            half *= 2
        i = int64(cuda.threadIdx.x)
        while i < n - half:
            join_far(op, values + i * step, half * step)
            i += cuda.blockDim.x
        cuda.syncthreads()
        n = half


@inline
def fold_apart(values, step, n, places, most, op):
    """Fold those of n float64 that are a multiple of `most` apart, four at most, for the first `places`.

    It is what a fold of all of them does first, since `most` is a power of two. A thread has a place.
    """
    place = int64(cuda.threadIdx.x)
    while place < places:
        first = values + place * step
        if place + 2 * most < n:
            join_far(op, first, 2 * most * step)
        if place + most < n:
            if place + 3 * most < n:
                join_far(op, first + most * step, 2 * most * step)
            join_far(op, first, most * step)
        place += cuda.blockDim.x
'''

_ENDS = '''"""The ends of reductions along axes."""

{header}
{fold}

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
'''


def fold_text(dialect):
    """Return the text of ``fold`` and `fold_apart`, which end reductions, and of `join` and `of_nothing`."""
    return _FOLD.format(add={**COMMON_OPS, **dialect.ops}["add"].format("a", "b"))


def ends_text(dialect):
    """Return the text of the module that ends reductions along axes."""
    return _ENDS.format(header=dialect.header, fold=fold_text(dialect))
