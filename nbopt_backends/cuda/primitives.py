"""What generated CUDA kernels are made of: loads, stores and operations as NVVM sees them.

Memory is reached by address: a table gives the address of each slot of each tensor as an int64. Every
arithmetic operation is one of NVVM's that rounds to nearest by itself, so that neither NVVM nor ptxas
contracts a product and a sum into one fma.
"""

from math import inf  # noqa: F401  (kernels use it)
from types import FunctionType
from typing import NamedTuple

from llvmlite import ir

from nbopt_backends.cuda.helpers import HELPERS, Spelled, respelled
from nbopt_backends.cuda.toolchain import ConfigStack, cgutils, cuda, intrinsic, types
from nbopt_backends.lowering import formulas as scalar
from nbopt_backends.meaning import xoroshiro

float32, float64, int64, uint64 = types.float32, types.float64, types.int64, types.uint64
_FLOAT, _DOUBLE, _WORD = ir.FloatType(), ir.DoubleType(), ir.IntType(64)
_I16, _I32 = ir.IntType(16), ir.IntType(32)
_GLOBAL = 1  # NVVM's address space of device memory
_SUFFIX = {float32: "f", float64: "d"}

#: Decorates a helper of generated text.
inline = cuda.jit(device=True, inline="always")


def once(*results):
    """Decorate a function of numbers that is called many times in a kernel.

    It returns a tuple of these types. Numba sees it once, and NVVM puts it where it is called. ``inline``
    would have Numba compile every copy of it, which takes ten times as long where a formula is long.
    """
    result = types.Tuple(results)

    def decorate(function):
        # Numba keeps what it has compiled by the code object, and those of two modules can be equal where
        # their settings aren't.
        code = function.__code__.replace(co_name=f"{function.__module__}_{function.__name__}")
        function = FunctionType(code, function.__globals__, function.__name__)

        @intrinsic
        def call(context, *operands):
            own = result(*operands)

            def codegen(ctx, builder, signature, args):
                flags = ConfigStack().top().copy()
                flags.forceinline = True
                compiled = ctx.compile_subroutine(builder, function, own, flags=flags)
                return ctx.call_internal(
                    builder, compiled.fndesc, own, cgutils.unpack_tuple(builder, args[0])
                )

            return result(types.StarArgTuple(operands)), codegen

        return call

    return decorate


def _global(builder, address, llvm_type, index):
    """Return the pointer to element `index` of global memory from `address` on."""
    pointer = builder.inttoptr(address, ir.PointerType(llvm_type, _GLOBAL))
    return builder.gep(pointer, [index], inbounds=True)


class _Storage(NamedTuple):
    """How elements of one dtype lie in memory.

    Attributes
    ----------
    element : numba type
        What a load gives and a store takes.
    size : int
        In bytes.
    memory : llvmlite.ir.Type
        What is in memory.
    widened, narrowed : callable
        Emit the conversion from and to memory, given the builder and a value; exact.
    """

    element: object
    size: int
    memory: object
    widened: object = lambda builder, value: value
    narrowed: object = lambda builder, value: value


def _from_bfloat16(builder, value):
    return builder.bitcast(builder.shl(builder.zext(value, _I32), _I32(16)), _FLOAT)


def _to_bfloat16(builder, value):
    return builder.trunc(builder.lshr(builder.bitcast(value, _I32), _I32(16)), _I16)


def _from_float16(builder, value):
    return builder.fpext(builder.bitcast(value, ir.HalfType()), _FLOAT)


def _to_float16(builder, value):
    narrow = builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
    # PTX has a NaN of its own.
    return builder.select(builder.fcmp_unordered("uno", value, value), _I16(0x7E00), narrow)


_FLOAT32, _FLOAT64 = _Storage(float32, 4, _FLOAT), _Storage(float64, 8, _DOUBLE)
_BFLOAT16 = _Storage(float32, 2, _I16, _from_bfloat16, _to_bfloat16)
_FLOAT16 = _Storage(float32, 2, _I16, _from_float16, _to_float16)


