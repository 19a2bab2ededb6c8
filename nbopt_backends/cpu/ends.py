"""What a step does besides its passes: arithmetic on numbers, its condition, and the ends of reductions.

Each function that takes ``(argument, entry, step)`` is compiled by its name when a step needs it, see
`nbopt_backends.cpu.drivers`.
"""

import numpy as np
from numba import float32, float64

from nbopt_backends.cpu.primitives import (
    band_address,
    band_begins_at,
    call_scalars,
    count_rows,
    empty,
    float32_at,
    float64_at,
    int64_at,
    maximum,
    minimum,
    next_row,
    part,
    put_float32,
    put_float64,
    put_int64,
    row_step,
)

COLUMNS_KEPT, ROWS_KEPT, ROWS_JOINED = range(3)
END_FIELDS = 14  # of `combine_slice`


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
    for k in range(int64_at(entry, 4)):
        row = int64_at(int64_at(entry, 5), k)
        slots = int64_at(entry, 0) + row * int64_at(entry, 1) * 8
        numbers = int64_at(entry, 2) + row * int64_at(entry, 3)
        call_scalars(function, slots, numbers, int64_at(step, 2))


def decide(argument, condition, step):
    """Note that the step is not taken if its condition, a float64 at an address, is 0 or NaN."""
    found = float64_at(condition, 0)
    if found != found or found == 0.0:
        put_int64(step, 2, 0)


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
    starts, sums, size = int64_at(entry, 0), int64_at(entry, 1), int64_at(entry, 2)
    rows, target, target_size = int64_at(entry, 3), int64_at(entry, 4), int64_at(entry, 5)
    scratch = int64_at(entry, 6)
    for row in range(rows):
        if starts == 0:
            found = float64_at(sums + row * size, 0)
        else:
            first = int64_at(starts, row)
            n = int64_at(starts, row + 1) - first
            found = fold_of(op, scratch, halved(op, sums + first * size, size, n, scratch))
        put_float64(target + row * target_size, 0, found)


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
    target, size, rows = int64_at(entry, 0), int64_at(entry, 1), int64_at(entry, 2)
    results, n, scratch = int64_at(entry, 3), int64_at(entry, 4), int64_at(entry, 5)
    for k in range(n):
        put_float64(scratch, k, float64_at(int64_at(results, k), 0))
    found = fold_of(op, scratch, n)
    for row in range(rows):
        put_float64(target + row * size, 0, found)


