"""Arrays over given memory, and whether arrays overlap: checked when a layout is built, so that no update depends on the order of its elements."""

import ctypes

import numpy as np

from nbopt.errors import LayoutError, OperandError

# Overlap of interleaved views is a bounded integer problem; beyond this much work the arrays are taken to overlap.
_MAX_WORK = 100_000


class _Exporter:
    """What NumPy takes for an array. The array that it makes keeps this alive, and so the memory's owner."""

    def __init__(self, owner, interface):
        self.owner, self.__array_interface__ = owner, interface


def array_at(address, shape, dtype, strides, owner, readonly=False):
    """Return a numpy.ndarray over memory at an address, which `owner` keeps alive. NumPy need not be able to reach it, or know the dtype."""
    interface = {
        "version": 3,
        "shape": shape,
        "strides": strides,  # None: C order
        "typestr": f"|V{dtype.itemsize}",
        "data": (address or 1, False),  # NumPy takes 0 for no memory, where libraries have arrays without elements
    }
    array = np.asarray(_Exporter(owner, interface)).view(dtype)
    array.flags.writeable = not readonly
    return array


def no_array(obj):
    """Return the error of an object whose memory can't be shared."""
    return OperandError(f"{type(obj).__name__} is no array whose memory could be shared. be.array(x) makes a tensor with a copy of its values")


def torch_structure(home, tensor):
    """Return the address, dtype, as the backend `home` stores it, and strides in bytes (None: C order) of a PyTorch tensor.

    Raises
    ------
    LayoutError
        If the tensor has no memory of its own, or its memory doesn't hold its values.
    """
    if str(tensor.layout) != "torch.strided":
        raise LayoutError(f"the tensor is sparse ({tensor.layout}), and a step needs all of its elements: make it dense by x.to_dense()")
    try:
        address, empty = tensor.data_ptr(), 0 in tensor.shape
    except RuntimeError:  # nested tensors have no shape, those inside of torch.func.vmap no address
        address, empty = 0, False
    if not (address or empty):
        raise _no_memory(tensor)
    if tensor.is_neg():
        raise LayoutError(
            "the tensor has PyTorch's negative bit: its memory holds its values with the other sign, so it can't be written. Pass x.resolve_neg()"
        )
    dtype = home.storage_dtype(str(tensor.dtype).removeprefix("torch."))
    return address, dtype, None if tensor.is_contiguous() else tuple(step * dtype.itemsize for step in tensor.stride())


def _no_memory(tensor):
    kind = type(tensor).__name__
    if hasattr(tensor, "to_local"):
        way = "Pass its local tensors, x.to_local(). Parameters that FSDP2 shards (fully_shard) are not supported yet"
    else:
        way = "Pass the plain tensors that it stands for"
    return LayoutError(f"the tensor is a {kind}, which has no memory of its own to be read or written. {way}")


def resolved(obj):
    """Return `obj`, or a copy of its values where it is a PyTorch tensor whose memory holds them with the other sign (the negative bit)."""
    return obj.resolve_neg() if hasattr(obj, "resolve_neg") and obj.is_neg() else obj


BFLOAT = 4  # DLPack's code of bfloat16 and the like


class _DLTensor(ctypes.Structure):
    """The beginning of DLPack's DLManagedTensor: see dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def dlpack_tensor(capsule):
    """Return the structure in a DLPack capsule."""
    address_in = ctypes.pythonapi.PyCapsule_GetPointer
    address_in.restype, address_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return _DLTensor.from_address(address_in(capsule, b"dltensor"))


def dlpack_structure(home, capsule):
    """Return the address, shape, dtype, as the backend `home` stores it, and strides in bytes (None: C order) of a DLPack capsule's array."""
    found = dlpack_tensor(capsule)
    names = {(2, 16): "float16", (2, 32): "float32", (2, 64): "float64", (BFLOAT, 16): "bfloat16"}
    dtype = home.storage_dtype(names.get((found.code, found.bits), f"DLPack type {found.code} of {found.bits} bits"))
    shape = tuple(found.shape[: found.ndim])
    strides = tuple(step * dtype.itemsize for step in found.strides[: found.ndim]) if found.strides else None
    return (found.data or 0) + found.byte_offset, shape, dtype, strides


def byte_range(array):
    """Return (first byte, byte after the last) of a NumPy array's elements; equal where there are none."""
    start = array.__array_interface__["data"][0]
    low, high = reach(array.shape, array.dtype, array.strides)
    return start + low, start + high


def reach(shape, dtype, strides):
    """Return what `byte_range` does, counted from the first element."""
    if 0 in shape:
        return 0, 0
    low = sum(min(0, (n - 1) * step) for n, step in zip(shape, strides))
    high = sum(max(0, (n - 1) * step) for n, step in zip(shape, strides))
    return low, high + dtype.itemsize


def overlaps_itself(array):
    """Return whether two elements of `array` share memory (as in views made by ``as_strided`` or ``broadcast_to``)."""
    if array.size <= 1:
        return False
    reach = array.itemsize
    for step, n in sorted((abs(step), n) for n, step in zip(array.shape, array.strides) if n > 1):
        if step < reach:
            break
        reach = step * (n - 1) + reach
    else:
        return False
    # The strides alone don't settle it: look at every element's address.
    addresses = np.zeros(array.shape, np.int64)
    for axis, (n, step) in enumerate(zip(array.shape, array.strides)):
        addresses += (np.arange(n) * step).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    gaps = np.diff(np.sort(addresses, axis=None))
    return bool((gaps < array.itemsize).any())


def check_disjoint(values):
    """Refuse memory that is written through one array and read or written through another.

    Parameters
    ----------
    values : list of (numpy.ndarray, written, label)
        `written` is a bool; `label` is a callable that returns the array's name for messages.

    Raises
    ------
    LayoutError
    """
    for array, _, label in values:
        if overlaps_itself(array):
            raise LayoutError(f"elements of {label()} share memory with each other: make a copy of it (numpy.array(x))")
    spans = sorted((*byte_range(array), written, index) for index, (array, written, _) in enumerate(values))
    active = []  # spans that reach beyond the current one's start
    for start, end, written, index in spans:
        if start == end:
            continue
        active = [span for span in active if span[1] > start]
        for _, _, other_written, other in active:
            if (written or other_written) and _share(values[index][0], values[other][0]):
                raise LayoutError(
                    f"{values[other][2]()} and {values[index][2]()} share memory that a step writes: "
                    "the result would depend on which is updated first. List each array once, and keep gradients in memory of their own."
                )
        active.append((start, end, written, index))


def _share(a, b):
    try:
        return np.shares_memory(a, b, max_work=_MAX_WORK)
    except np.exceptions.TooHardError:
        return True
