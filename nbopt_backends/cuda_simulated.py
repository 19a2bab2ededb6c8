"""The twin of `cuda_primitives` for the CUDA simulator: the same names, in plain Python over NumPy scalars.

The simulator runs a kernel's text as Python, one Python thread for each CUDA thread. Device memory is host memory there, reached by ctypes.
"""

import ctypes
from types import FunctionType

import numpy as np

from nbopt.ops import PRIMITIVES
from nbopt_backends import scalar
from nbopt_backends.numba_cuda import cuda

float32, float64, int64 = np.float32, np.float64, int


def inline(function):
    """Leave a helper as it is."""
    return function


def _memory_access(kind, number):
    size = ctypes.sizeof(kind)

    def load(address, index, slot):
        return number(kind.from_address(int(address + index * size)).value)

    def store(address, index, slot, value):
        kind.from_address(int(address + index * size)).value = value

    return load, store


def _vector_access(load, store, count):
    def load_vector(address, index):
        return tuple(load(address, index + k, -1) for k in range(count))

    def store_vector(address, index, *values):
        for k, value in enumerate(values):
            store(address, index + k, -1, value)

    return load_vector, store_vector


load_float32, store_float32 = _memory_access(ctypes.c_float, np.float32)
load_float64, store_float64 = _memory_access(ctypes.c_double, np.float64)
load_int64, store_int64 = _memory_access(ctypes.c_int64, int)
load_float32x4, store_float32x4 = _vector_access(load_float32, store_float32, 4)
load_float64x4, store_float64x4 = _vector_access(load_float64, store_float64, 4)
load_float64x2, store_float64x2 = _vector_access(load_float64, store_float64, 2)


def _in_numpy(name):
    meaning = PRIMITIVES[name].numpy
    return lambda *operands: np.result_type(*operands).type(meaning(*operands))


absolute, exp, exp2, log, log2, maximum, minimum, power, rint, sqrt, tanh = map(
    _in_numpy, ("absolute", "exp", "exp2", "log", "log2", "maximum", "minimum", "power", "rint", "sqrt", "tanh")
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


def address(row, slot, offset, item_size):
    """Return the address of element `offset` of a slot, given the address of its tensor's row in the table."""
    return load_int64(row, slot, -1) + offset * item_size


def place(geometry, row, slot, position):
    """Return the address of the element at a C-order position of a slot that may be strided; see `plan.Group` for geometries."""
    shape = load_int64(geometry, slot, -1)
    here = load_int64(row, slot, -1)
    if load_int64(shape, 0, -1) == 0:
        return here + position * load_int64(shape, 1, -1)
    ndim = load_int64(shape, 2, -1)
    for axis in range(ndim - 1, -1, -1):
        position, column = divmod(position, load_int64(shape, 3 + axis, -1))
        here += column * load_int64(shape, 3 + ndim + axis, -1)
    return here


def beats(x, y, kind):
    """Return whether x goes before y where the largest (kind 2) or smallest (kind 3) value is looked for: NaN goes first."""
    return y == y and (x != x or (x > y if kind == 2 else x < y))


def _with_names_of_this_module(function):
    return FunctionType(function.__code__, globals(), function.__name__)


shift_float32, shift_float64 = _with_names_of_this_module(scalar.shift_float32), _with_names_of_this_module(scalar.shift_float64)
ldexp_float32, ldexp_float64 = _with_names_of_this_module(scalar.ldexp_float32), _with_names_of_this_module(scalar.ldexp_float64)

__all__ = [
    "absolute", "address", "beats", "cuda", "exp", "exp2", "float32", "float64", "inline", "int64", "ldexp_float32", "ldexp_float64",
    "load_float32", "load_float32x4", "load_float64", "load_float64x2", "load_float64x4", "load_int64", "log", "log2", "maximum", "minimum", "place",
    "power", "rint", "shift_float32", "shift_float64", "sqrt", "store_float32", "store_float32x4", "store_float64", "store_float64x2",
    "store_float64x4", "store_int64", "tanh",
]  # fmt: skip
