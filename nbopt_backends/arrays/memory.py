"""Arrays over given memory, and whether arrays overlap.

Overlap is checked when a layout is built, so that no update depends on the order of its elements. What is
asked of an array here is its address, shape, dtype and strides: a numpy.ndarray in the host's memory, or a
record such as DeviceArray.
"""

import ctypes
import math

import numpy as np

from nbopt.errors import LayoutError, OperandError

# Whether interleaved views overlap is a bounded integer problem. Beyond this much work the arrays are taken
# to overlap.
_MAX_WORK = 100_000


class _Exporter:
    """What NumPy takes for an array. The array that it makes keeps this alive, and so the memory's owner."""

    def __init__(self, owner, interface):
        self.owner, self.__array_interface__ = owner, interface


def array_at(address, shape, dtype, strides, owner, readonly=False):
    """Return a numpy.ndarray over the host's memory at an address, which `owner` keeps alive.

    NumPy need not know the dtype.

    It is never made over a device's memory: whoever prints such an array, a debugger for example, ends the
    process.
    """
    interface = {
        "version": 3,
        "shape": shape,
        "strides": strides,  # None: C order
        "typestr": f"|V{dtype.itemsize}",
        # NumPy takes 0 for no memory, where libraries have arrays without elements.
        "data": (address or 1, False),
    }
    array = np.asarray(_Exporter(owner, interface)).view(dtype)
    array.flags.writeable = not readonly
    return array


def no_array(obj):
    """Return the error of an object whose memory can't be shared."""
    return OperandError(
        f"{type(obj).__name__} is no array whose memory could be shared. numpy.array(x, 'float32') makes "
        "one, nbopt.get_backend().array(x) a tensor, with a copy of its values"
    )


def torch_structure(home, tensor):
    """Return the address, dtype and strides of a PyTorch tensor.

    The dtype is the one in which the backend `home` stores it. Strides are in bytes; None is C order.

    Raises
    ------
    LayoutError
        If the tensor has no memory of its own, or its memory doesn't hold its values.
    """
    if str(tensor.layout) != "torch.strided":
        raise LayoutError(
            f"the tensor is sparse ({tensor.layout}), and a step needs all of its elements: make it dense by "
            "x.to_dense()"
        )
    try:
        address, empty = tensor.data_ptr(), 0 in tensor.shape
    except RuntimeError:  # nested tensors have no shape, those inside of torch.func.vmap no address
        address, empty = 0, False
    if not (address or empty):
        raise _no_memory(tensor)
    if tensor.is_neg():
        raise LayoutError(
            "the tensor has PyTorch's negative bit: its memory holds its values with the other sign, so it "
            "can't be written. Pass x.resolve_neg()"
        )
    dtype = home.storage_dtype(str(tensor.dtype).removeprefix("torch."))
    return (
        address,
        dtype,
        None if tensor.is_contiguous() else tuple(step * dtype.itemsize for step in tensor.stride()),
    )


def _no_memory(tensor):
    kind = type(tensor).__name__
    if hasattr(tensor, "to_local"):
        way = (
            "Pass its local tensors, x.to_local(). Parameters that FSDP2 shards (fully_shard) are not "
            "supported yet"
        )
    else:
        way = "Pass the plain tensors that it stands for"
    return LayoutError(f"the tensor is a {kind}, which has no memory of its own to be read or written. {way}")


def resolved(obj):
    """Return `obj`, or a copy of its values if its memory does not hold them.

    That is so for a PyTorch tensor whose memory holds the values with the other sign (the negative bit).
    """
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
    """Return the address, shape, dtype and strides of a DLPack capsule's array.

    The dtype is the one in which the backend `home` stores it. Strides are in bytes; None is C order.
    """
    found = dlpack_tensor(capsule)
    names = {(2, 16): "float16", (2, 32): "float32", (2, 64): "float64", (BFLOAT, 16): "bfloat16"}
    dtype = home.storage_dtype(
        names.get((found.code, found.bits), f"DLPack type {found.code} of {found.bits} bits")
    )
    shape = tuple(found.shape[: found.ndim])
    strides = tuple(step * dtype.itemsize for step in found.strides[: found.ndim]) if found.strides else None
    return (found.data or 0) + found.byte_offset, shape, dtype, strides


def address_of(array):
    """Return the address of an array's first element."""
    return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.address


def byte_range(array):
    """Return (first byte, byte after the last) of an array's elements; equal where there are none."""
    start = address_of(array)
    low, high = reach(array.shape, array.dtype, array.strides)
    return start + low, start + high


