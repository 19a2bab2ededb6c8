"""What runs a kernel over all chunks of all tensors: the one parallel loop of a step on the CPU.

The functions here are compiled twice, with and without threads, from a copy of this file in the cache folder. Everything comes in as an
int64, addresses too, so that a launch costs under a microsecond of unboxing.
"""

import numpy as np
from numba import njit, prange

from nbopt_backends.cpu.primitives import (
    call_kernel,
    load_int16,
    load_int32,
    load_int64,
    store_int16,
    store_int32,
    store_int64,
)

PIECE = 1024  # elements that are gathered at a time; a multiple of it is a chunk


def run_chunks(kernel, table, width, chunks, n_chunks, places, scalars, random):
    """Run a kernel over the chunks of contiguous tensors.

    Parameters
    ----------
    kernel : int64
        Address of ``void kernel(row, offset, n, place, scalars, random)``.
    table : int64
        Address of int64[rows, width]: the address of each slot of each tensor.
    width : int64
        The number of slots.
    chunks : int64
        Address of int64[n_chunks, 3]: row, offset in elements, length in elements.
    n_chunks : int64
    places : int64
        Address of int64[n_chunks]: the number of each chunk's first element, see `cpu_primitives.draw`.
    scalars : int64
        Address of the run-time scalars, in the arithmetic's type.
    random : int64
        Address of int64[2]: the seed and the update count.
    """
    for c in prange(n_chunks):
        row = table + load_int64(chunks, 3 * c, -1) * width * 8
        place = load_int64(places, c, -1)
        call_kernel(kernel, row, load_int64(chunks, 3 * c + 1, -1), load_int64(chunks, 3 * c + 2, -1), place, scalars, random)


def run_staged_chunks(kernel, table, views, width, chunks, n_chunks, places, scalars, random):
    """Run a kernel over the chunks of tensors of which some are strided.

    The strided slots of a chunk are gathered to a contiguous buffer, piece by piece, and those that the kernel writes are scattered back.

    Parameters
    ----------
    kernel, table, width, chunks, n_chunks, places, scalars, random
        As for `run_chunks`.
    views : int64
        Address of int64[rows, width]: the address of each slot's geometry, int64[3 + 2 ndim]: 0 for contiguous memory, 1 for
        strided memory that is only read, 2 for strided memory that is written; item size in bytes; ndim; shape; strides in bytes.
    """
    for c in prange(n_chunks):
        number = load_int64(chunks, 3 * c, -1)
        offset = load_int64(chunks, 3 * c + 1, -1)
        n = load_int64(chunks, 3 * c + 2, -1)
        place = load_int64(places, c, -1)
        row = table + number * width * 8
        geometry = views + number * width * 8
        strided = False
        for slot in range(width):
            strided = strided or load_int64(load_int64(geometry, slot, -1), 0, -1) > 0
        if not strided:
            call_kernel(kernel, row, offset, n, place, scalars, random)
        else:
            buffer = np.empty(width * PIECE, np.float64)
            addresses = np.empty(width, np.int64)
            for start in range(0, n, PIECE):
                m = min(PIECE, n - start)
                for slot in range(width):
                    shape = load_int64(geometry, slot, -1)
                    base = load_int64(row, slot, -1)
                    if load_int64(shape, 0, -1) == 0:
                        addresses[slot] = base + (offset + start) * load_int64(shape, 1, -1)
                    else:
                        addresses[slot] = buffer.ctypes.data + slot * PIECE * 8
                        copy_strided(addresses[slot], base, shape, offset + start, m, True)
                call_kernel(kernel, addresses.ctypes.data, 0, m, place + start, scalars, random)
                for slot in range(width):
                    shape = load_int64(geometry, slot, -1)
                    if load_int64(shape, 0, -1) == 2:
                        copy_strided(addresses[slot], load_int64(row, slot, -1), shape, offset + start, m, False)


@njit(error_model="numpy")
def copy_strided(buffer, base, geometry, start, n, gather):
    """Copy `n` elements of a strided tensor, from C-order position `start` on, to a contiguous buffer, or back.

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
