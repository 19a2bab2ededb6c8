"""What runs the stages of a step on the CPU: one call from Python, with the parallel loops over all chunks of
all tensors.

The functions here are compiled twice, with and without threads, from a copy of this file in the cache folder.
Everything comes in as an int64, addresses too, so that a call costs under a microsecond of unboxing.
"""

import numpy as np
from numba import float32, float64, njit, prange

from nbopt_backends.cpu.primitives import (
    band_address,
    band_begins,
    call_kernel,
    call_scalars,
    empty,
    fold_max,
    fold_min,
    fold_sum,
    load_float32,
    load_float64,
    load_int16,
    load_int32,
    load_int64,
    maximum,
    minimum,
    row_offset,
    store_float32,
    store_float64,
    store_int16,
    store_int32,
    store_int64,
)

PIECE = 4096  # elements that are gathered at a time, a tile of a reduction; a chunk is a multiple of it

# A stage is a record of int64[FIELDS]. The first says which kind it is, the second whether it is left out
# once the step's condition is false. A pass has the address of its kernel, that of int64[chunks,
# CHUNK_FIELDS], and the number of the chunks; for the others see below.
FIELDS = 16
CHUNK_FIELDS = 9
PASS, STRIDED_PASS, COMBINE, COMBINE_STEP, SCALARS, VERDICT, SLICED_PASS, COMBINE_SLICES = range(8)
SLICED_FIELDS = 10
SLICE_FIELDS = 14
COLUMNS_KEPT, ROWS_KEPT, ROWS_JOINED = range(3)


def run_stages(stages, n_stages, random):
    """Run the stages of a step, one after the other.

    Parameters
    ----------
    stages : int64
        Address of int64[n_stages, FIELDS], see `nbopt_backends.cpu.plan`.
    n_stages : int64
    random : int64
        Address of int64[2]: the seed and the update count.

    Returns
    -------
    int64
        How many passes ran.
    """
    taken, passes = 1, 0
    for s in range(n_stages):
        stage = stages + s * FIELDS * 8
        kind = load_int64(stage, 0, -1)
        if load_int64(stage, 1, -1) != 0 and taken == 0:
            continue
        if kind == PASS or kind == STRIDED_PASS or kind == SLICED_PASS:
            passes += 1
            kernel, chunks, n_chunks = (
                load_int64(stage, 2, -1),
                load_int64(stage, 3, -1),
                load_int64(stage, 4, -1),
            )
            if kind == PASS:
                for c in prange(n_chunks):
                    run_chunk(kernel, chunks + c * CHUNK_FIELDS * 8, random)
            elif kind == STRIDED_PASS:
                for c in prange(n_chunks):
                    run_strided_chunk(kernel, chunks + c * CHUNK_FIELDS * 8, random)
            else:
                for c in prange(n_chunks):
                    run_sliced_chunk(kernel, chunks + c * SLICED_FIELDS * 8, random)
        elif kind == COMBINE_SLICES:
            op, entries = load_int64(stage, 2, -1), load_int64(stage, 3, -1)
            for e in prange(load_int64(stage, 4, -1)):
                combine_slice(op, entries + e * SLICE_FIELDS * 8)
        elif kind == COMBINE:
            combine(stage)
        elif kind == COMBINE_STEP:
            combine_step(stage)
        elif kind == SCALARS:
            for k in range(load_int64(stage, 7, -1)):
                row = load_int64(load_int64(stage, 8, -1), k, -1)
                slots = load_int64(stage, 3, -1) + row * load_int64(stage, 4, -1) * 8
                call_scalars(
                    load_int64(stage, 2, -1),
                    slots,
                    load_int64(stage, 5, -1) + row * load_int64(stage, 6, -1),
                    taken,
                )
        else:
            condition = load_float64(load_int64(stage, 2, -1), 0, -1)
            if condition != condition or condition == 0.0:
                taken = 0
    return passes


@njit(error_model="numpy")
def run_chunk(kernel, chunk, random):
    """Run a pass's kernel over one chunk of a contiguous tensor.

    Parameters
    ----------
    kernel : int64
        Address of ``void kernel(slots, offset, n, place, numbers, random, sums)``.
    chunk : int64
        Address of int64[CHUNK_FIELDS]: 0 the address of int64[width], the addresses of the tensor's slots; 1,
        2 offset and length in elements; 3 the number of the first element, see `primitives.draw`; 4 the
        address of the tensor's numbers, float64; 5 that of float64[tiles, reductions], the results of the
        chunk's tiles.
    random : int64
        As for `run_stages`.
    """
    slots, offset, n, place = (
        load_int64(chunk, 0, -1),
        load_int64(chunk, 1, -1),
        load_int64(chunk, 2, -1),
        load_int64(chunk, 3, -1),
    )
    call_kernel(kernel, slots, offset, n, place, load_int64(chunk, 4, -1), random, load_int64(chunk, 5, -1))