def combine_slice(op, entry, step):
    """End a reduction along axes of one parameter, or a part of it.

    Parameters
    ----------
    op : int64
        0 sum, 1 max, 2 min.
    entry : int64
        Address of int64[END_FIELDS]: 0 the address of the walk; 1 a slot that is laid out as the result is;
        2 which of the pass's reductions along axes it is; 3 the address of the result; 4 its elements; 5
        COLUMNS_KEPT, ROWS_KEPT or ROWS_JOINED; 6 the address of the first tile's result, if the columns are
        not kept; 7, 8 how many float64 a tile has, and the tiles of a row; 9 the address of
        float64[elements], scratch memory; 10 whether the arithmetic is float64; 11 the rows; 12, 13 the first
        column or row of the part, and the one after the last.
    step : int64
        See `run_stages`.
    """
    walk, slot, fold, target = (
        int64_at(entry, 0),
        int64_at(entry, 1),
        int64_at(entry, 2),
        int64_at(entry, 3),
    )
    size, kind, columns = int64_at(entry, 4), int64_at(entry, 5), int64_at(walk, 0)
    partial, length, tiles, scratch = (
        int64_at(entry, 6),
        int64_at(entry, 7),
        int64_at(entry, 8),
        int64_at(entry, 9),
    )
    wide, rows, first, last = (
        int64_at(entry, 10),
        int64_at(entry, 11),
        int64_at(entry, 12),
        int64_at(entry, 13),
    )
    result_of_none = nothing(op)
    counted = empty(max(int64_at(walk, 1), 1), np.int64)
    count_rows(walk, counted.ctypes.data, 0)  # by its array, which Numba would free after its last use
    place = 0
    if kind == ROWS_KEPT and tiles == 1 and op == 0 and not wide:  # rows of a few columns: there are many
        for row in range(first, last):
            put_float32(target, row, float32(0.0 + float64_at(partial, row * length)))
    elif kind == ROWS_KEPT:
        for row in range(first, last):
            found = result_of_none
            for tile in range(tiles):
                found = joined(op, found, float64_at(partial, (row * tiles + tile) * length))
            store_result(target, row, found, wide)
    elif kind == ROWS_JOINED:
        for k in range(size):
            put_float64(scratch, k, result_of_none)
        for row in range(rows):
            found = float64_at(scratch, place)
            for tile in range(tiles):
                found = joined(op, found, float64_at(partial, (row * tiles + tile) * length))
            put_float64(scratch, place, found)
            place += row_step(walk, slot, next_row(walk, counted.ctypes.data))
        for k in range(size):
            store_result(target, k, float64_at(scratch, k), wide)
    elif rows == 1:
        here = band_address(walk, fold, 0, 0)
        if wide:
            for c in range(first, last):
                put_float64(target, c, joined(op, result_of_none, float64_at(here, c)))
        else:
            for c in range(first, last):
                put_float32(target, c, float32(joined(op, result_of_none, float64(float32_at(here, c)))))
    else:
        for start in range(0, size, columns):
            for c in range(start + first, start + last):
                put_float64(scratch, c, result_of_none)
        band = columns * (8 if wide else 4)
        here = band_address(walk, fold, 0, band)
        for _ in range(rows):
            if band_begins_at(walk, fold, counted.ctypes.data):
                for c in range(first, last):
                    value = float64_at(here, c) if wide else float64(float32_at(here, c))
                    put_float64(scratch, place + c, joined(op, float64_at(scratch, place + c), value))
                here += band
            place += row_step(walk, slot, next_row(walk, counted.ctypes.data))
        for start in range(0, size, columns):
            for c in range(start + first, start + last):
                store_result(target, c, float64_at(scratch, c), wide)


@part
def store_result(target, k, value, wide):
    """Store a float64 as element k of float64 or float32 memory."""
    if wide:
        put_float64(target, k, value)
    else:
        put_float32(target, k, float32(value))


@part
def joined(op, a, b):
    """Return what two float64 become."""
    return a + b if op == 0 else (maximum(a, b) if op == 1 else minimum(a, b))


@part
def halved(op, first, size, n, target):
    """Do the first halving of a fold of n float64 that lie `size` bytes apart, and return how many are left.

    They are written to memory at an address, one after the other.
    """
    half = 1
    while 2 * half < n:
        half *= 2
    if n < 2:
        half = n
    upper = first + half * size
    for k in range(n - half):
        a, b = float64_at(first + k * size, 0), float64_at(upper + k * size, 0)
        put_float64(target, k, a + b if op == 0 else joined(op, a, b))
    for k in range(n - half, half):
        put_float64(target, k, float64_at(first + k * size, 0))
    return half


@part
def fold_of(op, values, n):
    """Fold n float64 from an address on, which are used up: the results of tiles, which are few."""
    if n == 0:
        return nothing(op)
    while n > 1:
        half = 1
        while 2 * half < n:
            half *= 2
        upper = values + half * 8
        if op == 0:  # goes in vectors
            for k in range(n - half):
                put_float64(values, k, float64_at(values, k) + float64_at(upper, k))
        else:
            for k in range(n - half):
                put_float64(values, k, joined(op, float64_at(values, k), float64_at(upper, k)))
        n = half
    return float64_at(values, 0)


@part
def nothing(op):
    """Return the result over no values."""
    return 0.0 if op == 0 else (-np.inf if op == 1 else np.inf)
