"""Reductions as CPU kernels fold them, see `nbopt_backends.meaning.tree`."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nbopt_backends.cpu.instructions import (
    _called,
    _pointer,
    float32_at,
    float64_at,
    part,
    put_float32,
    put_float64,
)
from nbopt_backends.meaning import tree
from nbopt_backends.meaning.slices import COLUMNS

_TILE = tree.TILE
_LANES = 8


def _joining(emit):
    """Return an intrinsic that joins two values of one floating type."""

    @intrinsic
    def join(context, a, b):
        def codegen(ctx, builder, signature, args):
            return emit(builder, *args)

        return a(a, a), codegen

    return join


def _joining_eight(emit, llvm_type, size):
    """Return an intrinsic that joins eight values, `width` apart, in three halvings; the first becomes it."""

    @intrinsic(prefer_literal=True)
    def join_eight(context, values, k, width):
        step = width.literal_value * size

        def codegen(ctx, builder, signature, args):
            places = [
                builder.gep(
                    _pointer(
                        builder, builder.add(args[0], ir.Constant(ir.IntType(64), row * step)), llvm_type
                    ),
                    [args[1]],
                    inbounds=True,
                )
                for row in range(8)
            ]
            rows = [builder.load(place) for place in places]
            while len(rows) > 1:
                half = len(rows) // 2
                rows = [emit(builder, *pair) for pair in zip(rows[:half], rows[half:])]
            builder.store(rows[0], places[0])
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64, width), codegen

    return join_eight


def _folding_row(emit, floating, llvm_type):
    """Return an intrinsic that folds `COLUMNS` values at an address to one, in vectors of eight."""

    @intrinsic
    def fold_row(context, values):
        def codegen(ctx, builder, signature, args):
            vector = ir.VectorType(llvm_type, _LANES)
            first = _pointer(builder, args[0], vector)
            places = [builder.gep(first, [ir.Constant(ir.IntType(64), k)]) for k in range(COLUMNS // _LANES)]
            found = [builder.load(place, align=floating.bitwidth // 8) for place in places]
            while len(found) > 1:
                half = len(found) // 2
                found = [emit(builder, *pair) for pair in zip(found[:half], found[half:])]
            whole, width = found[0], _LANES
            while width > 1:
                width //= 2
                halves = [
                    builder.shuffle_vector(
                        whole,
                        ir.Constant(whole.type, ir.Undefined),
                        ir.Constant(ir.VectorType(ir.IntType(32), width), [*range(start, start + width)]),
                    )
                    for start in (0, width)
                ]
                whole = emit(builder, *halves)
            return builder.extract_element(whole, ir.Constant(ir.IntType(32), 0))

        return floating(types.int64), codegen

    return fold_row


def _folding(called, emit, load, store, size, full):
    """Return ``fold(values, n)``: it reduces n values from an address on, which it uses up, to one.

    `called` is its name, see `part`. So many values as `full` says go faster, which takes longer to compile;
    the bits are the same.
    """
    join = _joining(emit)
    join_eight = _joining_eight(emit, {4: ir.FloatType(), 8: ir.DoubleType()}[size], size)

    @part(called=f"{called}_halved")
    def halved(values, n):
        while n > 1:
            half = 1
            while 2 * half < n:
                half *= 2
            upper = values + half * size
            for k in range(n - half):
                store(values, k, join(load(values, k), load(upper, k)))
            n = half
        return load(values, 0)

    if full == COLUMNS:
        whole = _folding_row(
            emit, *{4: (types.float32, ir.FloatType()), 8: (types.float64, ir.DoubleType())}[size]
        )

        @part(called=called)
        def fold(values, n):
            return whole(values) if n == COLUMNS else halved(values, n)

    else:

        @part(called=called)
        def fold(values, n):
            if n == _TILE:
                for k in range(512):
                    join_eight(values, k, 512)
                for k in range(64):
                    join_eight(values, k, 64)
                for k in range(8):
                    join_eight(values, k, 8)
                n = 8
            return halved(values, n)

    return fold


def _folding_all(called, join, load, store):
    """Return ``fold(values, rows, columns)``: it folds each row of a matrix that lies at an address.

    It uses up the values. A row's result becomes its first one.
    """

    @part(called=called)
    def fold(values, rows, columns):
        n = columns
        while n > 1:
            half = 1
            while 2 * half < n:
                half *= 2
            for row in range(0, rows * columns, columns):
                for k in range(row, row + n - half):
                    store(values, k, join(load(values, k), load(values, k + half)))
            n = half

    return fold


_JOINS = {
    "sum": lambda builder, a, b: builder.fadd(a, b),
    "max": lambda builder, a, b: _called("maximum", builder, a, b),
    "min": lambda builder, a, b: _called("minimum", builder, a, b),
}


def _foldings(load, store, size, full):
    """Return the folds of sums, maxima and minima."""
    of = f"{'row_' if full == COLUMNS else ''}{{}}_float{8 * size}"
    return [_folding(f"fold_{of.format(op)}", emit, load, store, size, full) for op, emit in _JOINS.items()]


fold_sum_float32, fold_max_float32, fold_min_float32 = _foldings(float32_at, put_float32, 4, _TILE)
fold_sum_float64, fold_max_float64, fold_min_float64 = _foldings(float64_at, put_float64, 8, _TILE)
# Those of the tiles of rows, see nbopt_backends.meaning.slices.
fold_row_sum_float32, fold_row_max_float32, fold_row_min_float32 = _foldings(
    float32_at, put_float32, 4, COLUMNS
)
fold_row_sum_float64, fold_row_max_float64, fold_row_min_float64 = _foldings(
    float64_at, put_float64, 8, COLUMNS
)
fold_rows_sum_float32, fold_rows_max_float32, fold_rows_min_float32 = (
    _folding_all(f"fold_rows_{op}_float32", _joining(emit), float32_at, put_float32)
    for op, emit in _JOINS.items()
)
fold_rows_sum_float64, fold_rows_max_float64, fold_rows_min_float64 = (
    _folding_all(f"fold_rows_{op}_float64", _joining(emit), float64_at, put_float64)
    for op, emit in _JOINS.items()
)


__all__ = [name for name in globals() if not name.startswith("_")]
