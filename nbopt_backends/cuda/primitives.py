"""What generated CUDA kernels are made of: operations as NVVM sees them, and `memory`.

Every arithmetic operation is one of NVVM's that rounds to nearest by itself, so that neither NVVM nor ptxas
contracts a product and a sum into one fma.
"""

from math import inf  # noqa: F401  (kernels use it)
from types import FunctionType

from llvmlite import ir

from nbopt_backends.cuda.helpers import HELPERS, Spelled, respelled
from nbopt_backends.cuda.memory import *  # noqa: F403
from nbopt_backends.cuda.toolchain import ConfigStack, cgutils, cuda, intrinsic, types
from nbopt_backends.lowering import formulas as scalar
from nbopt_backends.meaning import xoroshiro

float32, float64, int64, uint64 = types.float32, types.float64, types.int64, types.uint64
boolean = types.boolean
_FLOAT, _DOUBLE, _WORD = ir.FloatType(), ir.DoubleType(), ir.IntType(64)
_I32 = ir.IntType(32)
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


@intrinsic
def apart(context, number):
    """Return an int64, of which the compiler does not know that it is the same.

    What is loaded at such a place is loaded anew, and the registers of a first load need not be kept.
    """

    def codegen(ctx, builder, signature, args):
        kind = ir.FunctionType(_WORD, [_WORD])
        return builder.call(ir.InlineAsm(kind, "mov.b64 $0, $1;", "=l,l", side_effect=True), args)

    return types.int64(types.int64), codegen


@intrinsic
def swift_nearest_bfloat16_float32(context, x):
    """Return a float32 rounded to nearest even in bfloat16; some NaN for NaN."""

    def codegen(ctx, builder, signature, args):
        if ConfigStack().top().compute_capability >= (8, 0):
            kind = ir.FunctionType(_I32, [_FLOAT])
            # Of two numbers, of which the first one is in the upper half.
            call = ir.InlineAsm(kind, "cvt.rn.bf16x2.f32 $0, $1, 0f00000000;", "=r,f")
            return builder.bitcast(builder.call(call, args), _FLOAT)
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.add(builder.add(bits, _I32(0x7FFF)), odd)
        return builder.bitcast(builder.and_(rounded, _I32(0xFFFF0000)), _FLOAT)

    return float32(float32), codegen


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
                for shift in range(0, 64, bits):
                    # By way of 32 bits, of which a slice takes one instruction.
                    part = builder.lshr(word, _WORD(shift // 32 * 32))
                    if bits < 64:
                        part = builder.lshr(builder.trunc(part, _I32), _I32(shift % 32))
                        part = builder.zext(builder.and_(part, _I32(2**bits - 1)), _WORD)
                    found.append(part)
            return ctx.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(int64, per_word * len(words))(types.StarArgTuple(words)), codegen

    return slices


slices16, slices32, slices64 = _slices(16), _slices(32), _slices(64)

__all__ = [name for name in globals() if not name.startswith("_")]
