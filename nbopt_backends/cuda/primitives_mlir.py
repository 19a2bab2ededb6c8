"""What generated CUDA kernels are made of, for numba-cuda-mlir: the twin of `primitives`, and `memory_mlir`.

Every arithmetic operation is a function of libdevice's that rounds to nearest by itself. Variables that get a
value in a branch would live in local memory, so formulas select one of two values instead.
"""

import ast
from math import inf  # noqa: F401  (kernels use it)
from types import FunctionType

from nbopt_backends.cuda.helpers import HELPERS, Spelled, respelled
from nbopt_backends.cuda.memory_mlir import *  # noqa: F403
from nbopt_backends.cuda.memory_mlir import inline, is_nan, number_of, values_of, wide, widened_bfloat16
from nbopt_backends.cuda.toolchain import (
    T,
    arith,
    cuda,  # noqa: F401  (kernels use it)
    func,
    get_or_insert_function,
    intrinsic,
    ir,
    llvm,
    math_dialect,
    types,
)
from nbopt_backends.lowering import formulas as scalar
from nbopt_backends.meaning import xoroshiro

float32, float64, int64, uint64 = types.float32, types.float64, types.int64, types.uint64
boolean = types.boolean
_SUFFIX = {float32: "f", float64: "d"}


def once(*results):
    """Return what decorates a function of numbers that is called many times in a kernel."""
    return inline


@intrinsic
def counted_up(context, address):
    """Add 1 to an int64, and return what it was before: see `primitives`."""

    def codegen(builder, target, args, kwargs):
        found = llvm.inline_asm(
            T.i64(),
            [wide(builder.load_var(args[0])), number_of(1)],
            "atom.acq_rel.gpu.global.add.u64 $0, [$1], $2;",
            "=l,l,l,~{memory}",
            has_side_effects=True,
        )
        builder.store_var(target, found)

    return int64(int64), codegen


# --- operations ---


def _called(builder, name, values):
    """Emit a call of a function of libdevice's whose operands and result have one type."""
    kind = values[0].type
    kinds = ir.FunctionType.get([kind] * len(values), [kind])
    callee = get_or_insert_function(name, kinds, builder.mlir_gpu_module)
    return func.call(result=[kind], callee=callee.name.value, operands_=values)


def _libdevice(names, arity=1):
    """Return an intrinsic that calls one function for each floating type: `names` has it by the type."""

    def typed(*operands):
        kind = operands[0]
        if kind not in names or any(operand != kind for operand in operands):
            return None

        def codegen(builder, target, args, kwargs):
            builder.store_var(target, _called(builder, names[kind], values_of(builder, args)))

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
    """Return an arithmetic intrinsic of two operands: rounded for floating types, `integer` for int64."""

    @intrinsic
    def call(context, a, b):
        if a in _SUFFIX and a == b:

            def codegen(builder, target, args, kwargs):
                left, right = values_of(builder, args)
                if (
                    name == "sub"
                ):  # there is none of float64; -b is exact, so the sum rounds as the difference
                    right = arith.negf(right)
                function = f"__nv_{_SUFFIX[a]}{'add' if name == 'sub' else name}_rn"
                builder.store_var(target, _called(builder, function, [left, right]))

            return a(a, a), codegen
        if isinstance(a, types.Integer) and isinstance(b, types.Integer) and integer:

            def of_integers(builder, target, args, kwargs):
                operands = map(wide, values_of(builder, args))
                builder.store_var(target, getattr(arith, integer)(*operands))

            return int64(int64, int64), of_integers
        return None

    return call


add, subtract, multiply, divide = (
    _rounded("add", "addi"),
    _rounded("sub", "subi"),
    _rounded("mul", "muli"),
    _rounded("div", None),
)
sqrt = _libdevice({float32: "__nv_fsqrt_rn", float64: "__nv_dsqrt_rn"})
exp, exp2, log, log2, tanh, rint = (
    _libdevice({float32: f"__nv_{name}f", float64: f"__nv_{name}"})
    for name in ("exp", "exp2", "log", "log2", "tanh", "rint")
)
power = _libdevice({float32: "__nv_powf", float64: "__nv_pow"}, 2)


@intrinsic
def absolute(context, a):
    """Return the magnitude of a number."""

    def codegen(builder, target, args, kwargs):
        builder.store_var(target, math_dialect.absf(builder.load_var(args[0])))

    return (a(a), codegen) if a in _SUFFIX else None


def _extreme(name):
    """Return maximum or minimum: see `primitives`."""

    @intrinsic
    def call(context, a, b):
        if a not in _SUFFIX or a != b:
            return None

        def codegen(builder, target, args, kwargs):
            operands = values_of(builder, args)
            # They become libdevice's functions, as the formulas' min and max do. A module declares each once.
            found = getattr(arith, name)(*operands)
            nan = _called(builder, f"__nv_{_SUFFIX[a]}add_rn", operands)
            builder.store_var(target, arith.select(is_nan(*operands), nan, found))

        return a(a, a), codegen

    return call


maximum, minimum = _extreme("maxnumf"), _extreme("minnumf")


@intrinsic
def select(context, condition, a, b):
    """Return a if a condition holds, else b: both are floating and of one type, or integers."""
    if isinstance(a, types.Integer) and isinstance(b, types.Integer):
        result = uint64 if uint64 in (a, b) else int64
    elif a in _SUFFIX and a == b:
        result = a
    else:
        return None

    def codegen(builder, target, args, kwargs):
        condition, *both = values_of(builder, args)
        builder.store_var(target, arith.select(condition, *(both if result in _SUFFIX else map(wide, both))))

    return result(types.boolean, result, result), codegen


