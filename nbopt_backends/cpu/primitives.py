"""What generated CPU kernels are made of: loads, stores and operations as LLVM sees them.

Memory is reached by address: a table gives the address of each slot of each tensor as an int64. Loads and
stores tell LLVM, by alias metadata, that different slots don't overlap (the layout was checked for it), so
loops vectorise without run-time checks.
"""

import math
from functools import partial
from types import FunctionType

import numpy as np
from llvmlite import ir
from numba import float32, float64, int16, int64, njit, types  # noqa: F401  (kernels use them all)
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from nbopt_backends.cpu.pipeline import KernelCompiler
from nbopt_backends.lowering import formulas as scalar
from nbopt_backends.meaning import tree, xoroshiro
from nbopt_backends.meaning.slices import COLUMNS

# ruff: noqa: F821  (the names of `scalar`'s formulas, which are compiled below)

# Without the wrappers for Python and C, which take time to compile.
_part = partial(
    njit,
    error_model="numpy",
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    pipeline_class=KernelCompiler,
)


def part(function=None, called=None, **options):
    """Compile a function that only compiled code calls.

    With ``forceinline=True`` LLVM puts it into its callers. Numba's own inlining (``inline="always"``) would
    type it anew at each call.

    Parameters
    ----------
    function : function
    called : str, optional
        A name that no other function of the module has. A function that is made inside another one needs it:
        a kernel on disk brings copies of what it calls, and the linker knows these by name and by a number
        that counts anew in each process. Another function of that name would be run in its place.
    **options
        Those of `numba.njit`.
    """
    if function is None:
        return partial(part, called=called, **options)
    if called is not None:
        function.__qualname__ = called
    elif "<locals>" in function.__qualname__:
        raise TypeError(
            f"{function.__qualname__} is made inside another function and needs a name of its own"
        )
    return _part(**options)(function)


_SCOPES = 16  # slots with alias metadata; the rest of a very long expression does without


def _pointer(builder, address, ty):
    return builder.inttoptr(address, ty.as_pointer())


def _note_alias(builder, instruction, slot):
    """Attach metadata: this access belongs to `slot` and touches no other slot's memory."""
    if not 0 <= slot < _SCOPES:
        return
    module = builder.module
    domain = module.add_metadata(["nbopt"])
    scopes = [module.add_metadata([f"slot {index}", domain]) for index in range(_SCOPES)]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[slot]]))
    instruction.set_metadata(
        "noalias", module.add_metadata([scope for index, scope in enumerate(scopes) if index != slot])
    )


def _memory_access(element, llvm_type, loaded=None, stored=None):
    """Return the load and the store intrinsic of one element type.

    Parameters
    ----------
    element : numba type
        What the load gives and the store takes.
    llvm_type : llvmlite.ir.Type
        What is in memory.
    loaded, stored : callable, optional
        Emit the conversion from and to memory, given the builder and a value; exact.
    """

    @intrinsic(prefer_literal=True)
    def load(context, address, index, slot):
        number = slot.literal_value

        def codegen(ctx, builder, signature, args):
            value = builder.load(builder.gep(_pointer(builder, args[0], llvm_type), [args[1]], inbounds=True))
            _note_alias(builder, value, number)
            return loaded(builder, value) if loaded else value

        return element(types.int64, types.int64, slot), codegen

    @intrinsic(prefer_literal=True)
    def store(context, address, index, slot, value):
        number = slot.literal_value

        def codegen(ctx, builder, signature, args):
            value = stored(builder, args[3]) if stored else args[3]
            done = builder.store(
                value, builder.gep(_pointer(builder, args[0], llvm_type), [args[1]], inbounds=True)
            )
            _note_alias(builder, done, number)
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64, slot, element), codegen

    return load, store


_I16, _I32 = ir.IntType(16), ir.IntType(32)
load_float32, store_float32 = _memory_access(types.float32, ir.FloatType())
load_float64, store_float64 = _memory_access(types.float64, ir.DoubleType())
load_int64, store_int64 = _memory_access(types.int64, ir.IntType(64))
load_int32, store_int32 = _memory_access(types.int32, ir.IntType(32))
load_int16, store_int16 = _memory_access(types.int16, _I16)


