"""Loads and stores of generated CUDA kernels, as MLIR's operations: the twin of `memory`."""

from nbopt_backends.cuda.helpers import Storage, vector_names, vectors
from nbopt_backends.cuda.toolchain import T, arith, cuda, intrinsic, ir, llvm, types

float32, float64, int64, uint64 = types.float32, types.float64, types.int64, types.uint64

#: Decorates a helper of generated text.
inline = cuda.jit(device=True, inline="always")


def values_of(builder, variables):
    """Return the values of variables."""
    return [builder.load_var(variable) for variable in variables]


def number_of(value):
    """Return a constant int64."""
    return arith.constant(T.i64(), value)


def _small(value):
    return arith.constant(T.i32(), value)


def wide(value):
    """Return an integer as one of 64 bits."""
    if isinstance(value.type, ir.IndexType):
        return arith.index_cast(T.i64(), value)
    return value if value.type == T.i64() else arith.extsi(T.i64(), value)


def _pointer(address, index, size):
    """Return the pointer to element `index` of global memory from `address` on."""
    place = arith.addi(wide(address), arith.muli(wide(index), number_of(size)))
    return llvm.inttoptr(ir.Type.parse("!llvm.ptr<1>"), place)


def widened_bfloat16(value):
    """Return the float32 of a bfloat16, which is given as an int16."""
    return arith.bitcast(T.f32(), arith.shli(arith.extui(T.i32(), value), _small(16)))


def _to_bfloat16(value):
    return arith.trunci(T.i16(), arith.shrui(arith.bitcast(T.i32(), value), _small(16)))


def is_nan(*values):
    """Return whether one of two values is NaN, or the one value."""
    return arith.cmpf(arith.CmpFPredicate.UNO, values[0], values[-1])


def _from_float16(value):
    return arith.extf(T.f32(), arith.bitcast(T.f16(), value))


def _to_float16(value):
    narrow = arith.bitcast(T.i16(), arith.truncf(T.f16(), value))
    # PTX has a NaN of its own.
    return arith.select(is_nan(value), arith.constant(T.i16(), 0x7E00), narrow)


_FLOAT32, _FLOAT64 = Storage(float32, 4, T.f32), Storage(float64, 8, T.f64)
_BFLOAT16 = Storage(float32, 2, T.i16, widened_bfloat16, _to_bfloat16)
_FLOAT16 = Storage(float32, 2, T.i16, _from_float16, _to_float16)
_STORAGES = {"float64": _FLOAT64, "float32": _FLOAT32, "float16": _FLOAT16, "bfloat16": _BFLOAT16}
_MLIR = {float32: T.f32, float64: T.f64, int64: T.i64}


def _memory_access(storage):
    """Return the load and the store intrinsic of one element."""

    @intrinsic
    def load(context, address, index, slot):
        def codegen(builder, target, args, kwargs):
            place = _pointer(*values_of(builder, args[:2]), storage.size)
            builder.store_var(
                target, storage.widened(llvm.load(storage.memory(), place, alignment=storage.size))
            )

        return storage.element(int64, int64, int64), codegen

    @intrinsic
    def store(context, address, index, slot, value):
        def codegen(builder, target, args, kwargs):
            place = _pointer(*values_of(builder, args[:2]), storage.size)
            value = builder.mlir_convert(builder.load_var(args[3]), _MLIR[storage.element]())
            llvm.store(storage.narrowed(value), place, alignment=storage.size)
            builder.store_var(target, None)

        return types.void(int64, int64, int64, storage.element), codegen

    return load, store


def _vector_access(name, storage, count):
    """Return the four intrinsics of `count` elements, see `primitives`."""
    per_access = min(count, 16 // storage.size)
    halves = storage.size == 2  # two elements in each 32-bit word
    align = per_access * storage.size
    parts = range(count // per_access)

    def vector():
        return ir.VectorType.get(
            [per_access // 2 if halves else per_access], T.i32() if halves else storage.memory()
        )

    def pointer(address, index, part):
        return _pointer(address, arith.addi(wide(index), number_of(part * per_access)), storage.size)

    def taken(whole, k):
        if not halves:
            return llvm.extractelement(whole, _small(k))
        word = llvm.extractelement(whole, _small(k // 2))
        return arith.trunci(T.i16(), arith.shrui(word, _small(16)) if k % 2 else word)

    def joined(values):
        if halves:
            wide = [arith.extui(T.i32(), value) for value in values]
            values = [
                arith.ori(low, arith.shli(high, _small(16))) for low, high in zip(wide[::2], wide[1::2])
            ]
        whole = llvm.mlir_undef(vector())
        for k, value in enumerate(values):
            whole = llvm.insertelement(whole, value, _small(k))
        return whole

    @intrinsic
    def load(context, address, index):
        def codegen(builder, target, args, kwargs):
            address, index = values_of(builder, args)
            loaded = [llvm.load(vector(), pointer(address, index, part), alignment=align) for part in parts]
            values = [storage.widened(taken(whole, k)) for whole in loaded for k in range(per_access)]
            builder.store_var(target, tuple(values))

        return types.UniTuple(storage.element, count)(int64, int64), codegen

    @intrinsic
    def store(context, address, index, *values):
        def codegen(builder, target, args, kwargs):
            address, index, *values = values_of(builder, args)
            values = [storage.narrowed(value) for value in (values[0] if len(values) == 1 else values)]
            for part in parts:
                whole = joined(values[part * per_access : (part + 1) * per_access])
                llvm.store(whole, pointer(address, index, part), alignment=align)
            builder.store_var(target, None)

        return types.void(int64, int64, *[storage.element] * count), codegen

    @intrinsic
    def load_first(context, address, index, left):
        def codegen(builder, target, args, kwargs):
            address, index, left = map(wide, values_of(builder, args))
            last, values = arith.subi(left, number_of(1)), []
            for k in range(count):
                place = _pointer(address, arith.addi(index, arith.minsi(number_of(k), last)), storage.size)
                values.append(storage.widened(llvm.load(storage.memory(), place, alignment=storage.size)))
            builder.store_var(target, tuple(values))

        return types.UniTuple(storage.element, count)(int64, int64, int64), codegen

    values = [f"v{k}" for k in range(count)]
    lines = [f"def store_first(address, index, left, {', '.join(values)}):"]
    for k, value in enumerate(values):
        lines += [f"    if {k} < left:", f"        store_{name}(address, index + {k}, -1, {value})"]
    made: dict = {}
    exec("\n".join(lines), globals(), made)
    return load, store, load_first, inline(made["store_first"])


load_float32, store_float32 = _memory_access(_FLOAT32)
load_float64, store_float64 = _memory_access(_FLOAT64)
load_float16, store_float16 = _memory_access(_FLOAT16)
load_bfloat16, store_bfloat16 = _memory_access(_BFLOAT16)
load_int64, store_int64 = _memory_access(Storage(int64, 8, T.i64))
load_uint64, _ = _memory_access(Storage(uint64, 8, T.i64))
for _name, _storage, _count in vectors(_STORAGES):
    globals().update(zip(vector_names(_name, _count), _vector_access(_name, _storage, _count)))

__all__ = [name for name in globals() if not name.startswith("_")]
