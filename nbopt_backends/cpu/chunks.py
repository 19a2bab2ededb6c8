"""What a pass does with one chunk of a tensor, and how strided memory is gathered for it.

Each function that takes ``(argument, entry, step)`` is compiled by its name when a step needs it, see
`nbopt_backends.cpu.drivers`.
"""

import numpy as np
from numba import njit

from nbopt_backends.cpu.primitives import (
    call_kernel,
    empty,
    load_int16,
    load_int32,
    load_int64,
    store_int16,
    store_int32,
    store_int64,
)

PIECE = 4096  # elements that are gathered at a time, a tile of a reduction; a chunk is a multiple of it
CHUNK_FIELDS = 9
SLICED_FIELDS = 10


def run_chunk(kernel, chunk, step):
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
    step : int64
        See `run_stages`.
    """
    slots, offset, n, place = (
        load_int64(chunk, 0, -1),
        load_int64(chunk, 1, -1),
        load_int64(chunk, 2, -1),
        load_int64(chunk, 3, -1),
    )
    call_kernel(kernel, slots, offset, n, place, load_int64(chunk, 4, -1), step, load_int64(chunk, 5, -1))


def run_strided_chunk(kernel, chunk, step):
    """Run a pass's kernel over one chunk of a tensor that may be strided.

    The strided slots of a chunk are gathered to a contiguous buffer, piece by piece, and those that the
    kernel writes are scattered back.

    Parameters
    ----------
    kernel, chunk, step
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
    numbers, sums, size = load_int64(chunk, 4, -1), load_int64(chunk, 5, -1), load_int64(chunk, 6, -1)
    geometry, width = load_int64(chunk, 7, -1), load_int64(chunk, 8, -1)
    strided = False
    for slot in range(width):
        shape = load_int64(geometry, slot, -1)
        strided = strided or (shape != 0 and load_int64(shape, 0, -1) > 0)
    if not strided:
        call_kernel(kernel, row, offset, n, place, numbers, step, sums)
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
        call_kernel(kernel, addresses.ctypes.data, 0, m, place + start, numbers, step, sums)
        sums += size
        for slot in range(width):
            shape = load_int64(geometry, slot, -1)
            if shape != 0 and load_int64(shape, 0, -1) == 2:
                copy_strided(addresses[slot], load_int64(row, slot, -1), shape, offset + start, m, False)


def run_sliced_chunk(kernel, chunk, step):
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
    step : int64
        See `run_stages`.
    """
    slots, walk, numbers = load_int64(chunk, 0, -1), load_int64(chunk, 1, -1), load_int64(chunk, 6, -1)
    geometry, width = load_int64(chunk, 8, -1), load_int64(chunk, 9, -1)
    strided = 0
    for slot in range(width):
        shape = load_int64(geometry, slot, -1)
        if shape != 0 and load_int64(shape, 0, -1) > 0:
            strided += 1
    if strided == 0:
        call_kernel(kernel, slots, chunk, walk, numbers, step, 0, 0)
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
    call_kernel(kernel, addresses.ctypes.data, chunk, walk, numbers, step, 0, 0)
    for slot in range(width):
        shape = load_int64(geometry, slot, -1)
        if shape != 0 and load_int64(shape, 0, -1) == 2:
            here = addresses[slot] + start * load_int64(shape, 1, -1)
            copy_strided(here, load_int64(slots, slot, -1), shape, start, n, False)


@njit(error_model="numpy")
def copy_strided(buffer, base, geometry, start, n, gather):
    """Copy `n` elements of a strided tensor to a contiguous buffer, or back.

    Parameters
    ----------
    buffer, base, geometry : int64
        Addresses of the buffer, of the tensor's first element, and of its geometry (see `run_strided_chunk`).
    start, n : int64
        The first element's number in C order, and how many there are.
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