def _plain_access(element):
    """Return the load and the store intrinsic of one element type for memory that is no slot's.

    Their index is no literal: Numba types one call, and not each index anew.
    """
    llvm_type = cpu_target.target_context.get_value_type(element)

    def place(builder, args):
        return builder.gep(_pointer(builder, args[0], llvm_type), [args[1]], inbounds=True)

    @intrinsic
    def load(context, address, index):
        def codegen(ctx, builder, signature, args):
            return builder.load(place(builder, args))

        return element(types.int64, types.int64), codegen

    @intrinsic
    def store(context, address, index, value):
        def codegen(ctx, builder, signature, args):
            builder.store(args[2], place(builder, args))
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64, element), codegen

    return load, store


float32_at, put_float32 = _plain_access(types.float32)
float64_at, put_float64 = _plain_access(types.float64)
int64_at, put_int64 = _plain_access(types.int64)
int32_at, put_int32 = _plain_access(types.int32)
int16_at, put_int16 = _plain_access(types.int16)

# bfloat16 is the upper half of a float32. What is stored was rounded before, so the lower half is 0.
load_bfloat16, store_bfloat16 = _memory_access(
    types.float32,
    _I16,
    lambda builder, value: builder.bitcast(builder.shl(builder.zext(value, _I32), _I32(16)), ir.FloatType()),
    lambda builder, value: builder.trunc(builder.lshr(builder.bitcast(value, _I32), _I32(16)), _I16),
)

# The random words of an assignment, read in slices. Unsigned, so zero-extended.
load_word16, _ = _memory_access(types.int64, _I16, lambda builder, value: builder.zext(value, ir.IntType(64)))
load_word32, _ = _memory_access(types.int64, _I32, lambda builder, value: builder.zext(value, ir.IntType(64)))
load_word64 = load_int64


@intrinsic(prefer_literal=True)
def prefetch(context, address, size):
    """Ask for `size` bytes from an address on, 64 at a time, to be brought into the cache.

    Any address will do.
    """
    lines = -(-size.literal_value // 64)

    def codegen(ctx, builder, signature, args):
        word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        )
        for line in range(lines):
            here = builder.inttoptr(builder.add(args[0], ir.Constant(ir.IntType(64), 64 * line)), byte)
            builder.call(function, [here, ir.Constant(word, 0), ir.Constant(word, 3), ir.Constant(word, 1)])
        return ctx.get_dummy_value()

    return types.void(types.int64, size), codegen


@intrinsic
def address(context, row, slot, offset, item_size):
    """Return the address of element `offset` of a slot; `row` is the address of the tensor's row."""

    def codegen(ctx, builder, signature, args):
        row, slot, offset, item_size = args
        place = builder.gep(_pointer(builder, row, ir.IntType(64)), [slot], inbounds=True)
        return builder.add(builder.load(place), builder.mul(offset, item_size))

    return types.int64(*[types.int64] * 4), codegen


def _called(name, builder, *args):
    """Emit a call of the overloaded LLVM function ``llvm.<name>`` on one floating type."""
    ty = args[0].type
    function = builder.module.declare_intrinsic(f"llvm.{name}", [ty], ir.FunctionType(ty, [ty] * len(args)))
    return builder.call(function, args)


def _llvm_function(name, arity):
    """Return an intrinsic that calls ``llvm.<name>``."""

    def codegen(ctx, builder, signature, args):
        return _called(name, builder, *args)

    if arity == 1:

        @intrinsic
        def call(context, a):
            return a(a), codegen

    else:

        @intrinsic
        def call(context, a, b):
            return (a(a, a), codegen) if a == b else None

    return call


