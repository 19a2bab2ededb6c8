"""What a pass does with one chunk of a tensor, and how strided memory is gathered for it.

Each function that takes ``(argument, entry, step)`` is compiled by its name when a step needs it, see
`nbopt_backends.cpu.drivers`.
"""

import numpy as np

from nbopt_backends.cpu.primitives import (
    call_kernel,
    empty,
    int16_at,
    int32_at,
    int64_at,
    part,
    put_int16,
    put_int32,
    put_int64,
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
        int64_at(chunk, 0),
        int64_at(chunk, 1),
        int64_at(chunk, 2),
        int64_at(chunk, 3),
    )
    call_kernel(kernel, slots, offset, n, place, int64_at(chunk, 4), step, int64_at(chunk, 5))


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
        int64_at(chunk, 0),
        int64_at(chunk, 1),
        int64_at(chunk, 2),
        int64_at(chunk, 3),
    )
    numbers, sums, size = int64_at(chunk, 4), int64_at(chunk, 5), int64_at(chunk, 6)
    geometry, width = int64_at(chunk, 7), int64_at(chunk, 8)
    strided = False
    for slot in range(width):
        shape = int64_at(geometry, slot)
        strided = strided or (shape != 0 and int64_at(shape, 0) > 0)
    if not strided:
        call_kernel(kernel, row, offset, n, place, numbers, step, sums)
        return
    buffer = empty(width * PIECE, np.float64)
    addresses = empty(width, np.int64)
    for start in range(0, n, PIECE):
        m = min(PIECE, n - start)
        for slot in range(width):
            shape = int64_at(geometry, slot)
            base = int64_at(row, slot)
            if shape == 0:
                addresses[slot] = base
            elif int64_at(shape, 0) == 0:
                addresses[slot] = base + (offset + start) * int64_at(shape, 1)
            else:
                addresses[slot] = buffer.ctypes.data + slot * PIECE * 8
                copy_strided(addresses[slot], base, shape, offset + start, m, True)
        call_kernel(kernel, addresses.ctypes.data, 0, m, place + start, numbers, step, sums)
        sums += size
        for slot in range(width):
            shape = int64_at(geometry, slot)
            if shape != 0 and int64_at(shape, 0) == 2:
                copy_strided(addresses[slot], int64_at(row, slot), shape, offset + start, m, False)


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
    slots, walk, numbers = int64_at(chunk, 0), int64_at(chunk, 1), int64_at(chunk, 6)
    geometry, width = int64_at(chunk, 8), int64_at(chunk, 9)
    strided = 0
    for slot in range(width):
        shape = int64_at(geometry, slot)
        if shape != 0 and int64_at(shape, 0) > 0:
            strided += 1
    if strided == 0:
        call_kernel(kernel, slots, chunk, walk, numbers, step, 0, 0)
        return
    # Whole rows: what they take of a strided slot lies in one piece in the buffer.
    columns = int64_at(walk, 0)
    start = int64_at(chunk, 2) * columns
    n = int64_at(chunk, 3) * columns - start
    buffer = empty(strided * n, np.float64)
    addresses = empty(width, np.int64)
    used = 0
    for slot in range(width):
        shape = int64_at(geometry, slot)
        addresses[slot] = int64_at(slots, slot)
        if shape != 0 and int64_at(shape, 0) > 0:
            here = buffer.ctypes.data + used * n * 8
            copy_strided(here, addresses[slot], shape, start, n, True)
            addresses[slot] = here - start * int64_at(shape, 1)
            used += 1
    call_kernel(kernel, addresses.ctypes.data, chunk, walk, numbers, step, 0, 0)
    for slot in range(width):
        shape = int64_at(geometry, slot)
        if shape != 0 and int64_at(shape, 0) == 2:
            here = addresses[slot] + start * int64_at(shape, 1)
            copy_strided(here, int64_at(slots, slot), shape, start, n, False)


@part
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
    size = int64_at(geometry, 1)
    ndim = int64_at(geometry, 2)
    last = int64_at(geometry, 2 + ndim)
    step = int64_at(geometry, 2 + 2 * ndim)
    outer, column = start // last, start % last
    done = 0
    while done < n:
        # The place of this run along the last axis, from the indices along the others.
        place = base + column * step
        rest = outer
        for axis in range(ndim - 2, -1, -1):
            extent = int64_at(geometry, 3 + axis)
            place += (rest % extent) * int64_at(geometry, 3 + ndim + axis)
            rest //= extent
        count = min(last - column, n - done)
        if gather:
            copy_run(buffer + done * size, size, place, step, count, size)
        else:
            copy_run(place, step, buffer + done * size, size, count, size)
        done += count
        column = 0
        outer += 1


@part
def copy_run(target, target_step, source, source_step, count, size):
    """Copy `count` elements of `size` bytes between two strided runs of memory."""
    if size == 4:
        for k in range(count):
            put_int32(target + k * target_step, 0, int32_at(source + k * source_step, 0))
    elif size == 8:
        for k in range(count):
            put_int64(target + k * target_step, 0, int64_at(source + k * source_step, 0))
    else:
        for k in range(count):
            put_int16(target + k * target_step, 0, int16_at(source + k * source_step, 0))