def reach(shape, dtype, strides):
    """Return what `byte_range` does, counted from the first element."""
    if 0 in shape:
        return 0, 0
    low = sum(min(0, (n - 1) * step) for n, step in zip(shape, strides))
    high = sum(max(0, (n - 1) * step) for n, step in zip(shape, strides))
    return low, high + dtype.itemsize


def reshaped_strides(shape, strides, new, item_size):
    """Return the strides of a view of another shape.

    Parameters
    ----------
    shape, strides : tuple of int
        The array's; strides in bytes.
    new : tuple of int
        With as many elements.
    item_size : int

    Returns
    -------
    tuple of int or None
        None where there is no such view.
    """
    if 0 in shape:
        return (item_size,) * len(new)
    # Runs of elements at one distance, from the outermost: [length, distance].
    runs: list[list[int]] = [[1, item_size]]
    for n, step in zip(shape, strides):
        if runs[-1][1] == n * step:
            runs[-1] = [runs[-1][0] * n, step]
        elif n != 1:
            runs.append([n, step])
    length, step = runs.pop()
    found = []
    for n in reversed(new):
        if length == 1 and n != 1:
            length, step = runs.pop()
        if length % n:
            return None
        found.append(step)
        length, step = length // n, step * n
    return tuple(reversed(found))


def overlaps_itself(array):
    """Return whether two elements of `array` share memory.

    They do in some views made by ``as_strided`` or ``broadcast_to``.
    """
    if array.size <= 1:
        return False
    item_size = array.dtype.itemsize
    reach = item_size
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
    return bool((gaps < item_size).any())


def check_disjoint(values):
    """Refuse memory that is written through one array and read or written through another.

    Parameters
    ----------
    values : list of (array, written, label)
        `written` is a bool; `label` is a callable that returns the array's name for messages.

    Raises
    ------
    LayoutError
    """
    for array, written, label in values:
        if written and overlaps_itself(array):
            raise LayoutError(
                f"elements of {label()} share memory with each other: make a copy of it (numpy.array(x))"
            )
    spans = sorted((*byte_range(array), written, index) for index, (array, written, _) in enumerate(values))
    active = []  # spans that reach beyond the current one's start
    for start, end, written, index in spans:
        if start == end:
            continue
        active = [span for span in active if span[1] > start]
        for _, _, other_written, other in active:
            if (written or other_written) and _share(values[index][0], values[other][0]):
                raise LayoutError(
                    f"{values[other][2]()} and {values[index][2]()} share memory that a step writes: the "
                    "result would depend on which is updated first. List each array once, and keep "
                    "gradients in memory of their own."
                )
        active.append((start, end, written, index))


def _share(a, b):
    """Return whether two arrays have a byte in common.

    It is True as well where that takes too long to find out.
    """
    # The distance between two elements is a sum of steps, each taken a number of times that lies in a range.
    # Equal steps are one.
    ranges = {}
    for array, sign in ((a, -1), (b, 1)):
        for n, step in zip(array.shape, array.strides):
            if n > 1 and step:
                low, high = ranges.get(abs(step), (0, 0))
                ranges[abs(step)] = (low, high + n - 1) if step * sign > 0 else (low - n + 1, high)
    apart = address_of(a) - address_of(b)
    terms = sorted(((step, *ends) for step, ends in ranges.items()), reverse=True)
    return _has_sum(terms, apart - b.dtype.itemsize + 1, apart + a.dtype.itemsize - 1)


def _has_sum(terms, low, high):
    """Return whether ``sum(step * times)`` can lie in [low, high].

    `terms` are (step, fewest times, most times), the largest step first.
    """
    rests = [(0, 0, 0)]  # from each term on: the greatest common divisor, the least and the greatest sum
    for step, fewest, most in reversed(terms):
        divisor, least, greatest = rests[-1]
        rests.append((math.gcd(divisor, step), least + step * fewest, greatest + step * most))
    rests.reverse()
    work, open_ends = 0, [(0, low, high)]
    while open_ends:
        index, low, high = open_ends.pop()
        divisor, least, greatest = rests[index]
        low, high = max(low, least), min(high, greatest)
        if low > high or (divisor and -(-low // divisor) > high // divisor):
            continue
        if index == len(terms):
            return True
        step, fewest, most = terms[index]
        _, least, greatest = rests[index + 1]
        times = range(max(fewest, -(-(low - greatest) // step)), min(most, (high - least) // step) + 1)
        work += len(times)
        if work > _MAX_WORK:
            return True
        open_ends += [(index + 1, low - step * n, high - step * n) for n in times]
    return False