def _memory_access(storage):
    """Return the load and the store intrinsic of one element.

    The slot is for targets that tell slots apart.
    """

    @intrinsic
    def load(context, address, index, slot):
        def codegen(ctx, builder, signature, args):
            index = builder.sext(args[1], _WORD) if args[1].type.width < 64 else args[1]
            return storage.widened(builder, builder.load(_global(builder, args[0], storage.memory, index)))

        return storage.element(types.int64, index, slot), codegen

    @intrinsic
    def store(context, address, index, slot, value):
        def codegen(ctx, builder, signature, args):
            index = builder.sext(args[1], _WORD) if args[1].type.width < 64 else args[1]
            builder.store(
                storage.narrowed(builder, args[3]), _global(builder, args[0], storage.memory, index)
            )
            return ctx.get_dummy_value()

        return types.void(types.int64, index, slot, storage.element), codegen

    return load, store


def _vector_access(storage, count):
    """Return the load and the store intrinsic of `count` elements, in accesses of 16 bytes.

    The elements start at a multiple of 16 bytes. Two more are for elements that are not aligned, or of which
    only the first `left` are there: for others the load gives the last one that is, and the store does
    nothing.
    """
    per_access = 16 // storage.size
    halves = storage.size == 2  # two elements in each of four 32-bit words
    vector = ir.VectorType(_I32 if halves else storage.memory, 4 if halves else per_access)
    parts = range(count // per_access)

    def pointer(builder, args, part):
        first = builder.add(args[1], ir.Constant(_WORD, part * per_access))
        return builder.bitcast(
            _global(builder, args[0], storage.memory, first), ir.PointerType(vector, _GLOBAL)
        )

    def taken(builder, whole, k):
        if not halves:
            return builder.extract_element(whole, _I32(k))
        word = builder.extract_element(whole, _I32(k // 2))
        return builder.trunc(builder.lshr(word, _I32(16)) if k % 2 else word, _I16)

    def joined(builder, values):
        if halves:
            wide = [builder.zext(value, _I32) for value in values]
            values = [
                builder.or_(low, builder.shl(high, _I32(16))) for low, high in zip(wide[::2], wide[1::2])
            ]
        whole = ir.Constant(vector, ir.Undefined)
        for k, value in enumerate(values):
            whole = builder.insert_element(whole, value, _I32(k))
        return whole

    @intrinsic
    def load(context, address, index):
        def codegen(ctx, builder, signature, args):
            loaded = [builder.load(pointer(builder, args, part), align=16) for part in parts]
            values = [
                storage.widened(builder, taken(builder, whole, k))
                for whole in loaded
                for k in range(per_access)
            ]
            return ctx.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(storage.element, count)(types.int64, types.int64), codegen

    @intrinsic
    def store(context, address, index, *values):
        def codegen(ctx, builder, signature, args):
            values = [storage.narrowed(builder, builder.extract_value(args[2], k)) for k in range(count)]
            for part in parts:
                whole = joined(builder, values[part * per_access : (part + 1) * per_access])
                builder.store(whole, pointer(builder, args, part), align=16)
            return ctx.get_dummy_value()

        return types.void(types.int64, types.int64, types.StarArgUniTuple(storage.element, count)), codegen

    @intrinsic
    def load_first(context, address, index, left):
        def codegen(ctx, builder, signature, args):
            last = builder.sub(args[2], _WORD(1))
            values = []
            for k in range(count):
                there = builder.select(builder.icmp_signed("<", _WORD(k), last), _WORD(k), last)
                pointer = _global(builder, args[0], storage.memory, builder.add(args[1], there))
                values.append(storage.widened(builder, builder.load(pointer)))
            return ctx.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(storage.element, count)(types.int64, types.int64, types.int64), codegen

    @intrinsic
    def store_first(context, address, index, left, *values):
        def codegen(ctx, builder, signature, args):
            for k in range(count):
                with builder.if_then(builder.icmp_signed("<", _WORD(k), args[2])):
                    pointer = _global(builder, args[0], storage.memory, builder.add(args[1], _WORD(k)))
                    builder.store(storage.narrowed(builder, builder.extract_value(args[3], k)), pointer)
            return ctx.get_dummy_value()

        return (
            types.void(types.int64, types.int64, types.int64, types.StarArgUniTuple(storage.element, count)),
            codegen,
        )

    return load, store, load_first, store_first


load_float32, store_float32 = _memory_access(_FLOAT32)
load_float64, store_float64 = _memory_access(_FLOAT64)
load_float16, store_float16 = _memory_access(_FLOAT16)
load_bfloat16, store_bfloat16 = _memory_access(_BFLOAT16)
load_int64, store_int64 = _memory_access(_Storage(int64, 8, _WORD))
load_uint64, _ = _memory_access(_Storage(uint64, 8, _WORD))
load_float64x2, store_float64x2, load_first_float64x2, store_first_float64x2 = _vector_access(_FLOAT64, 2)
load_float64x4, store_float64x4, load_first_float64x4, store_first_float64x4 = _vector_access(_FLOAT64, 4)
load_float32x4, store_float32x4, load_first_float32x4, store_first_float32x4 = _vector_access(_FLOAT32, 4)
# As many as 16 bytes hold of the narrowest storage of a kernel.
load_float64x8, store_float64x8, load_first_float64x8, store_first_float64x8 = _vector_access(_FLOAT64, 8)
load_float32x8, store_float32x8, load_first_float32x8, store_first_float32x8 = _vector_access(_FLOAT32, 8)
load_float16x8, store_float16x8, load_first_float16x8, store_first_float16x8 = _vector_access(_FLOAT16, 8)
load_bfloat16x8, store_bfloat16x8, load_first_bfloat16x8, store_first_bfloat16x8 = _vector_access(
    _BFLOAT16, 8
)


@intrinsic
def counted_up(context, address):
    """Add 1 to an int64, and return what it was before.

    What this thread's block has written until its last barrier is seen by whoever counts later, and what
    those before have written is seen here.
    """

    def codegen(ctx, builder, signature, args):
        kind = ir.FunctionType(_WORD, [_WORD, _WORD])
        text = "atom.acq_rel.gpu.global.add.u64 $0, [$1], $2;"
        call = ir.InlineAsm(kind, text, "=l,l,l,~{memory}", side_effect=True)
        return builder.call(call, [args[0], _WORD(1)])

    return types.int64(types.int64), codegen


def _called(builder, name, args):
    """Emit a call of an NVVM or libdevice function whose operands and result have one type."""
    function_type = ir.FunctionType(args[0].type, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
    return builder.call(function, args)


def _function(names, arity):
    """Return an intrinsic that calls one function for each floating type: `names` has it by the type."""

    def typed(*operands):
        kind = operands[0]
        if kind not in names or any(operand != kind for operand in operands):
            return None

        def codegen(ctx, builder, signature, args):
            return _called(builder, names[kind], args)

        return kind(*operands), codegen

    if arity == 1:

        @intrinsic
        def call(context, a):
            return typed(a)

    else:

        @intrinsic
        def call(context, a, b):
            return typed(a, b)

    return call


def _rounded(name, integer):
    """Return an arithmetic intrinsic of two operands.

    It is NVVM's rounded one for floating types, and `integer` for int64.
    """

    @intrinsic
    def call(context, a, b):
        if a in _SUFFIX and a == b:

            def codegen(ctx, builder, signature, args):
                left, right = args
                if name == "sub":
                    # -b, which is exact, so the sum rounds as the difference does. (NVVM's LLVM has no fneg
                    # instruction.)
                    right = builder.fsub(ir.Constant(right.type, -0.0), right)
                return _called(
                    builder, f"llvm.nvvm.{'add' if name == 'sub' else name}.rn.{_SUFFIX[a]}", [left, right]
                )

            return a(a, a), codegen
        if isinstance(a, types.Integer) and isinstance(b, types.Integer) and integer:
            return int64(int64, int64), lambda ctx, builder, signature, args: getattr(builder, integer)(*args)
        return None

    return call


add, subtract, multiply, divide = (
    _rounded("add", "add"),
    _rounded("sub", "sub"),
    _rounded("mul", "mul"),
    _rounded("div", None),
)
sqrt = _function({kind: f"llvm.nvvm.sqrt.rn.{suffix}" for kind, suffix in _SUFFIX.items()}, 1)
absolute = _function({float32: "llvm.nvvm.fabs.f", float64: "llvm.nvvm.fabs.d"}, 1)


def _libdevice(name, arity=1):
    return _function({float32: f"__nv_{name}f", float64: f"__nv_{name}"}, arity)


exp, exp2, log, log2, tanh, rint = map(_libdevice, ("exp", "exp2", "log", "log2", "tanh", "rint"))
power = _libdevice("pow", 2)


def _extreme(name):
    """Return maximum or minimum.

    PTX's max and min order -0 below +0 and drop NaN (the variant that keeps it needs compute capability 8.0,
    and there is none for float64).
    """

    @intrinsic
    def call(context, a, b):
        if a not in _SUFFIX or a != b:
            return None

        def codegen(ctx, builder, signature, args):
            found = _called(builder, f"llvm.nvvm.{name}.{_SUFFIX[a]}", args)
            nan = _called(builder, f"llvm.nvvm.add.rn.{_SUFFIX[a]}", args)
            return builder.select(builder.fcmp_unordered("uno", *args), nan, found)

        return a(a, a), codegen

    return call


maximum, minimum = _extreme("fmax"), _extreme("fmin")


def _bit_casts(floating, llvm_float, llvm_integer):
    @intrinsic
    def bits(context, value):
        def codegen(ctx, builder, signature, args):
            found = builder.bitcast(args[0], llvm_integer)
            return found if llvm_integer.width == 64 else builder.zext(found, _WORD)

        return types.int64(floating), codegen

    @intrinsic
    def from_bits(context, value):
        def codegen(ctx, builder, signature, args):
            found = args[0] if llvm_integer.width == 64 else builder.trunc(args[0], llvm_integer)
            return builder.bitcast(found, llvm_float)

        return floating(types.int64), codegen

    return bits, from_bits


bits_float32, from_bits_float32 = _bit_casts(float32, _FLOAT, ir.IntType(32))
bits_float64, from_bits_float64 = _bit_casts(float64, _DOUBLE, _WORD)


def _compiled(function):
    """Compile a formula with this module's names and operations."""
    return inline(respelled(function, Spelled(), globals()))


for _name, _helper in HELPERS.items():
    globals()[_name] = inline(FunctionType(_helper.__code__, globals(), _name))

# In the order of the file, so that formulas find those that they call.
for _name, _formula in list(vars(scalar).items()):
    if isinstance(_formula, FunctionType):
        globals()[_name] = _compiled(_formula)


@intrinsic
def _through_half(context, x):
    def codegen(ctx, builder, signature, args):
        return builder.fpext(builder.fptrunc(args[0], ir.HalfType()), _FLOAT)

    return float32(float32), codegen


@inline
def nearest_float16_float32(x):
    """Return a float32 rounded to nearest even in float16. NaN is canonical."""
    return _through_half(x) if x == x else from_bits_float32(0x7FC00000)


# --- random bits: see nbopt_backends.meaning.xoroshiro; integers, so nothing is contracted ---


def _integer(function, **names):
    return FunctionType(function.__code__, {**vars(xoroshiro), **names}, function.__name__)


_mix = inline(_integer(xoroshiro.mix))
_absorb = inline(_integer(xoroshiro.absorb, mix=_mix))
keys = once(uint64, uint64)(_integer(xoroshiro.keys, absorb=_absorb))
seeded = once(uint64, uint64)(_integer(xoroshiro.seeded, mix=_mix))
advanced = once(uint64, uint64, uint64)(_integer(xoroshiro.advanced))


def _slices(bits):
    """Return the intrinsic that takes words apart, into slices of so many bits from low to high.

    Each slice is an int64.
    """
    per_word = 64 // bits

    @intrinsic
    def slices(context, *words):
        def codegen(ctx, builder, signature, args):
            found = []
            for word in cgutils.unpack_tuple(builder, args[0]):
                found += [
                    builder.and_(builder.lshr(word, _WORD(bits * k)), _WORD(2**bits - 1))
                    for k in range(per_word)
                ]
            return ctx.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(int64, per_word * len(words))(types.StarArgTuple(words)), codegen

    return slices


slices16, slices32, slices64 = _slices(16), _slices(32), _slices(64)

__all__ = [name for name in globals() if not name.startswith("_")]