# llvm.maximum is IEEE 754's maximum: NaN if either is NaN, -0 below +0.
maximum = _llvm_function("maximum", 2)
minimum = _llvm_function("minimum", 2)
absolute = _llvm_function("fabs", 1)
sqrt = _llvm_function("sqrt", 1)
rint = _llvm_function("rint", 1)
exp, log, tanh, exp2, log2 = math.exp, math.log, math.tanh, np.exp2, np.log2
# Called as an attribute of numpy, Numba makes an error that it drops, whose text has the file's name: which
# fails in an ASCII locale.
empty = np.empty


@part(forceinline=True)
def power(a, b):
    """Return a to the power b."""
    return a**b


def _bit_casts(floating, integer, llvm_float, llvm_integer):
    @intrinsic
    def bits(context, value):
        def codegen(ctx, builder, signature, args):
            found = builder.bitcast(args[0], llvm_integer)
            return found if llvm_integer.width == 64 else builder.zext(found, ir.IntType(64))

        return types.int64(floating), codegen

    @intrinsic
    def from_bits(context, value):
        def codegen(ctx, builder, signature, args):
            found = args[0] if llvm_integer.width == 64 else builder.trunc(args[0], llvm_integer)
            return builder.bitcast(found, llvm_float)

        return floating(types.int64), codegen

    return bits, from_bits


bits_float32, from_bits_float32 = _bit_casts(types.float32, types.int32, ir.FloatType(), ir.IntType(32))
bits_float64, from_bits_float64 = _bit_casts(types.float64, types.int64, ir.DoubleType(), ir.IntType(64))


def _compiled(function):
    """Compile a formula of `nbopt_backends.lowering.formulas` with this module's names."""
    return part(forceinline=True)(FunctionType(function.__code__, globals(), function.__name__))


# In the order of the file, so that formulas find those that they call.
for _name, _function in list(vars(scalar).items()):
    if isinstance(_function, FunctionType):
        globals()[_name] = _compiled(_function)


def _has_half_instructions():
    return "+f16c" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


if _has_half_instructions():
    load_float16, store_float16 = _memory_access(
        types.float32,
        _I16,
        lambda builder, value: builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType()),
        lambda builder, value: builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16),
    )

    @intrinsic
    def _through_half(context, x):
        def codegen(ctx, builder, signature, args):
            return builder.fpext(builder.fptrunc(args[0], ir.HalfType()), ir.FloatType())

        return types.float32(types.float32), codegen

    @part(forceinline=True)
    def nearest_float16_float32(x):
        """Return a float32 rounded to nearest even in float16. NaN is canonical."""
        return _through_half(x) if x == x else from_bits_float32(0x7FC00000)

else:
    # LLVM would call library functions that Numba doesn't have.
    nearest_float16_float32 = nearest_float16_float32_by_integers

    @part(forceinline=True)
    def load_float16(address, index, slot):
        """Return element `index` of float16 memory as a float32."""
        return from_half_bits_by_integers(int64(load_int16(address, index, slot)) & 0xFFFF)

    @part(forceinline=True)
    def store_float16(address, index, slot, value):
        """Store a float32 that float16 can hold."""
        store_int16(address, index, slot, int16(half_bits_by_integers(value)))


# --- random bits: see nbopt_backends.meaning.xoroshiro ---


_mix = part(forceinline=True)(xoroshiro.mix)
_absorb = part(forceinline=True)(
    FunctionType(xoroshiro.absorb.__code__, {**vars(xoroshiro), "mix": _mix}, "absorb")
)
_keys = part(FunctionType(xoroshiro.keys.__code__, {**vars(xoroshiro), "absorb": _absorb}, "keys"))
_seeded = part(forceinline=True)(
    FunctionType(xoroshiro.seeded.__code__, {**vars(xoroshiro), "mix": _mix}, "seeded")
)
_advanced = part(forceinline=True)(xoroshiro.advanced)
_LANES, _BLOCK, _U64 = xoroshiro.LANES, xoroshiro.BLOCK, np.uint64


