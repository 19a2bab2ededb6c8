"""The twin of `cuda_primitives` for the CUDA simulator: the same names, in plain Python over NumPy scalars.

The simulator runs a kernel's text as Python, one Python thread for each CUDA thread. Device memory is host
memory there, reached by ctypes.
"""

import ctypes
from math import inf  # noqa: F401  (kernels use it)
from types import FunctionType

import numpy as np

from nbopt.language.ops import PRIMITIVES
from nbopt_backends.cuda.helpers import HELPERS
from nbopt_backends.cuda.toolchain import cuda  # noqa: F401  (kernels use it)
from nbopt_backends.lowering import formulas as scalar
from nbopt_backends.meaning import xoroshiro

float32, float64, int64, uint64, boolean = np.float32, np.float64, int, np.uint64, bool


def inline(function):
    """Leave a helper as it is."""
    return function


def once(*results):
    """Return a decorator that leaves a function as it is."""
    return inline


def _memory_access(kind, loaded, stored=lambda value: value):
    size = ctypes.sizeof(kind)

    def load(address, index, slot):
        return loaded(kind.from_address(int(address + index * size)).value)

    def store(address, index, slot, value):
        kind.from_address(int(address + index * size)).value = stored(value)

    return load, store


def _vector_access(load, store, count):
    def load_vector(address, index):
        return tuple(load(address, index + k, -1) for k in range(count))

    def store_vector(address, index, *values):
        for k, value in enumerate(values):
            store(address, index + k, -1, value)

    def load_first(address, index, left):
        return tuple(load(address, index + min(k, left - 1), -1) for k in range(count))

    def store_first(address, index, left, *values):
        for k, value in enumerate(values[:left]):
            store(address, index + k, -1, value)

    return load_vector, store_vector, load_first, store_first


load_float32, store_float32 = _memory_access(ctypes.c_float, np.float32)
load_float64, store_float64 = _memory_access(ctypes.c_double, np.float64)
load_int64, store_int64 = _memory_access(ctypes.c_int64, int)
load_uint64, _ = _memory_access(ctypes.c_uint64, np.uint64)
load_float16, store_float16 = _memory_access(
    ctypes.c_uint16,
    lambda bits: np.float32(np.uint16(bits).view(np.float16)),
    lambda value: int(np.float16(value).view(np.uint16)),
)
load_bfloat16, store_bfloat16 = _memory_access(
    ctypes.c_uint16,
    lambda bits: np.uint32(bits << 16).view(np.float32),
    lambda value: int(np.float32(value).view(np.uint32)) >> 16,
)
load_float64x2, store_float64x2, load_first_float64x2, store_first_float64x2 = _vector_access(
    load_float64, store_float64, 2
)
load_float64x4, store_float64x4, load_first_float64x4, store_first_float64x4 = _vector_access(
    load_float64, store_float64, 4
)
load_float32x4, store_float32x4, load_first_float32x4, store_first_float32x4 = _vector_access(
    load_float32, store_float32, 4
)
load_float64x8, store_float64x8, load_first_float64x8, store_first_float64x8 = _vector_access(
    load_float64, store_float64, 8
)
load_float32x8, store_float32x8, load_first_float32x8, store_first_float32x8 = _vector_access(
    load_float32, store_float32, 8
)
load_float16x4, store_float16x4, load_first_float16x4, store_first_float16x4 = _vector_access(
    load_float16, store_float16, 4
)
load_bfloat16x4, store_bfloat16x4, load_first_bfloat16x4, store_first_bfloat16x4 = _vector_access(
    load_bfloat16, store_bfloat16, 4
)
load_float16x8, store_float16x8, load_first_float16x8, store_first_float16x8 = _vector_access(
    load_float16, store_float16, 8
)
load_bfloat16x8, store_bfloat16x8, load_first_bfloat16x8, store_first_bfloat16x8 = _vector_access(
    load_bfloat16, store_bfloat16, 8
)


def _in_numpy(name):
    meaning = PRIMITIVES[name].numpy
    return lambda *operands: np.result_type(*operands).type(meaning(*operands))


absolute, exp, exp2, log, log2, maximum, minimum, power, rint, sqrt, tanh = map(
    _in_numpy,
    ("absolute", "exp", "exp2", "log", "log2", "maximum", "minimum", "power", "rint", "sqrt", "tanh"),
)


def bits_float32(value):
    """Return the bits of a float32 as a non-negative int."""
    return int(np.float32(value).view(np.uint32))


def from_bits_float32(bits):
    """Return the float32 of the lowest 32 bits of an int."""
    return np.uint32(bits & 0xFFFFFFFF).view(np.float32)


def bits_float64(value):
    """Return the bits of a float64 as a signed int."""
    return int(np.float64(value).view(np.int64))


def from_bits_float64(bits):
    """Return the float64 of a signed or unsigned int's 64 bits."""
    return np.uint64(bits & 0xFFFFFFFFFFFFFFFF).view(np.float64)


def narrowed(x):
    """Return a float64 as a float32, NaN as the one whose upper half is bfloat16's canonical NaN."""
    return np.float32(x) if x == x else from_bits_float32(0x7FC00000)


def address(row, slot, offset, item_size):
    """Return the address of element `offset` of a slot; `row` is the address of the tensor's row."""
    return load_int64(row, slot, -1) + offset * item_size


def place(geometry, row, slot, position):
    """Return the address of the element at a C-order position of a slot that may be strided.

    See `nbopt_backends.cpu.chunks.run_strided_chunk` for geometries.
    """
    shape = load_int64(geometry, slot, -1)
    here = load_int64(row, slot, -1)
    if load_int64(shape, 0, -1) == 0:
        return here + position * load_int64(shape, 1, -1)
    ndim = load_int64(shape, 2, -1)
    for axis in range(ndim - 1, -1, -1):
        position, column = divmod(position, load_int64(shape, 3 + axis, -1))
        here += column * load_int64(shape, 3 + ndim + axis, -1)
    return here


def apart(number):
    """Return the same number."""
    return number


def counted_up(address):
    """Add 1 to an int64, and return what it was before."""
    before = load_int64(address, 0, -1)
    store_int64(address, 0, -1, before + 1)
    return before


def beats(x, y, kind):
    """Return whether x goes before y in a search for the largest (kind 2) or smallest (kind 3) value.

    NaN goes first.
    """
    return y == y and (x != x or (x > y if kind == 2 else x < y))


for _name, _formula in list(vars(scalar).items()):
    if isinstance(_formula, FunctionType):
        globals()[_name] = FunctionType(_formula.__code__, globals(), _name)

nearest_float16_float32 = globals()["nearest_float16_float32_by_integers"]
for _name in ("arrived", "swift_stochastic_bfloat16_float32"):
    globals()[_name] = FunctionType(HELPERS[_name].__code__, globals(), _name)
swift_nearest_bfloat16_float32 = globals()["nearest_bfloat16_float32"]
keys, seeded, advanced = xoroshiro.keys, xoroshiro.seeded, xoroshiro.advanced


def drawn(key_0, key_1, counter, draw):
    """Return word number `draw` of a lane, whatever was drawn before."""
    s0, s1 = seeded(key_0, key_1, counter)
    for _ in range(draw):
        _, s0, s1 = advanced(s0, s1)
    return advanced(s0, s1)[0]


def _slices(bits):
    def slices(*words):
        return tuple((int(word) >> shift) & (2**bits - 1) for word in words for shift in range(0, 64, bits))

    return slices


slices16, slices32, slices64 = _slices(16), _slices(32), _slices(64)

__all__ = [name for name in globals() if not name.startswith("_")]