def _bit_casts(floating, llvm_float, llvm_integer):
    @intrinsic
    def bits(context, value):
        def codegen(builder, target, args, kwargs):
            found = arith.bitcast(llvm_integer(), builder.load_var(args[0]))
            builder.store_var(target, found if floating == float64 else arith.extui(T.i64(), found))

        return int64(floating), codegen

    @intrinsic
    def from_bits(context, value):
        def codegen(builder, target, args, kwargs):
            found = wide(builder.load_var(args[0]))
            found = found if floating == float64 else arith.trunci(llvm_integer(), found)
            builder.store_var(target, arith.bitcast(llvm_float(), found))

        return floating(int64), codegen

    return bits, from_bits


bits_float32, from_bits_float32 = _bit_casts(float32, T.f32, T.i32)
bits_float64, from_bits_float64 = _bit_casts(float64, T.f64, T.i64)


# --- formulas and helpers ---


class _Unequal(ast.NodeTransformer):
    """Replaces ``a != b``, which is false for NaN (0.6.0)."""

    def visit_Compare(self, node):
        """Replace one."""
        self.generic_visit(node)
        if not isinstance(node.ops[0], ast.NotEq):
            return node
        equal = ast.copy_location(ast.Compare(node.left, [ast.Eq()], node.comparators), node)
        return ast.copy_location(ast.UnaryOp(ast.Not(), equal), node)


class _Selected(_Unequal, Spelled):
    """Replaces infix arithmetic, and what would branch."""

    def visit_IfExp(self, node):
        """Replace an `if` between values."""
        self.generic_visit(node)
        return ast.copy_location(
            ast.Call(ast.Name("select", ast.Load()), [node.test, node.body, node.orelse], []), node
        )

    def visit_BoolOp(self, node):
        """Replace `and` and `or`."""
        self.generic_visit(node)
        first, *others = node.values
        for other in others:
            first = ast.BinOp(first, ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr(), other)
        return ast.copy_location(first, node)


# In the order of the file, so that formulas find those that they call.
for _name, _formula in list(vars(scalar).items()):
    if isinstance(_formula, FunctionType):
        globals()[_name] = inline(respelled(_formula, _Selected(), globals()))


@intrinsic
def _through_half(context, x):
    def codegen(builder, target, args, kwargs):
        builder.store_var(target, arith.extf(T.f32(), arith.truncf(T.f16(), builder.load_var(args[0]))))

    return float32(float32), codegen


@inline
def nearest_float16_float32(x):
    """Return a float32 rounded to nearest even in float16. NaN is canonical."""
    return select(x == x, _through_half(x), from_bits_float32(0x7FC00000))


@intrinsic
def apart(context, number):
    """Return an int64, of which the compiler does not know that it is the same: see `primitives`."""

    def codegen(builder, target, args, kwargs):
        value = [wide(builder.load_var(args[0]))]
        found = llvm.inline_asm(T.i64(), value, "mov.b64 $0, $1;", "=l,l", has_side_effects=True)
        builder.store_var(target, found)

    return int64(int64), codegen


@intrinsic
def swift_nearest_bfloat16_float32(context, x):
    """Return a float32 rounded to nearest even in bfloat16; some NaN for NaN."""

    def codegen(builder, target, args, kwargs):
        narrow = arith.bitcast(T.i16(), arith.truncf(T.bf16(), builder.load_var(args[0])))
        builder.store_var(target, widened_bfloat16(narrow))

    return float32(float32), codegen


# --- random bits: see nbopt_backends.meaning.xoroshiro; integers, so nothing is contracted ---


def _word(value):
    """Return an intrinsic that gives a uint64: as a global one beyond int64 can't be compiled (0.6.0)."""

    @intrinsic
    def word(context):
        def codegen(builder, target, args, kwargs):
            builder.store_var(target, number_of(int(value.view("int64"))))

        return uint64(), codegen

    return word


_WORDS = {name: _word(getattr(xoroshiro, name)) for name in ("_GAMMA", "_MIX_1", "_MIX_2")}


class _WithWords(ast.NodeTransformer):
    """Replaces names of such constants by calls."""

    def visit_Name(self, node):
        """Replace one."""
        return ast.copy_location(ast.Call(node, [], []), node) if node.id in _WORDS else node


def _integer(function, **names):
    return inline(respelled(function, _WithWords(), {**vars(xoroshiro), **_WORDS, **names}))


_mix = _integer(xoroshiro.mix)
_absorb = _integer(xoroshiro.absorb, mix=_mix)
keys = _integer(xoroshiro.keys, absorb=_absorb)
seeded = _integer(xoroshiro.seeded, mix=_mix)
advanced = _integer(xoroshiro.advanced)

for _name, _helper in HELPERS.items():
    spelling = _Selected() if _name == "narrowed" else _Unequal()
    globals()[_name] = inline(respelled(_helper, spelling, globals()))


def _slices(bits):
    """Return the intrinsic that takes words apart, see `primitives`."""

    @intrinsic
    def slices(context, *words):
        def codegen(builder, target, args, kwargs):
            words = values_of(builder, args)
            if isinstance(words[0], tuple):
                (words,) = words
            found = [
                arith.andi(arith.shrui(word, number_of(shift)), number_of(2**bits - 1)) if bits < 64 else word
                for word in words
                for shift in range(0, 64, bits)
            ]
            builder.store_var(target, tuple(found))

        return types.UniTuple(int64, 64 // bits * len(words))(*words), codegen

    return slices


slices16, slices32, slices64 = _slices(16), _slices(32), _slices(64)

__all__ = [name for name in globals() if not name.startswith("_")]
