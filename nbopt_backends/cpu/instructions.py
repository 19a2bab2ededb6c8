"""Loads, stores, operations and calls of CPU kernels, as LLVM sees them.

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
    kind, signature = ty, ir.FunctionType(ty, [ty] * len(args))
    if isinstance(ty, ir.VectorType):  # llvmlite knows no names of those
        name, kind = f"{name}.v{ty.count}", ty.element
        called = f"llvm.{name}{kind.intrinsic_name}"
        function = builder.module.globals.get(called) or ir.Function(builder.module, signature, called)
    else:
        function = builder.module.declare_intrinsic(f"llvm.{name}", [kind], signature)
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
def call_scalars(context, function, row, numbers, taken):
    """Call compiled arithmetic on numbers by its address."""
    return _call(3)


__all__ = [name for name in globals() if not name.startswith("_")]
