"""What a step does besides its passes: arithmetic on numbers, its condition, and the ends of reductions.

Each function that takes ``(argument, entry, step)`` is compiled by its name when a step needs it, see
`nbopt_backends.cpu.drivers`.
"""

import numpy as np
from numba import float32, float64, njit

from nbopt_backends.cpu.primitives import (
    band_address,
    band_begins,
    call_scalars,
    fold_max,
    fold_min,
    fold_sum,
    load_float32,
    load_float64,
    load_int64,
    maximum,
    minimum,
    row_offset,
    store_float32,
    store_float64,
    store_int64,
)

COLUMNS_KEPT, ROWS_KEPT, ROWS_JOINED = range(3)


def run_scalars(function, entry, step):
    """Compute numbers of some parameters.

    Parameters
    ----------
    function : int64
        Address of ``void function(slots, numbers, taken)``.
    entry : int64
        Address of int64[6]: 0 the address of the table of slots; 1 its width; 2, 3 the address of the first
        row's numbers, and the bytes from one to the next; 4, 5 how many rows, and the address of these.
    step : int64
        See `run_stages`.
    """
    for k in range(load_int64(entry, 4, -1)):
        row = load_int64(load_int64(entry, 5, -1), k, -1)
        slots = load_int64(entry, 0, -1) + row * load_int64(entry, 1, -1) * 8
        numbers = load_int64(entry, 2, -1) + row * load_int64(entry, 3, -1)
        call_scalars(function, slots, numbers, load_int64(step, 2, -1))


def decide(argument, condition, step):
    """Note that the step is not taken if its condition, a float64 at an address, is 0 or NaN."""
    found = load_float64(condition, 0, -1)
    if found != found or found == 0.0:
        store_int64(step, 2, -1, 0)


def combine(op, entry, step):
    """Fold the results of the tiles of each parameter, or take a number of each.

    Parameters
    ----------
    op : int64
        0 sum, 1 max, 2 min.
    entry : int64
        Address of int64[7]: 0 the address of int64[rows + 1], where each row's tiles begin, or 0 if what is
        taken is a number of each row; 1, 2 the address of the first tile's result or the first row's number,
        and the bytes from one to the next; 3 the rows; 4, 5 the address of the first row's result, and the
        bytes from one to the next; 6 that of float64[tiles], scratch memory.
    step : int64
        See `run_stages`.
    """
    starts, sums, size = load_int64(entry, 0, -1), load_int64(entry, 1, -1), load_int64(entry, 2, -1)
    rows, target, target_size = load_int64(entry, 3, -1), load_int64(entry, 4, -1), load_int64(entry, 5, -1)
    scratch = load_int64(entry, 6, -1)
    for row in range(rows):
        if starts == 0:
            found = load_float64(sums + row * size, 0, -1)
        else:
            first = load_int64(starts, row, -1)
            n = load_int64(starts, row + 1, -1) - first
            for k in range(n):
                store_float64(scratch, k, -1, load_float64(sums + (first + k) * size, 0, -1))
            found = fold_of(op, scratch, n)
        store_float64(target + row * target_size, 0, -1, found)


def combine_step(op, entry, step):
    """Fold the results of all parameters of a call into a number that each of some rows gets.

    Parameters
    ----------
    op : int64
    entry : int64
        Address of int64[6]: 0, 1 the address of the first row's number, and the bytes from one to the next; 2
        the rows; 3, 4 the address of int64[n], the addresses of the results, and n; 5 that of float64[n],
        scratch memory.
    step : int64
        See `run_stages`.
    """
    target, size, rows = load_int64(entry, 0, -1), load_int64(entry, 1, -1), load_int64(entry, 2, -1)
    results, n, scratch = load_int64(entry, 3, -1), load_int64(entry, 4, -1), load_int64(entry, 5, -1)
    for k in range(n):
        store_float64(scratch, k, -1, load_float64(load_int64(results, k, -1), 0, -1))
    found = fold_of(op, scratch, n)
    for row in range(rows):
        store_float64(target + row * size, 0, -1, found)


def combine_slice(op, entry, step):
    """End a reduction along axes of one parameter, or a part of it.

    Parameters
    ----------
    op : int64
        0 sum, 1 max, 2 min.
    entry : int64
        Address of int64[14]: 0 the address of the walk; 1 a slot that is laid out as the result is;
        2 which of the pass's reductions along axes it is; 3 the address of the result; 4 its elements; 5
        COLUMNS_KEPT, ROWS_KEPT or ROWS_JOINED; 6 the address of the first tile's result, if the columns are
        not kept; 7, 8 how many float64 a tile has, and the tiles of a row; 9 the address of
        float64[elements], scratch memory; 10 whether the arithmetic is float64; 11 the rows; 12, 13 the first
        column or row of the part, and the one after the last.
    step : int64
        See `run_stages`.
    """
    walk, slot, fold, target = (
        load_int64(entry, 0, -1),
        load_int64(entry, 1, -1),
        load_int64(entry, 2, -1),
        load_int64(entry, 3, -1),
    )
    size, kind, columns = load_int64(entry, 4, -1), load_int64(entry, 5, -1), load_int64(walk, 0, -1)
    partial, length, tiles, scratch = (
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
                found = joined(op, found, load_float64(partial, (row * tiles + tile) * length, -1))
            store_result(target, row, found, wide)
    elif kind == ROWS_JOINED:
        for k in range(size):
            store_float64(scratch, k, -1, nothing)
        for row in range(rows):
            place = row_offset(walk, slot, row)
            found = load_float64(scratch, place, -1)
            for tile in range(tiles):
                found = joined(op, found, load_float64(partial, (row * tiles + tile) * length, -1))
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
def fold_of(op, values, n):
    """Fold n float64, which are used up."""
    if op == 0:
        return fold_sum(values, n) if n > 0 else 0.0
    if op == 1:
        return fold_max(values, n) if n > 0 else -np.inf
    return fold_min(values, n) if n > 0 else np.inf