@part
def draw(lanes, random, assignment, place, fresh, draws):
    """Fill `lanes` with the random words of the 256 elements from `place` on.

    Parameters
    ----------
    lanes : numpy.ndarray
        uint64[2 + draws, LANES]: the state, modified, and the words, written.
    random : int64
        Address of int64[2]: seed and update count.
    assignment : int64
        The number of the assignment in its program.
    place : int64
        The number of the first element: blocks before it times BLOCK, plus its position in its block; a
        multiple of 256.
    fresh : bool
        Whether the state is of another place than the one before.
    draws : int64
        How many words each lane gives: 1, 2 or 4 for slices of 16, 32 or 64 bits.
    """
    if fresh or place % _BLOCK == 0:
        seed, update = _U64(load_int64(random, 0, -1)), _U64(load_int64(random, 1, -1))
        key_0, key_1 = _keys(seed, update, _U64(assignment))
        first = _U64((place // _BLOCK) * _LANES)
        for lane in range(_LANES):
            lanes[0, lane], lanes[1, lane] = _seeded(key_0, key_1, first + _U64(lane))
        for _ in range((place % _BLOCK) // 256 * draws):
            for lane in range(_LANES):
                _, lanes[0, lane], lanes[1, lane] = _advanced(lanes[0, lane], lanes[1, lane])
    for number in range(2, 2 + draws):
        for lane in range(_LANES):
            lanes[number, lane], lanes[0, lane], lanes[1, lane] = _advanced(lanes[0, lane], lanes[1, lane])


# --- slices: see nbopt_backends.meaning.slices; a walk is what nbopt_backends.cpu.slices makes ---


@part
def row_offset(walk, slot, row):
    """Return where the first column of a row is in a slot that varies with some of the axes."""
    n = load_int64(walk, 1, -1)
    first = load_int64(walk, 3, -1) + slot * n
    if n == 0 or load_int64(walk, first, -1) < 0:
        return row  # each row has a value of its own
    found = 0
    for group in range(n - 1, -1, -1):
        length = load_int64(walk, 5 + group, -1)
        found += row % length * load_int64(walk, first + group, -1)
        row //= length
    return found


@part
def last_group(walk):
    """Return how many rows lie next to each other along the last of the groups of axes."""
    n = load_int64(walk, 1, -1)
    return load_int64(walk, 4 + n, -1) if n > 0 else 1


@part
def band_address(walk, fold, row, size):
    """Return the address of the results of the band of a row, given the bytes of one band's results."""
    last, field = last_group(walk), load_int64(walk, 4, -1) + 2 * fold
    band = load_int64(walk, field + 1, -1)
    return load_int64(walk, field, -1) + (row // last * -(-last // band) + row % last // band) * size


@part
def band_begins(walk, fold, row):
    """Return whether a row is the first one of its band."""
    return row % last_group(walk) % load_int64(walk, load_int64(walk, 4, -1) + 2 * fold + 1, -1) == 0


# --- reductions: see nbopt_backends.meaning.tree ---

_TILE = tree.TILE


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

        @part(called=called)
        def fold(values, n):
            if n == COLUMNS:
                for k in range(16):
                    join_eight(values, k, 16)
                for k in range(2):
                    join_eight(values, k, 2)
                n = 2
            return halved(values, n)

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


def _call(arity):
    """Return an intrinsic that calls a compiled function by its address, with so many int64."""
    word = ir.IntType(64)

    def codegen(ctx, builder, signature, args):
        builder.call(_pointer(builder, args[0], ir.FunctionType(ir.VoidType(), [word] * arity)), args[1:])
        return ctx.get_dummy_value()

    return types.void(*[types.int64] * (arity + 1)), codegen


@intrinsic
def call_kernel(context, kernel, row, offset, n, place, scalars, random, sums):
    """Call a compiled kernel by its address."""
    return _call(7)


@intrinsic
def call_stage(context, function, argument, entry, step):
    """Call what a stage does, by its address."""
    return _call(3)


@intrinsic
def call_scalars(context, function, row, numbers, taken):
    """Call compiled arithmetic on numbers by its address."""
    return _call(3)


__all__ = [name for name in globals() if not name.startswith("_")]