@njit(error_model="numpy")
def run_strided_chunk(kernel, chunk, random):
    """Run a pass's kernel over one chunk of a tensor that may be strided.

    The strided slots of a chunk are gathered to a contiguous buffer, piece by piece, and those that the
    kernel writes are scattered back.

    Parameters
    ----------
    kernel, chunk, random
        As for `run_chunk`. Fields of the chunk besides: 6 the bytes of the results of one tile; 7 the address
        of int64[width]: the address of each slot's geometry, int64[3 + 2 ndim]: 0 for contiguous memory, 1
        for strided memory that is only read, 2 for strided memory that is written; item size in bytes; ndim;
        shape; strides in bytes; or 0 for a slot that is one number for the whole step; 8 the width.
    """
    row, offset, n, place = (
        load_int64(chunk, 0, -1),
        load_int64(chunk, 1, -1),
        load_int64(chunk, 2, -1),
        load_int64(chunk, 3, -1),
    )
    numbers, sums, step = load_int64(chunk, 4, -1), load_int64(chunk, 5, -1), load_int64(chunk, 6, -1)
    geometry, width = load_int64(chunk, 7, -1), load_int64(chunk, 8, -1)
    strided = False
    for slot in range(width):
        shape = load_int64(geometry, slot, -1)
        strided = strided or (shape != 0 and load_int64(shape, 0, -1) > 0)
    if not strided:
        call_kernel(kernel, row, offset, n, place, numbers, random, sums)
        return
    buffer = empty(width * PIECE, np.float64)
    addresses = empty(width, np.int64)
    for start in range(0, n, PIECE):
        m = min(PIECE, n - start)
        for slot in range(width):
            shape = load_int64(geometry, slot, -1)
            base = load_int64(row, slot, -1)
            if shape == 0:
                addresses[slot] = base
            elif load_int64(shape, 0, -1) == 0:
                addresses[slot] = base + (offset + start) * load_int64(shape, 1, -1)
            else:
                addresses[slot] = buffer.ctypes.data + slot * PIECE * 8
                copy_strided(addresses[slot], base, shape, offset + start, m, True)
        call_kernel(kernel, addresses.ctypes.data, 0, m, place + start, numbers, random, sums)
        sums += step
        for slot in range(width):
            shape = load_int64(geometry, slot, -1)
            if shape != 0 and load_int64(shape, 0, -1) == 2:
                copy_strided(addresses[slot], load_int64(row, slot, -1), shape, offset + start, m, False)


@njit(error_model="numpy")
def run_sliced_chunk(kernel, chunk, random):
    """Run the kernel of a pass that knows slices over some rows and columns.

    Parameters
    ----------
    kernel : int64
        Address of ``void kernel(slots, chunk, walk, numbers, random, 0, 0)``.
    chunk : int64
        Address of int64[SLICED_FIELDS]: 0 the address of int64[width], the addresses of the tensor's slots; 1
        that of the walk; 2, 3 the first row and the one after the last; 4, 5 the columns, likewise; 6 the
        address of the tensor's numbers; 7 the number of the slots' first element, see `primitives.draw`; 8
        the address of the geometries, see `run_strided_chunk`; 9 the width.
    random : int64
        As for `run_stages`.
    """
    slots, walk, numbers = load_int64(chunk, 0, -1), load_int64(chunk, 1, -1), load_int64(chunk, 6, -1)
    geometry, width = load_int64(chunk, 8, -1), load_int64(chunk, 9, -1)
    strided = 0
    for slot in range(width):
        shape = load_int64(geometry, slot, -1)
        if shape != 0 and load_int64(shape, 0, -1) > 0:
            strided += 1
    if strided == 0:
        call_kernel(kernel, slots, chunk, walk, numbers, random, 0, 0)
        return
    # Whole rows: what they take of a strided slot lies in one piece in the buffer.
    columns = load_int64(walk, 0, -1)
    start = load_int64(chunk, 2, -1) * columns
    n = load_int64(chunk, 3, -1) * columns - start
    buffer = empty(strided * n, np.float64)
    addresses = empty(width, np.int64)
    used = 0
    for slot in range(width):
        shape = load_int64(geometry, slot, -1)
        addresses[slot] = load_int64(slots, slot, -1)
        if shape != 0 and load_int64(shape, 0, -1) > 0:
            here = buffer.ctypes.data + used * n * 8
            copy_strided(here, addresses[slot], shape, start, n, True)
            addresses[slot] = here - start * load_int64(shape, 1, -1)
            used += 1
    call_kernel(kernel, addresses.ctypes.data, chunk, walk, numbers, random, 0, 0)
    for slot in range(width):
        shape = load_int64(geometry, slot, -1)
        if shape != 0 and load_int64(shape, 0, -1) == 2:
            here = addresses[slot] + start * load_int64(shape, 1, -1)
            copy_strided(here, load_int64(slots, slot, -1), shape, start, n, False)


