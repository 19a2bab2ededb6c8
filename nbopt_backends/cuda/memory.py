"""Loads and stores of generated CUDA kernels, as LLVM's instructions.

Memory is reached by address: a table gives the address of each slot of each tensor as an int64.
"""

from llvmlite import ir

from nbopt_backends.cuda.helpers import Storage, vector_names, vectors
from nbopt_backends.cuda.toolchain import intrinsic, types

float32, float64, int64, uint64 = types.float32, types.float64, types.int64, types.uint64
_FLOAT, _DOUBLE, _WORD = ir.FloatType(), ir.DoubleType(), ir.IntType(64)
_I16, _I32 = ir.IntType(16), ir.IntType(32)
_GLOBAL = 1  # NVVM's address space of device memory


def _global(builder, address, llvm_type, index):
    """Return the pointer to element `index` of global memory from `address` on."""
    pointer = builder.inttoptr(address, ir.PointerType(llvm_type, _GLOBAL))
    return builder.gep(pointer, [index], inbounds=True)


def _from_bfloat16(builder, value):
    return builder.bitcast(builder.shl(builder.zext(value, _I32), _I32(16)), _FLOAT)


def _to_bfloat16(builder, value):
    return builder.trunc(builder.lshr(builder.bitcast(value, _I32), _I32(16)), _I16)


def _upper_halves(builder, low, high):
    """Return the word whose halves are the upper ones of two float32: two bfloat16 by one instruction."""
    kind = ir.FunctionType(_I32, [_I32, _I32])
    words = [builder.bitcast(value, _I32) for value in (low, high)]
    return builder.call(ir.InlineAsm(kind, "prmt.b32 $0, $1, $2, 0x7632;", "=r,r,r"), words)


def _from_float16(builder, value):
    return builder.fpext(builder.bitcast(value, ir.HalfType()), _FLOAT)


def _to_float16(builder, value):
    narrow = builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
    # PTX has a NaN of its own.
    return builder.select(builder.fcmp_unordered("uno", value, value), _I16(0x7E00), narrow)


_FLOAT32, _FLOAT64 = Storage(float32, 4, _FLOAT), Storage(float64, 8, _DOUBLE)
_BFLOAT16 = Storage(float32, 2, _I16, _from_bfloat16, _to_bfloat16)
_FLOAT16 = Storage(float32, 2, _I16, _from_float16, _to_float16)
_STORAGES = {"float64": _FLOAT64, "float32": _FLOAT32, "float16": _FLOAT16, "bfloat16": _BFLOAT16}


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
    """Return the load and the store intrinsic of `count` elements, in accesses of 16 bytes, or of 8.

    The elements start at a multiple of as many. Two more are for elements that are not aligned, or of which
    only the first `left` are there: for others the load gives the last one that is, and the store does
    nothing.
    """
    per_access = min(count, 16 // storage.size)
    halves = storage.size == 2  # two elements in each 32-bit word
    vector = ir.VectorType(_I32 if halves else storage.memory, per_access // (2 if halves else 1))
    align = per_access * storage.size
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
        if storage is _BFLOAT16:
            values = [_upper_halves(builder, *pair) for pair in zip(values[::2], values[1::2])]
        elif halves:
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
            loaded = [builder.load(pointer(builder, args, part), align=align) for part in parts]
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
            values = [builder.extract_value(args[2], k) for k in range(count)]
            if storage is not _BFLOAT16:
                values = [storage.narrowed(builder, value) for value in values]
            for part in parts:
                whole = joined(builder, values[part * per_access : (part + 1) * per_access])
                builder.store(whole, pointer(builder, args, part), align=align)
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
load_int64, store_int64 = _memory_access(Storage(int64, 8, _WORD))
load_uint64, _ = _memory_access(Storage(uint64, 8, _WORD))
for _name, _storage, _count in vectors(_STORAGES):
    globals().update(zip(vector_names(_name, _count), _vector_access(_storage, _count)))

__all__ = [name for name in globals() if not name.startswith("_")]