@njit(error_model="numpy")
def combine_slice(op, entry):
    """End a reduction along axes of one parameter, or a part of it.

    Parameters
    ----------
    op : int64
        0 sum, 1 max, 2 min.
    entry : int64
        Address of int64[SLICE_FIELDS]: 0 the address of the walk; 1 a slot that is laid out as the result is;
        2 which of the pass's reductions along axes it is; 3 the address of the result; 4 its elements; 5
        COLUMNS_KEPT, ROWS_KEPT or ROWS_JOINED; 6 the address of the first tile's result, if the columns are
        not kept; 7, 8 how many float64 a tile has, and the tiles of a row; 9 the address of
        float64[elements], scratch memory; 10 whether the arithmetic is float64; 11 the rows; 12, 13 the first
        column or row of the part, and the one after the last.
    """
    walk, slot, fold, target = (
        load_int64(entry, 0, -1),
        load_int64(entry, 1, -1),
        load_int64(entry, 2, -1),
        load_int64(entry, 3, -1),
    )
    size, kind, columns = load_int64(entry, 4, -1), load_int64(entry, 5, -1), load_int64(walk, 0, -1)
    partial, step, tiles, scratch = (
        load_int64(entry, 6, -1),
        load_int64(entry, 7, -1),
        load_int64(entry, 8, -1),
        load_int64(entry, 9, -1),
    )
    wide, rows, first, last = (
        load_int64(entry, 10, -1),
        load_int64(entry, 11, -1),
        load_int64(entry, 12, -1),
        load_int64(entry, 13, -1),
    )
    nothing = 0.0 if op == 0 else (-np.inf if op == 1 else np.inf)
    if kind == ROWS_KEPT:
        for row in range(first, last):
            found = nothing
            for tile in range(tiles):
                found = joined(op, found, load_float64(partial, (row * tiles + tile) * step, -1))
            store_result(target, row, found, wide)
    elif kind == ROWS_JOINED:
        for k in range(size):
            store_float64(scratch, k, -1, nothing)
        for row in range(rows):
            place = row_offset(walk, slot, row)
            found = load_float64(scratch, place, -1)
            for tile in range(tiles):
                found = joined(op, found, load_float64(partial, (row * tiles + tile) * step, -1))
            store_float64(scratch, place, -1, found)
        for k in range(size):
            store_result(target, k, load_float64(scratch, k, -1), wide)
    else:
        for start in range(0, size, columns):
            for c in range(start + first, start + last):
                store_float64(scratch, c, -1, nothing)
        for row in range(rows):
            if band_begins(walk, fold, row):
                place, here = (
                    row_offset(walk, slot, row),
                    band_address(walk, fold, row, columns * (8 if wide else 4)),
                )
                for c in range(first, last):
                    value = load_float64(here, c, -1) if wide else float64(load_float32(here, c, -1))
                    store_float64(
                        scratch, place + c, -1, joined(op, load_float64(scratch, place + c, -1), value)
                    )
        for start in range(0, size, columns):
            for c in range(start + first, start + last):
                store_result(target, c, load_float64(scratch, c, -1), wide)


@njit(error_model="numpy")
def store_result(target, k, value, wide):
    """Store a float64 as element k of float64 or float32 memory."""
    if wide:
        store_float64(target, k, -1, value)
    else:
        store_float32(target, k, -1, float32(value))


@njit(error_model="numpy")
def joined(op, a, b):
    """Return what two float64 become."""
    return a + b if op == 0 else (maximum(a, b) if op == 1 else minimum(a, b))


@njit(error_model="numpy")
def combine(stage):
    """Fold the results of the tiles of each parameter, or take a number of each.

    Parameters
    ----------
    stage : int64
        Address of the record: 2 the op (0 sum, 1 max, 2 min); 3 the address of int64[rows + 1], where each
        row's tiles begin, or 0 if what is taken is a number of each row; 4, 5 the address of the first tile's
        result or the first row's number, and the bytes from one to the next; 6 the rows; 7, 8 the address of
        the first row's result, and the bytes from one to the next; 9 that of float64[tiles], scratch memory.
    """
    op, starts, sums, step = (
        load_int64(stage, 2, -1),
        load_int64(stage, 3, -1),
        load_int64(stage, 4, -1),
        load_int64(stage, 5, -1),
    )
    rows, target, target_step = load_int64(stage, 6, -1), load_int64(stage, 7, -1), load_int64(stage, 8, -1)
    scratch = load_int64(stage, 9, -1)
    for row in range(rows):
        if starts == 0:
            found = load_float64(sums + row * step, 0, -1)
        else:
            first = load_int64(starts, row, -1)
            n = load_int64(starts, row + 1, -1) - first
            for k in range(n):
                store_float64(scratch, k, -1, load_float64(sums + (first + k) * step, 0, -1))
            found = fold_of(op, scratch, n)
        store_float64(target + row * target_step, 0, -1, found)


@njit(error_model="numpy")
def combine_step(stage):
    """Fold the results of all parameters of a call into a number that each of some rows gets.

    Parameters
    ----------
    stage : int64
        Address of the record: 2 the op; 3, 4 the address of the first row's number, and the bytes from one to
        the next; 5 the rows; 6, 7 the address of int64[n], the addresses of the results, and n; 8 that of
        float64[n], scratch memory.
    """
    op, target, step, rows = (
        load_int64(stage, 2, -1),
        load_int64(stage, 3, -1),
        load_int64(stage, 4, -1),
        load_int64(stage, 5, -1),
    )
    results, n, scratch = load_int64(stage, 6, -1), load_int64(stage, 7, -1), load_int64(stage, 8, -1)
    for k in range(n):
        store_float64(scratch, k, -1, load_float64(load_int64(results, k, -1), 0, -1))
    found = fold_of(op, scratch, n)
    for row in range(rows):
        store_float64(target + row * step, 0, -1, found)


@njit(error_model="numpy")
def fold_of(op, values, n):
    """Fold n float64, which are used up."""
    if op == 0:
        return fold_sum(values, n) if n > 0 else 0.0
    if op == 1:
        return fold_max(values, n) if n > 0 else -np.inf
    return fold_min(values, n) if n > 0 else np.inf


@njit(error_model="numpy")
def copy_strided(buffer, base, geometry, start, n, gather):
    """Copy `n` elements of a strided tensor, from C-order position `start` on, to a contiguous buffer, or
    back.

    Parameters
    ----------
    buffer, base, geometry : int64
        Addresses of the buffer, of the tensor's first element, and of its geometry (see `run_staged_chunks`).
    start, n : int64
    gather : bool
        True: into the buffer. False: back into the tensor.
    """
    size = load_int64(geometry, 1, -1)
    ndim = load_int64(geometry, 2, -1)
    last = load_int64(geometry, 2 + ndim, -1)
    step = load_int64(geometry, 2 + 2 * ndim, -1)
    outer, column = start // last, start % last
    done = 0
    while done < n:
        # The place of this run along the last axis, from the indices along the others.
        place = base + column * step
        rest = outer
        for axis in range(ndim - 2, -1, -1):
            extent = load_int64(geometry, 3 + axis, -1)
            place += (rest % extent) * load_int64(geometry, 3 + ndim + axis, -1)
            rest //= extent
        count = min(last - column, n - done)
        if gather:
            copy_run(buffer + done * size, size, place, step, count, size)
        else:
            copy_run(place, step, buffer + done * size, size, count, size)
        done += count
        column = 0
        outer += 1


@njit(error_model="numpy")
def copy_run(target, target_step, source, source_step, count, size):
    """Copy `count` elements of `size` bytes between two strided runs of memory."""
    if size == 4:
        for k in range(count):
            store_int32(target + k * target_step, 0, -1, load_int32(source + k * source_step, 0, -1))
    elif size == 8:
        for k in range(count):
            store_int64(target + k * target_step, 0, -1, load_int64(source + k * source_step, 0, -1))
    else:
        for k in range(count):
            store_int16(target + k * target_step, 0, -1, load_int16(source + k * source_step, 0, -1))
